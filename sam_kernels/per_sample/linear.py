"""Linear layers with any number of dimensions between batch and features."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.linear_grad_norms import OP
from ..ops.sample_grads import linear_sample_grads
from ..registry import call
from ..spans import span
from .layers import Common, Grads, Layer, Saved, Wants, direct_cost, empty_keeper, may_keep, row_norms, rows_per_sample, scaled, split


@dataclass(frozen=True)
class Linear(Layer):
    positions: int
    inputs: int
    outputs: int
    small: bool  # a sample's gradient is, beside its inputs and output gradients
    cpu: bool  # has a direct method that leaves the weight gradient behind

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, common: Common) -> Linear:
        outputs, inputs = weight.shape
        rows = prod(x.shape[:-1])
        positions = rows_per_sample(x, rows, common[0], "the input of linear()")
        small = may_keep(x, inputs * outputs, positions * (inputs + outputs))
        return cls(*common, positions, inputs, outputs, small, not x.is_cuda)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        assert weight is not None
        return F.linear(x, weight, bias), (x, weight)

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        x, weight = saved
        if self.method == "keep":
            rows = linear_sample_grads(*self._matrices(x, g), self.bias)
            return Grads(row_norms(rows, self.backend), rows, g @ weight if wants.x else None)
        grads = wants.weight or wants.bias
        with span("norms"):
            norms, dw, db = call(OP, self.backend, *self._matrices(x, g), self.method, self.weight, self.bias, grads)
        return Grads(norms, g, g @ weight if wants.x else None, dw if wants.weight else None, db if wants.bias else None)

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.method == "keep":
            return split(c @ kept, self.inputs * self.outputs, self.bias)
        a, g = self._matrices(x, kept)
        db = (g.sum(1, dtype=c.dtype) * c[:, None]).sum(0) if self.bias else None
        if not self.weight:
            return None, db
        a, g = (scaled(a, c), g) if self.inputs < self.outputs else (a, scaled(g, c))  # the smaller one is copied
        return g.flatten(0, 1).t() @ a.flatten(0, 1), db

    def _matrices(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(self.samples, self.positions, self.inputs), g.reshape(self.samples, self.positions, self.outputs)

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        return (*x.shape[:-1], self.outputs), x.dtype

    def costs(self) -> dict[str, float]:
        t, d, p = self.positions, self.inputs, self.outputs
        product = 2.0 * t * d * p
        found = {"gram": t * (t + 1) * (d + p) + product, "direct": direct_cost(product, d * p, self.cpu and not self.keeps)}
        return found | ({"keep": product + 2 * d * p} if self._may_keep() else {})

    def _may_keep(self) -> bool:
        return self.keeps and self.weight and self.small

    def keeper(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.method != "keep":
            return super().keeper(x, weight)
        return empty_keeper((self.samples, self.outputs * (self.inputs + self.bias)), x.dtype, x.device)

    def describe(self) -> str:
        return f"linear {self.inputs} -> {self.outputs}, {self.positions} positions"
