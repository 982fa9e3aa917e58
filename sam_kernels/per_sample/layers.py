"""A layer inside of the backward pass: one autograd function for all of them, and what each kind has to say.

The function takes two tensors more than the layer does, whose gradients are what is to be known: the ``sink`` ``[B]`` receives the
squared norms of the samples' own gradients, the ``keeper`` what is needed to weight the samples afterwards. A keeper holds no memory (one
zero, expanded), and its gradient is the output gradient itself, not a copy. No hook, no list that a backward writes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.linear_grad_norms import OP as LINEAR
from ..ops.lists import accumulator
from ..registry import call
from ..spans import carried, listener, spanned

Saved = tuple[Tensor, ...]
Operand = TypeVar("Operand", Tensor, Tensor | None)
Common = tuple[int, bool, bool, str | None, bool, str | None]  # the first fields of a layer


@dataclass(frozen=True)
class Wants:
    """Which gradients a backward is asked for."""

    x: bool
    weight: bool
    bias: bool


@dataclass
class Grads:
    norms: Tensor  # [B], squared
    kept: Tensor | None  # the gradient of the keeper
    x: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """One call of one layer: its geometry, and which of its parameters count. Kinds of layers override all methods."""

    samples: int
    weight: bool
    bias: bool
    backend: str | None
    keeps: bool  # the weighted form: what ``weighted`` needs is kept, and no gradient is asked for in the backward
    asked: str | None  # the method, where there is a choice

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Saved]:
        """The output, and what ``backward`` needs."""
        raise NotImplementedError

    def backward(self, g: Tensor, saved: Saved, wants: Wants) -> Grads:
        raise NotImplementedError

    def output(self, x: Tensor, weight: Tensor | None) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the output."""
        raise NotImplementedError

    def keeper(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """A tensor whose gradient ``weighted`` is given: by default the output gradient."""
        return empty_keeper(*self.output(x, weight), x.device)

    def wide(self, x: Tensor, weight: Tensor | None) -> torch.dtype:
        """The dtype of norms."""
        return accumulator(self.output(x, weight)[1])

    def weighted(self, kept: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``sum_b c_b`` times the gradients of sample b, of weight and bias, in any shape of their size; None for what does
        not count."""
        raise NotImplementedError

    @property
    def uses_x(self) -> bool:
        """Whether ``weighted`` needs the input."""
        return self.method != "keep"

    def costs(self) -> dict[str, float]:
        """FLOPs for one sample by method, those of the weight gradient included; empty where there is no choice."""
        return {}

    @cached_property
    def method(self) -> str:
        """The one that was asked for, else the cheapest."""
        costs = self.costs()
        if self.asked in costs:
            return self.asked
        return min(costs, key=lambda name: costs[name]) if costs else "sums"

    def describe(self) -> str:
        raise NotImplementedError


def empty_keeper(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device).expand(shape).requires_grad_()


def plainly(function: Callable[..., Any], device_type: str, *arguments: Any) -> Any:
    """Without autocast, and unseen by the mode that is active in the backward as well, at several microseconds for each operation."""
    with torch._C.DisableTorchFunction():
        if not torch.is_autocast_enabled(device_type):
            return function(*arguments)
        with torch.autocast(device_type, enabled=False):
            return function(*arguments)


class Instrumented(torch.autograd.Function):
    """``layer`` with a sink and, in the weighted form, a keeper."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, x: Tensor, weight: Tensor | None, bias: Tensor | None, sink: Tensor, keeper: Tensor | None
    ) -> Tensor:
        ctx.layer, ctx.device_type, ctx.listener = layer, x.device.type, listener()
        y, saved = plainly(layer.forward, ctx.device_type, x, weight, bias)
        ctx.save_for_backward(*saved)
        ctx.shapes = tuple(None if p is None else p.shape for p in (weight, bias))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        if getattr(ctx, "done", False):
            raise RuntimeError("a second backward through one forward: norms of two gradients would add up; run the forward again")
        ctx.done = True
        _, x, weight, bias, _, keeper = ctx.needs_input_grad
        with carried(ctx.listener):
            grads = plainly(ctx.layer.backward, ctx.device_type, g, ctx.saved_tensors, Wants(x, weight, bias))
        dw, db = (d if d is None else d.view(shape) for d, shape in zip((grads.weight, grads.bias), ctx.shapes, strict=True))
        return None, grads.x, dw, db, grads.norms, grads.kept if keeper else None


@spanned("norms")
def row_norms(rows: Tensor, backend: str | None) -> Tensor:
    """Squared norms of the rows: those of a linear layer with one position and a gradient of one."""
    ones = rows.new_ones(len(rows), 1, 1)
    norms: Tensor = call(LINEAR, backend, rows[:, None], ones, "gram", True, False, False)[0]
    return norms


def split(row: Tensor, weights: int, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias gradient out of one row."""
    return row[:weights], row[weights:] if bias else None


def may_keep(x: Tensor, products: int, operands: int) -> bool:
    """Whether each sample's gradient of ``products`` elements may stand in for the ``operands`` elements that it is made of."""
    return products <= _MOST * operands and x.dtype == accumulator(x.dtype)


def direct_cost(product: float, elements: int, by_product: bool) -> float:
    """Of norms by the products themselves, which on the CPU are added up to the weight gradient unless that is weighted: then what
    remains is to read each of their ``elements`` again, in cache, and else to make the gradient once more."""
    return product + (_READ * elements if by_product else product)


_MOST = 2
_READ = 64  # FLOPs of a matrix product that take as long as squaring and adding one element


def rows_per_sample(x: Tensor, rows: int, samples: int, what: str) -> int:
    """``rows / samples`` rows belong to each sample, one sample after the other; an error where that cannot be."""
    if samples < 1 or rows % samples or (x.dim() > 1 and x.shape[0] % samples):
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}, whose first dimension is not a multiple of batch_size={samples}; expected the samples one "
            "after the other along the first dimension: pass the batch size of this forward, or put the batch first"
        )
    return rows // samples


def cast(x: Operand, dtype: torch.dtype) -> Operand:
    """As autocast would, which leaves fp64 alone; outside of the function, so that autograd casts the gradient back."""
    return x if x is None or not x.is_floating_point() or x.dtype in (dtype, torch.float64) else x.to(dtype)


def scaled(x: Tensor, c: Tensor) -> Tensor:
    """x with sample b times ``c_b``, rounded once."""
    return (x * c.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)
