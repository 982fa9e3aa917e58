"""What a step changes, kept aside: to run steps for nothing and be where one was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

if TYPE_CHECKING:
    from .sam import SAM


class Snapshot:
    """Weights and state of ``optimizer``, the buffers of its ``model`` and of every module that runs inside of ``watching()``, and torch's
    generators. Holds as much memory as those."""

    def __init__(self, optimizer: SAM) -> None:
        self._optimizer = optimizer
        self._copies: list[tuple[Tensor, Tensor]] = []  # a tensor, and what it held
        self._modules: dict[nn.Module, None] = {}
        self._keep(optimizer.members())
        for bucket in optimizer._get_buckets():  # has taken over the state that is there; what comes later counts as never written
            self._keep([bucket.state.steps, *(x for row in bucket.state.buffers.values() for x in row)])
        self._keep(x for x in optimizer.batch_state.values() if isinstance(x, Tensor))
        self._numbers = {key: x for key, x in optimizer.batch_state.items() if not isinstance(x, Tensor)}
        for module in optimizer.model.modules() if optimizer.model is not None else ():
            self._see(module)
        self._host = torch.get_rng_state()
        self._device = torch.cuda.get_rng_state(optimizer.device) if optimizer.device.type == "cuda" else None

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        self._copies += [(x, x.detach().clone(memory_format=torch.preserve_format)) for x in tensors]

    def _see(self, module: nn.Module, _: Any = None) -> None:
        if module not in self._modules:
            self._modules[module] = None
            self._keep(x for x in module._buffers.values() if x is not None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def buffers(self) -> dict[tuple[nn.Module, str], Tensor | None]:
        """The buffers of all modules seen, by module and name."""
        return {(module, name): x for module in self._modules for name, x in module._buffers.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, in place: who holds an address of it, a graph say, goes on with what it held."""
        for tensor, held in self._copies:
            tensor.copy_(held)
        self._optimizer.batch_state.update(self._numbers)
        torch.set_rng_state(self._host)
        if self._device is not None:
            torch.cuda.set_rng_state(self._device, self._optimizer.device)
            torch.cuda.current_stream(self._optimizer.device).synchronize()  # copies may be the memory of another stream
        torch.clear_autocast_cache()
