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

    def fits(self) -> bool:
        """Whether the parameters still are where, and of the kind and layout, that the buffers were made for."""
        return all(
            p.dtype == self.dtype and p.device == self.device and p.shape == s.shape and p.stride() == s.stride()
            for p, s in zip(self.params, self.stash, strict=True)
        )

    def momentum(self, state: dict[Tensor, dict[str, Any]]) -> list[Tensor]:
        """The momentum buffers, created on first need from what ``state`` holds and put there as views."""
        if self.buffers is None:
            self.buffers = flat_views(self.params)
            loaded = []
            for p, view in zip(self.params, self.buffers, strict=True):
                old = state[p].get("momentum_buffer")
                view.zero_() if old is None else view.copy_(old)
                loaded.append(float(old is not None))
                state[p]["momentum_buffer"] = view
            self.steps.copy_(torch.tensor(loaded))
        return self.buffers

    def publish(self, state: dict[Tensor, dict[str, Any]]) -> None:
        """Make ``state`` say what torch's own optimizer would: a buffer only where an update has written it. Waits for the device."""
        if self.buffers is None:
            return
        for p, view, count in zip(self.params, self.buffers, self.steps.tolist(), strict=True):
            if count:
                state[p]["momentum_buffer"] = view
            else:
                state.pop(p, None)

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
