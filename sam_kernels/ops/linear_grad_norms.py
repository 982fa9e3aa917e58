"""linear_grad_norms: the weight gradient of a linear layer, and the squared norm of each sample's own share of it.

    P_b = sum_t g_bt a_bt^T  [p, d]      norms_b = |P_b|^2 (weight) + |sum_t g_bt|^2 (bias)      dW = sum_b P_b,  db = sum_bt g_bt

``direct`` forms P_b, squares and drops it: 2 T d p FLOPs a sample. ``gram`` never forms it: |P_b|^2 = sum_ts (a_t.a_s)(g_t.g_s) with
T (T + 1) (d + p) FLOPs (arXiv 2110.05679; T = 1: arXiv 1510.01799). Products and sums in fp32 at least: a Gram matrix cancels.
"""

from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .lists import accumulator

SCHEMA = "(Tensor a, Tensor g, str method, bool weight, bool bias, bool grads) -> (Tensor, Tensor, Tensor)"
METHODS = ("direct", "gram")


def reference(a: Tensor, g: Tensor, method: str, weight: bool, bias: bool, grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The specification: plain torch, any device and floating dtype."""
    dtype = accumulator(a.dtype)
    norms, dw, db = a.new_zeros(len(a), dtype=dtype), a.new_empty(0), a.new_empty(0)
    low, a, g = a.dtype, a.to(dtype), g.to(dtype)
    if weight and method == "gram":
        norms += ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp(min=0)  # differences of rounding may fall below
        dw = torch.einsum("btp,btd->pd", g, a).to(low) if grads else dw
    elif weight:
        products = g.mT @ a
        norms += products.square().sum((1, 2))
        dw = products.sum(0).to(low) if grads else dw
    if bias:
        norms += g.sum(1).square().sum(1)
        db = g.sum((0, 1)).to(low) if grads else db
    return norms, dw, db


def fake(a: Tensor, g: Tensor, method: str, weight: bool, bias: bool, grads: bool, backend: str = "") -> tuple[Tensor, Tensor, Tensor]:
    dw = a.new_empty((g.shape[2], a.shape[2]) if weight and grads else 0)
    return a.new_empty(len(a), dtype=accumulator(a.dtype)), dw, a.new_empty(g.shape[2] if bias and grads else 0)


OP = declare("linear_grad_norms", SCHEMA, reference, guards.linear_grad_norms, fake)


def linear_grad_norms(
    a: Tensor, g: Tensor, *, method: str = "direct", weight: bool = True, bias: bool = True, grads: bool = True, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared norms of the per-sample gradients of ``y = x W^T + b``, with the gradients themselves.

    Args:
        a: inputs ``[B, T, d]``: B samples of T positions. ``g``: gradients at the outputs ``[B, T, p]``, of the same dtype and device.
        method: ``"direct"`` or ``"gram"``; equal up to rounding, ``gram`` costs less where ``T + 1 < 2 d p / (d + p)``.
        weight, bias: which of the two parameters counts.
        grads: also return their gradients, summed over the batch.
        backend: a backend by name; by default the preferred one that is available.

    Returns:
        ``(norms [B] in fp32, or fp64 for fp64 inputs; dW [p, d]; db [p])``, the last two empty where they are not asked for.

    Raises:
        RuntimeError, ValueError: shapes, dtypes or devices that do not match, or an unknown method.
    """
    check_method(method, METHODS)
    if a.dim() != 3 or g.dim() != 3 or a.shape[:2] != g.shape[:2]:
        raise ValueError(f"a has shape {tuple(a.shape)} and g {tuple(g.shape)}; expected [B, T, d] and [B, T, p]: flatten the middle")
    result: tuple[Tensor, Tensor, Tensor] = call(OP, backend, a, g, method, weight, bias, grads)
    return result


def check_method(method: Any, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise ValueError(f"method is {method!r}; expected one of {methods}")
