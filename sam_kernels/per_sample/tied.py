"""A linear layer whose weight is the table of an embedding: a head that is tied to its words.

The norm of the sum of two gradients needs their product: with e_t the gradient at what was looked up for id_t, and P_b the gradient of the
linear layer for sample b, it is <E_b, P_b> = sum_t e_t . P_b[id_t]. The rows P_b[id_t] = sum_s g_s[id_t] a_s are made of what the linear
layer has in its backward, without P_b; the embedding keeps e_t, and the product is taken when norms are read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ops.lists import accumulator
from ..spans import span
from .embedding import Embedding
from .layers import Grads, Saved, Wants, empty_keeper
from .linear import Linear


@dataclass(frozen=True, eq=False)
class TiedLinear(Linear):
    ids: Tensor  # [B, T], where the embedding has looked
    padding_idx: int  # -1: none

    @classmethod
    def to(cls, embedding: Embedding, ids: Tensor, linear: Linear) -> TiedLinear:
        own = {field.name: getattr(linear, field.name) for field in fields(linear)}
        tied = cls(**own, ids=ids.reshape(embedding.samples, -1).long(), padding_idx=embedding.padding_idx)
        embedding.heads.append(tied)
        return tied

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        grads = super().backward(g, saved, wants)
        if not self.keeps:
            grads.kept = self.rows(g, saved[0])
        return grads

    @torch.no_grad()
    def rows(self, g: Tensor, x: Tensor) -> Tensor:
        """``[B, T, inputs]``: of each sample's weight gradient the rows of its ids."""
        a, g = self._matrices(x, g)
        dtype = accumulator(g.dtype)
        with span("norms"), torch.autocast(g.device.type, enabled=False):
            at_ids = g.gather(2, self.ids[:, None].expand(-1, g.shape[1], -1))  # [B, positions, T]
            rows = at_ids.mT.to(dtype) @ a.to(dtype)
            return rows.masked_fill_((self.ids == self.padding_idx)[..., None], 0)

    def product(self, kept: Tensor, x: Tensor, looked_up: Tensor) -> Tensor:
        """``[B]``: of each sample's two gradients; ``looked_up`` is that of the embedding's output."""
        rows = self.rows(kept, x) if self.keeps else kept
        return (rows * looked_up.reshape(rows.shape)).sum((1, 2))

    def keeper(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.keeps:
            return super().keeper(x, weight)
        return empty_keeper((*self.ids.shape, self.inputs), accumulator(x.dtype), x.device)

    def _may_keep(self) -> bool:
        return False

    def describe(self) -> str:
        return f"{super().describe()}, tied to an embedding"
