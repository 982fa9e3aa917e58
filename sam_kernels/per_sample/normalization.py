"""LayerNorm, RMSNorm, GroupNorm, InstanceNorm, and the scale and shift of BatchNorm: the affine part of normalization layers.

All are one layer over x viewed as [N, G, D, S] (see ``ops.normalization_grads``); they differ in their statistics. What is kept for
weighting is each sample's two rows, not the output gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.lists import accumulator
from ..ops.normalization_grads import OP
from ..registry import call
from ..spans import span
from .layers import Common, Grads, Layer, Saved, Wants, empty_keeper, rows_per_sample

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Normalization(Layer):
    kind: str  # "layer", "rms", "group" or "affine": scale and shift alone, of what is normalized already
    shape: Shape
    eps: float

    @classmethod
    def over_features(cls, kind: str, x: Tensor, width: int, common: Common, eps: float) -> Normalization:
        rows = x.numel() // width if width else 0
        rows_per_sample(x, rows, common[0], f"the input of {kind}_norm()")
        return cls(*common, kind, (rows, 1, width, 1), eps)

    @classmethod
    def over_channels(cls, kind: str, x: Tensor, groups: int, common: Common, eps: float) -> Normalization:
        n, channels = x.shape[:2]
        rows_per_sample(x, n, common[0], f"the input of {kind}_norm()")
        positions = x.numel() // (n * channels) if n * channels else 0
        return cls(*common, kind, (n, groups, channels // groups, positions), eps)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        n, groups, depth, positions = self.shape
        empty = x.new_empty(0, dtype=accumulator(x.dtype))
        features = list(weight.shape if weight is not None else bias.shape if bias is not None else ())
        mean, rstd = empty, empty
        if self.kind == "layer":
            y, mean, rstd = torch.native_layer_norm(x, features, weight, bias, self.eps)
        elif self.kind == "rms":
            y, rstd = torch.ops.aten._fused_rms_norm(x, features, weight, self.eps)
        elif self.kind == "group":
            x = x.contiguous()
            y, mean, rstd = torch.native_group_norm(x, weight, bias, n, groups * depth, positions, groups, self.eps)
        else:
            y = x if weight is None else x * weight.view(-1, *[1] * (x.dim() - 2)).to(x.dtype)
            y = y if bias is None else y + bias.view(-1, *[1] * (x.dim() - 2)).to(x.dtype)
        if self.kind != "affine" and rstd.dtype != empty.dtype:  # torch keeps statistics of halves in halves on the CPU
            mean, rstd = self._statistics(x.to(empty.dtype).reshape(self.shape), empty)
        scale = empty if weight is None else weight.reshape(-1)
        return y, (x, mean.reshape(-1), rstd.reshape(-1), scale)

    def _statistics(self, x: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "rms":
            return empty, torch.rsqrt(x.square().mean((2, 3)) + self.eps)
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        return mean, torch.rsqrt(variance + self.eps)

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        x, mean, rstd, scale = saved
        n, groups, _, _ = self.shape
        coupled = self.kind != "affine"
        rstd = rstd.view(n, groups) if coupled else torch.ones(n, groups, dtype=accumulator(x.dtype), device=x.device)
        mean = mean.view(n, groups) if mean.numel() else mean
        scale = scale if scale.dtype == x.dtype else scale.to(rstd.dtype)
        g, plain = (t.to(x.dtype).reshape(self.shape).contiguous() for t in (g, x))
        dx, rows = call(OP, self.backend, g, plain, mean, rstd, scale if scale.numel() else None, self.samples, coupled)
        with span("norms"):
            norms = rows[:, 0 if self.weight else 1 : 2 if self.bias else 1].square().sum((1, 2))
        sums = rows.sum(0) if wants.weight or wants.bias else rows
        return Grads(norms, rows, dx.view(x.shape) if wants.x else None, sums[0] if wants.weight else None, sums[1] if wants.bias else None)

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        return tuple(x.shape), x.dtype

    def keeper(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return empty_keeper((self.samples, 2, self.shape[1] * self.shape[2]), accumulator(x.dtype), x.device)

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        sums = (kept * c[:, None, None]).sum(0)
        return sums[0] if self.weight else None, sums[1] if self.bias else None

    @property
    def uses_x(self) -> bool:
        return False

    def describe(self) -> str:
        n, groups, depth, positions = self.shape
        return f"{self.kind} norm, {n // self.samples} x {groups} x {depth} x {positions} of a sample"
