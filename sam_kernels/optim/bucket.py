"""A bucket: the parameters of one dtype on one device, with the flat buffers that the library owns for them.

Stash and momentum are one allocation each; views of it carry each parameter's shape and strides. The stash exists from the first
step on and is reused; it never enters the optimizer's state. ``steps`` counts the updates of every tensor on its device, because
whether a step was skipped is known only there.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ops.lists import accumulator

T = TypeVar("T")
_ALIGN = 64  # bytes: every view starts on a cache line, and kernels keep their vector path


def flat_views(params: list[Tensor]) -> list[Tensor]:
    """Uninitialised tensors like ``params`` (shape and strides), cut from one allocation."""
    unit = max(1, _ALIGN // params[0].element_size())
    offsets = [0]
    for p in params:
        offsets.append(offsets[-1] + -(-p.numel() // unit) * unit)
    flat = torch.empty(offsets[-1], dtype=params[0].dtype, device=params[0].device)
    return [flat.as_strided(p.shape, p.stride(), offset) for p, offset in zip(params, offsets, strict=False)]


class Bucket:
    def __init__(self, params: list[Tensor], rows: list[int]) -> None:
        self.params, self.rows = params, rows
        self.device, self.dtype = params[0].device, params[0].dtype
        self.accumulator = accumulator(self.dtype)
        self.stash = flat_views(params)
        self.buffers: list[Tensor] | None = None
        self.steps = torch.zeros(len(params), dtype=torch.float32, device=self.device)
        self.sq_norm = torch.zeros(1, dtype=self.accumulator, device=self.device)
        self.gram = torch.zeros(6, dtype=self.accumulator, device=self.device)
        self.grads: list[Tensor | None] = [None] * len(params)  # first gradients, where the descent reads them
        self.perturbed: list[int] = []
        self.addresses = [p.data_ptr() for p in params]
        self.strides = [p.stride() for p in params]

    def fits(self) -> bool:
        """Whether the parameters still are where, and of the kind and layout, that the buffers were made for."""
        return all(
            p.dtype == self.dtype and p.device == self.device and p.shape == s.shape and p.stride() == s.stride()
            for p, s in zip(self.params, self.stash, strict=True)
        )

    def moved(self) -> bool:
        """Whether a parameter has changed its storage, as every cast, move and most new layouts do: the cheap question first."""
        return self.addresses != [p.data_ptr() for p in self.params]

    def momentum(self, state: dict[Tensor, dict[str, Any]], indices: list[int]) -> list[Tensor]:
        """The momentum buffers of these parameters. ``state`` is the truth: what others put there or took away is taken over."""
        if self.buffers is None:
            self.buffers = flat_views(self.params)
        elif all([state[self.params[i]].get("momentum_buffer") is self.buffers[i] for i in indices]):
            return self.pick(self.buffers, indices)
        fresh: list[int] = []
        loaded: list[int] = []
        for i in indices:
            entry, view = state[self.params[i]], self.buffers[i]
            old = entry.get("momentum_buffer")
            if old is view:
                continue
            if old is not None:
                view.copy_(old)
            (fresh if old is None else loaded).append(i)
            entry["momentum_buffer"] = view
        for changed, count in ((fresh, 0.0), (loaded, 1.0)):
            if changed:
                self.steps[torch.tensor(changed, device=self.device)] = count
        return self.pick(self.buffers, indices)

    def publish(self, state: dict[Tensor, dict[str, Any]]) -> None:
        """Make ``state`` say what torch's own optimizer would: a buffer only where an update has written it. Waits for the device."""
        if self.buffers is None:
            return
        for p, view, count in zip(self.params, self.buffers, self.steps.tolist(), strict=True):
            if not count and state.get(p, {}).get("momentum_buffer") is view:
                del state[p]

    def kept(self, indices: list[int]) -> list[Tensor]:
        """The first gradients of these parameters; one that had none then counts as zero."""
        return [torch.zeros_like(self.params[i]) if (g := self.grads[i]) is None else g for i in indices]

    def finish(self) -> None:
        """The step is over: nothing is perturbed, no first gradient is needed any more."""
        self.perturbed, self.grads = [], [None] * len(self.params)

    def pick(self, items: list[T] | None, indices: list[int]) -> list[T]:
        """The chosen entries; the list itself where all are chosen."""
        if items is None or len(indices) == len(self.params):
            return items or []
        return [items[i] for i in indices]
