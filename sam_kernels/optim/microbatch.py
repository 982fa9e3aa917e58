"""m-SAM (arXiv 2212.04343, 2302.09693): every shard of the batch perturbs the weights by its own gradient, and the update is the average of
what they then see.

    e_s = rho g_s / |g_s|,   g_s = grad L_s(w);   h = sum_s share_s grad L_s(w + e_s),   share_s = samples of shard s / samples

A descent rule that looks at the first gradient sees ``sum_s share_s g_s``, the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batches import Losses, OfLosses, Turn, is_count, mean_backward

if TYPE_CHECKING:
    from .sam import SAM


@dataclass(frozen=True)
class MicroBatch(OfLosses):
    """The batch rule of m-SAM: shards of ``shard_size`` samples, the last one smaller, or ``shards`` of nearly equal size."""

    shard_size: int | None = None
    shards: int | None = None

    def __post_init__(self) -> None:
        if (self.shard_size is None) == (self.shards is None):
            raise ValueError(
                f"shard_size is {self.shard_size!r} and shards is {self.shards!r}; expected one of them: samples per shard, or how many"
            )
        for name, value in (("shard_size", self.shard_size), ("shards", self.shards)):
            if value is not None and not is_count(value):
                raise ValueError(f"{name} is {value!r}; expected an int >= 1")

    def turns_of(self, optimizer: SAM, losses: Losses, size: int, ids: Tensor | None) -> Sequence[Turn]:
        if self.shards is not None and self.shards > size:
            raise ValueError(f"shards is {self.shards} for batch_size {size}, which leaves a shard empty; expected at most one per sample")
        positions = torch.arange(size, device=optimizer.device)
        parts = positions.split(self.shard_size) if self.shard_size is not None else positions.tensor_split(self.shards or 1)

        def turn(index: Tensor | None, share: float) -> Turn:
            return Turn(lambda: mean_backward(losses, size, index).mean(), lambda: mean_backward(losses, size, index), share)

        return [turn(part, len(part) / size) for part in parts] if len(parts) > 1 else [turn(None, 1.0)]
