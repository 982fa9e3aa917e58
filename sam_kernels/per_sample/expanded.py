"""Parameters of the shape of one sample that are expanded over the batch: class tokens, learned positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.lists import accumulator
from ..spans import span
from .layers import Common, Grads, Layer, Saved, Wants

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Expanded(Layer):
    parameter: Shape
    shape: Shape  # of the output, batch first

    @classmethod
    def of(cls, weight: Tensor, common: Common, sizes: Shape) -> Expanded:
        parameter = (1,) * (len(sizes) - weight.dim()) + tuple(weight.shape)
        shape = tuple(own if size == -1 else size for own, size in zip(parameter, sizes, strict=True))
        if not shape or parameter[0] != 1 or shape[0] != common[0]:
            raise ValueError(
                f"expand() of {tuple(weight.shape)} to {tuple(sizes)} with batch_size {common[0]}; expected the batch as the first "
                "dimension that it adds: p.expand(B, ...), of a parameter that has one sample's shape"
            )
        return cls(*common, parameter, shape)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        assert weight is not None
        return weight.expand(self.shape), ()

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        rows = self._rows(g)
        with span("norms"):
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=accumulator(g.dtype)).square()
        return Grads(norms, g, weight=rows.sum(0) if wants.weight else None)

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return c @ self._rows(kept).to(c.dtype), None

    def _rows(self, g: Tensor) -> Tensor:
        """Each sample's gradient of the parameter, flat."""
        among = [k for k in range(1, len(self.shape)) if self.parameter[k] == 1 != self.shape[k]]
        return (g.sum(among) if among else g).reshape(self.samples, -1)

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[Shape, torch.dtype]:
        assert weight is not None
        return self.shape, weight.dtype

    @property
    def uses_x(self) -> bool:
        return False

    def describe(self) -> str:
        return f"{'x'.join(map(str, self.parameter))} expanded over the batch"
