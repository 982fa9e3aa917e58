"""What the turns of one step add up to, where there are several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..spans import spanned
from . import engine

if TYPE_CHECKING:
    from .bucket import Bucket
    from .sam import SAM


class Shards:
    """Averages over the shards: second gradients in ``.grad``, squared norms of the first ones, and the first ones themselves where the
    descent sees them: its ``g`` is then that of the whole batch."""

    def __init__(self, optimizer: SAM) -> None:
        self._backend, self.sees_g = optimizer.backend, optimizer.descent.sees_g(optimizer.max_norm)
        self._params = optimizer.members()
        self._h: list[Tensor | None] = [None] * len(self._params)
        self._g: dict[Bucket, list[Tensor | None]] = {}
        self._norms: list[Tensor] = []  # of the step as a whole: sq_norm, |g|^2

    @spanned("average")
    def ascended(self, buckets: list[Bucket], share: float) -> None:
        """After an ascent: what it has left, times ``share``; ``.grad`` is then what the second gradients have added up to."""
        perturbed = [bucket for bucket in buckets if bucket.perturbed]
        if perturbed:
            found = [share * perturbed[0].sq_norm, share * perturbed[0].gram[:1]]
            self._norms = [a + b.to(a) for a, b in zip(found, self._norms or map(torch.zeros_like, found), strict=True)]
        for bucket in perturbed if self.sees_g else ():
            sums = self._g.setdefault(bucket, [None] * len(bucket.params))
            for i, g in enumerate(bucket.grads):
                if g is not None:
                    sums[i] = g.mul_(share) if sums[i] is None else sums[i].add_(g, alpha=share)  # type: ignore[union-attr]
        for p, h in zip(self._params, self._h, strict=True):
            p.grad = h

    def descended(self) -> None:
        """After a second pass, which has added its gradients to ``.grad``."""
        self._h = [p.grad for p in self._params]

    @spanned("average")
    def settle(self, buckets: list[Bucket]) -> None:
        """Before the update: norms and first gradients of the buckets are those of the step."""
        perturbed = [bucket for bucket in buckets if bucket.perturbed]
        for bucket in perturbed:
            for norm, share in zip((bucket.sq_norm, bucket.gram[:1]), self._norms, strict=True):
                norm.copy_(share)
        if self.sees_g:
            for bucket in perturbed:
                bucket.grads = self._g[bucket]
            engine.first_norm(perturbed, self._backend)
