"""Convolutions in 1 to 3 dimensions: groups, stride, dilation, any padding."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.conv_grad_norms import OP, weight_grad
from ..ops.sample_grads import conv_sample_grads
from ..registry import call
from ..spans import span
from .layers import Common, Grads, Layer, Saved, Wants, direct_cost, empty_keeper, may_keep, row_norms, rows_per_sample, scaled, split

_ADD = 32  # FLOPs of a matrix product that take as long as one of pixel_gram's shifted additions
Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv(Layer):
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int
    kernel: Ints
    channels: tuple[int, int]
    size: Ints  # padded
    out: Ints
    images: int  # of each sample
    small: bool  # a sample's gradient is, beside its inputs and output gradients
    cpu: bool  # has a kernel for the Gram matrix of pixels, and a direct method that leaves the weight gradient behind

    @classmethod
    def of(
        cls, x: Tensor, weight: Tensor, common: Common, stride: int | Ints, padding: int | Ints, dilation: int | Ints, groups: int,
    ) -> Conv:  # fmt: skip
        dims = weight.dim() - 2
        if x.dim() != weight.dim():
            raise ValueError(f"the input of conv{dims}d() has shape {tuple(x.shape)}; expected [N, C, *spatial]: add a batch dimension")
        images = rows_per_sample(x, len(x), common[0], f"the input of conv{dims}d()")
        stride, padding, dilation = (per_dimension(value, dims) for value in (stride, padding, dilation))
        kernel = tuple(weight.shape[2:])
        size = tuple(n + 2 * pad for n, pad in zip(x.shape[2:], padding, strict=True))
        out = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))
        channels = (weight.shape[1] * groups, weight.shape[0])
        small = images == 1 and may_keep(x, weight.numel(), x[0].numel() + channels[1] * prod(out))
        return cls(*common, stride, padding, dilation, groups, kernel, channels, size, out, images, small, not x.is_cuda)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        assert weight is not None
        return torch.ops.aten.convolution(x, weight, bias, *self._geometry()), (x, weight)

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        x, _ = saved
        if self.method == "keep":
            rows = conv_sample_grads(self._padded(x), g, self.kernel, self.stride, self.dilation, self.groups, self.bias)
            return Grads(row_norms(rows, self.backend), rows, self._gradients(g, saved, Wants(wants.x, False, False))[0])
        direct = self.method == "direct"  # leaves the weight gradient behind; else torch's kernel makes all of them
        grads = direct and (wants.weight or wants.bias)
        geometry = (self.kernel, self.stride, self.dilation, self.groups)
        with span("norms"):
            norms, dw, db = call(OP, self.backend, self._padded(x), g, self.samples, *geometry, self.method, self.weight, self.bias, grads)
        dx, *others = self._gradients(g, saved, Wants(wants.x, False, False) if direct else wants)
        dw, db = (dw, db) if direct else others
        return Grads(norms, g, dx, dw if wants.weight else None, db if wants.bias else None)

    def _gradients(self, g: Tensor, saved: Saved, wants: Wants) -> tuple[Tensor | None, ...]:
        if not (wants.x or wants.weight or wants.bias):
            return None, None, None
        mask = (wants.x, wants.weight, wants.bias)
        found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(g, *saved, [self.channels[1]], *self._geometry(), mask)
        return found

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.method == "keep":
            return split(c @ kept, prod(self.kernel) * self.channels[0] // self.groups * self.channels[1], self.bias)
        c = c.repeat_interleave(self.images) if self.images > 1 else c
        db = (kept.flatten(2).sum(2, dtype=c.dtype) * c[:, None]).sum(0) if self.bias else None
        if not self.weight:
            return None, db
        x, g = (scaled(x, c), kept) if x.numel() < kept.numel() else (x, scaled(kept, c))
        return weight_grad(self._padded(x), g, self.kernel, self.stride, self.dilation, self.groups), db

    def _geometry(self) -> tuple[object, ...]:
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, [pad for pad in reversed(self.padding) for _ in range(2)]) if any(self.padding) else x

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        return (len(x), self.channels[1], *self.out), x.dtype

    def costs(self) -> dict[str, float]:
        t, taps, pixels = prod(self.out), prod(self.kernel), prod(self.size)
        c, p = self.channels[0] // self.groups, self.channels[1] // self.groups
        product = 2.0 * t * c * taps * p * self.images
        found = {"direct": direct_cost(product, c * taps * p, self.cpu and not self.keeps)}
        if self.images == 1:
            found["gram"] = t * (t + 1) * (c * taps + p) + product
            pixel_gram = pixels * (pixels + 1) * c + t * (t + 1) * (p + taps * _ADD / 2) + product
            found |= {"pixel_gram": pixel_gram} if self.cpu else {}
        if self.keeps and self.weight and self.small:
            found["keep"] = product + 2 * c * taps * p
        return {name: cost * self.groups for name, cost in found.items()}

    def keeper(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.method != "keep" or weight is None:
            return super().keeper(x, weight)
        return empty_keeper((self.samples, weight.numel() + self.bias * self.channels[1]), x.dtype, x.device)

    def describe(self) -> str:
        kernel, size = ("x".join(map(str, x)) for x in (self.kernel, self.out))
        return f"conv {kernel} {self.channels[0]} -> {self.channels[1]}, groups {self.groups}, {size} outputs"


def per_dimension(value: int | Ints, dims: int) -> Ints:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)
