"""Linear layers with any number of dimensions between batch and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.linear_grad_norms import OP
from ..registry import call
from .layers import Grads, Layer, Saved, Wants, rows_per_sample, scaled


@dataclass(frozen=True)
class Linear(Layer):
    positions: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, samples: int, x: Tensor, weight: Tensor, counts: tuple[bool, bool], backend: str | None) -> Linear:
        outputs, inputs = weight.shape
        rows = x.numel() // inputs if inputs else 0
        return cls(samples, *counts, backend, rows_per_sample(x, rows, samples, "the input of linear()"), inputs, outputs)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        assert weight is not None
        return F.linear(x, weight, bias), (x, weight)

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        x, weight = saved
        grads = wants.weight or wants.bias
        norms, dw, db = call(OP, self.backend, *self._matrices(x, g), self.method, self.weight, self.bias, grads)
        return Grads(norms, g, g @ weight if wants.x else None, dw if wants.weight else None, db if wants.bias else None)

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, g = self._matrices(x, kept)
        db = (g.sum(1, dtype=c.dtype) * c[:, None]).sum(0) if self.bias else None
        if not self.weight:
            return None, db
        a, g = (scaled(a, c), g) if self.inputs < self.outputs else (a, scaled(g, c))  # the smaller one is copied
        return g.reshape(-1, self.outputs).t() @ a.reshape(-1, self.inputs), db

    def _matrices(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return x.reshape(self.samples, self.positions, self.inputs), g.reshape(self.samples, self.positions, self.outputs)

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        return (*x.shape[:-1], self.outputs), x.dtype

    def costs(self) -> dict[str, float]:
        t, d, p = self.positions, self.inputs, self.outputs
        return {"gram": t * (t + 1) * (d + p), "direct": 2 * t * d * p}

    def describe(self) -> str:
        return f"linear {self.inputs} -> {self.outputs}, {self.positions} positions"
