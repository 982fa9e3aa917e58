"""What a CUDA graph does, on a CPU: the operations that a function runs, with their very tensors, to be run again without the function.

The host's part is not repeated: Python, addresses in the tables of the native kernels, numbers among the arguments. What would make a
capture fail, a wait for the device or a copy from the host, fails here.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

R = TypeVar("R")
WAITS = tuple(f"aten::{x}" for x in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal"))
FROM_HOST = ("aten::lift_fresh",)  # torch.tensor([...]): a blocking copy, on a GPU
NOT_ON_GPU = ("weighted_gradients",)  # functions that look at values where that costs no wait, on a CPU
TABLES = tuple(f"sam_kernels_native::{name}" for name in ("inner_products", "ascend_", "descend_"))


class NoHost(TorchDispatchMode):
    """Raises where the host would wait for the device, but for ``allowed`` functions."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.allowed = (*NOT_ON_GPU, *allowed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in (*WAITS, *FROM_HOST) and not called_from(self.allowed):
            raise RuntimeError(f"{func.name()}: not permitted while capturing")
        return func(*args, **(kwargs or {}))


def called_from(names: tuple[str, ...]) -> bool:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name not in names:
        frame = frame.f_back
    return frame.f_code.co_name in names


class Recording(NoHost):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in TABLES:
            args = (args[0].clone(), *args[1:])  # the next call may write other addresses into it
        held = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))  # before squeeze_() and the like change their shapes
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, *held, tree_map_only(Tensor, Tensor.detach, out)))
        return out


class CpuRecorder:
    def __init__(self, device: torch.device) -> None:
        self.recording = Recording()

    def warm_up(self, run: Callable[[], object]) -> None:
        run()

    def watch(self, run: Callable[[], object]) -> None:
        with NoHost():
            run()

    def record(self, run: Callable[[], R]) -> R:
        with self.recording:
            return run()

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.recording.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
