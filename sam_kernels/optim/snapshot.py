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

SEEN = ("sample_norms", "sample_weights", "sample_indices", "_norms", "_first_scale")  # what a step leaves on the optimizer
Buffers = dict[tuple[nn.Module, str], Tensor | None]


class Snapshot:
    """Weights, gradients and state of ``optimizer``, the buffers of its ``model`` and of every module that runs inside of ``watching()``,
    and torch's generators. Holds as much memory as those, gradients aside."""

    def __init__(self, optimizer: SAM) -> None:
        self._optimizer = optimizer
        self._copies: list[tuple[Tensor, Tensor]] = []  # a tensor, and what it held
        self.modules: dict[nn.Module, None] = {}
        self._buffers: Buffers = {}
        self._outside: list[tuple[str, Tensor, Tensor | None, int]] = []  # parameters of others: their gradient and its version
        optimizer._refresh_buckets()
        optimizer._follow_parameters()
        self._keep(optimizer.members())
        self._grads = [p.grad for p in optimizer.members()]
        for bucket in optimizer._get_buckets():
            bucket.state.follow(optimizer.state)  # what has been put there since the last step; what comes later was never written
            self._keep([bucket.state.steps, *(x for row in bucket.state.buffers.values() for x in row)])
        self._keep(x for x in optimizer.batch_state.values() if isinstance(x, Tensor))
        self._numbers = {key: x for key, x in optimizer.batch_state.items() if not isinstance(x, Tensor)}
        self._seen = {name: getattr(optimizer, name) for name in SEEN}
        for module in optimizer.model.modules() if optimizer.model is not None else ():
            self._see(module)
        self._host = torch.get_rng_state()
        self._device = torch.cuda.get_rng_state(optimizer.device) if optimizer.device.type == "cuda" else None

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        self._copies += [(x, x.detach().clone(memory_format=torch.preserve_format)) for x in tensors]

    def _see(self, module: nn.Module, _: Any = None) -> None:
        if module in self.modules:
            return
        self.modules[module] = None
        self._buffers |= {(module, name): x for name, x in module._buffers.items()}
        self._keep(x for x in module._buffers.values() if x is not None)
        members = set(map(id, self._optimizer.members()))
        for name, p in module._parameters.items():
            if p is not None and id(p) not in members:
                self._outside.append((f"{name} of {type(module).__name__}", p, p.grad, -1 if p.grad is None else p.grad._version))

    @contextmanager
    def watching(self) -> Iterator[None]:
        handle = register_module_forward_pre_hook(self._see)
        try:
            yield
        finally:
            handle.remove()

    def buffers(self) -> Buffers:
        """The buffers of all modules seen, by module and name."""
        return {(module, name): x for module in self.modules for name, x in module._buffers.items()}

    def outside_gradients(self) -> list[str]:
        """Parameters that are not the optimizer's, and have got a gradient since."""
        now = [(name, p.grad, grad, version) for name, p, grad, version in self._outside if p.grad is not None]
        return [name for name, new, grad, version in now if new is not grad or new._version != version]

    @torch.no_grad()
    def restore(self, failed: bool = False) -> None:
        """Put everything back, in place: who holds an address of it, a graph say, goes on with what it held. ``failed``: there will be no
        graph, and buffers that were replaced are put back as well."""
        for (module, name), x in self._buffers.items() if failed else ():
            if x is not None:
                module._buffers[name] = x
        for tensor, held in self._copies:
            tensor.copy_(held)
        for p, grad in zip(self._optimizer.members(), self._grads, strict=True):
            p.grad = grad
        self._optimizer.batch_state.update(self._numbers)
        for name, value in self._seen.items():
            setattr(self._optimizer, name, value)
        self._optimizer._publish()  # no entries for a state that nothing has written
        torch.set_rng_state(self._host)
        if self._device is not None:
            torch.cuda.set_rng_state(self._device, self._optimizer.device)
            torch.cuda.current_stream(self._optimizer.device).synchronize()  # copies may be the memory of another stream
        torch.clear_autocast_cache()
