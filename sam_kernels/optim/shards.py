"""What the turns of one step add up to, where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.lists import accumulator
from ..spans import spanned
from . import engine

if TYPE_CHECKING:
    from .bucket import Bucket
    from .sam import SAM


class Shards:
    """Averages over the shards: their second gradients, the squared norms of their first ones, and these themselves where the descent
    sees them: its ``g`` is then that of the whole batch. Sums of halves are kept in fp32."""

    def __init__(self, optimizer: SAM) -> None:
        self._backend, self.sees_g = optimizer.backend, optimizer.descent.sees_g(optimizer.max_norm)
        self._params = optimizer.members()
        self._h: list[Tensor | None] = [None] * len(self._params)
        self._g: dict[Bucket, list[Tensor | None]] = {}
        self._perturbed: dict[Bucket, set[int]] = {}  # parameters that some shard has perturbed: their stash holds clean weights
        self._norms: list[Tensor] = []  # sq_norm and |g|^2, share by share

    @spanned("average")
    def ascended(self, buckets: Sequence[Bucket], share: float) -> None:
        """After an ascent: what it has left in the buckets, times ``share``."""
        here = [bucket for bucket in buckets if bucket.perturbed]
        if here:
            found = [share * here[0].sq_norm, share * here[0].gram[:1]]
            self._norms = [a + b.to(a) for a, b in zip(found, self._norms or map(torch.zeros_like, found), strict=True)]
        for bucket in here:
            assert bucket.perturbed is not None
            self._perturbed.setdefault(bucket, set()).update(bucket.perturbed.indices)
            if self.sees_g:
                add(self._g.setdefault(bucket, [None] * len(bucket.params)), bucket.grads, share)

    @spanned("average")
    def descended(self, share: float) -> None:
        """After a second pass: take its gradients."""
        add(self._h, [p.grad for p in self._params], share)

    @spanned("average")
    def settle(self) -> bool:
        """Before the update: ``.grad``, and norms and first gradients of the buckets, are those of the step. Whether any shard ascended."""
        for p, h in zip(self._params, self._h, strict=True):
            p.grad = None if h is None else h.to(p.dtype)
        for bucket, indices in self._perturbed.items():
            bucket.perturbed = bucket.part(tuple(sorted(indices)))
            for norm, share in zip((bucket.sq_norm, bucket.gram[:1]), self._norms, strict=True):
                norm.copy_(share)
            if self.sees_g:
                bucket.grads = [None if g is None else g.to(bucket.dtype) for g in self._g[bucket]]
        if self.sees_g and self._perturbed:
            engine.first_norm(list(self._perturbed), self._backend)
        return bool(self._perturbed)


def add(sums: list[Tensor | None], grads: Sequence[Tensor | None], share: float) -> None:
    """Add ``share`` of every gradient, in the accumulation dtype and in memory that nobody else writes."""
    found = [(i, held, grad) for i, (held, grad) in enumerate(zip(sums, grads, strict=True)) if grad is not None]
    if known := [(held, grad) for _, held, grad in found if held is not None]:
        torch._foreach_add_([held for held, _ in known], [grad for _, grad in known], alpha=share)
    for i, _, grad in (item for item in found if item[1] is None):
        sums[i] = share * grad.to(accumulator(grad.dtype))
