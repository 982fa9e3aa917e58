"""The Triton backend: portable GPU kernels, and the same kernels on CPU tensors in Triton's interpreter.

The interpreter is chosen when Triton is imported: with TRITON_INTERPRET=1 in the environment the kernels run on CPU tensors and
only there, because their address tables would hand device addresses to the host.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registry import OPS, implement

KERNELS = {  # op -> module and function of this package
    "inner_products": ("inner_products", "inner_products"),
    "ascend_": ("ascend", "ascend_"),
    "descend_": ("descend", "descend_"),
    "linear_grad_norms": ("linear_grad_norms", "linear_grad_norms"),
    "conv_grad_norms": ("conv_grad_norms", "conv_grad_norms"),
    "normalization_grads": ("normalization", "normalization_grads"),
    "embedding_grad_norms": ("embedding", "embedding_grad_norms"),
    "cross_entropy_sample": ("cross_entropy", "cross_entropy_sample"),
    "cross_entropy_sample_backward": ("cross_entropy", "backward"),
    "gibbs_weights": ("gibbs_weights", "gibbs_weights"),
    "draw": ("draw", "draw"),
}


def interpreted() -> bool:
    """Whether Triton interprets kernels in this process instead of compiling them."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def unusable() -> str | None:
    """Why no kernel of this backend can run here, or None. Imports Triton only where one may."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    try:
        if not interpreted() and not torch.cuda.is_available():
            return "no CUDA GPU; set TRITON_INTERPRET=1 for the interpreter"
    except (ImportError, AttributeError, OSError) as error:
        return f"triton does not import: {error}"
    return None


def register() -> None:
    """Attach the kernels to their ops, or record why they cannot run."""
    if why := unusable():
        for name in KERNELS:
            OPS[name].missing["triton"] = why
        return
    devices = ("cpu",) if interpreted() else ("cuda",)
    for name, (module, function) in KERNELS.items():
        kernel = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        implement(name, "triton", devices, (torch.float32, torch.bfloat16, torch.float16))(_on_its_device(kernel))


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be that of the tensors."""

    def run(*arguments: Any) -> Any:
        lists = (x if isinstance(x, list | tuple) else [x] for x in arguments)
        with torch.cuda.device_of(next(x[0] for x in lists if x and isinstance(x[0], Tensor))):
            return function(*arguments)

    return run
