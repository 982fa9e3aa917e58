"""Embedding tables: ids are [B, ...]; ids without a batch dimension would share one gradient among the samples, and are refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops.embedding_grad_norms import OP
from ..registry import call
from ..spans import span
from .layers import Common, Grads, Layer, Saved, Wants, scaled


@dataclass(frozen=True)
class Embedding(Layer):
    entries: int
    padding_idx: int  # -1: none
    heads: list[Layer] = field(default_factory=list, compare=False)  # linear layers that are tied to it: they need its output gradient

    @classmethod
    def of(cls, ids: Tensor, table: Tensor, common: Common, padding_idx: int | None) -> Embedding:
        if ids.dim() == 0 or len(ids) != common[0]:
            raise ValueError(
                f"the ids of embedding() have shape {tuple(ids.shape)} and batch_size is {common[0]}; expected [B, ...]: what is looked up "
                "once for all samples has no gradient per sample, so expand the ids (ids.expand(B, -1)) before the lookup"
            )
        padding = -1 if padding_idx is None else padding_idx % len(table)
        return cls(*common, len(table), padding)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        assert weight is not None
        return torch.embedding(weight, x, self.padding_idx), (x,)

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        (ids,) = saved
        with span("norms"):
            norms = call(OP, self.backend, ids.reshape(self.samples, -1).contiguous().long(), self._rows(g).contiguous(), self.padding_idx)
        return Grads(norms, g if self.keeps or self.heads else None, weight=self._table(g, ids) if wants.weight else None)

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self._table(scaled(kept, c), x), None

    def _rows(self, g: Tensor) -> Tensor:
        return g.reshape(self.samples, -1, g.shape[-1])

    def _table(self, g: Tensor, ids: Tensor) -> Tensor:
        table: Tensor = torch.ops.aten.embedding_dense_backward(g, ids, self.entries, self.padding_idx, False)
        return table

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        assert weight is not None
        return (*x.shape, weight.shape[1]), weight.dtype

    def describe(self) -> str:
        return f"embedding of {self.entries}" + (f", padding_idx {self.padding_idx}" if self.padding_idx >= 0 else "")
