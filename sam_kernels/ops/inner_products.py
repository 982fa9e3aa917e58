"""inner_products: entries of the Gram matrix of up to three lists of tensors, over the concatenation of each list.

    out = (g.g, g.h, h.h, g.q, h.q, q.q),   x.y = sum_j c_j^2 x_j y_j,   c = 1, or |w| + eta where ``weights`` w is given

Reads every operand once (4 bytes per element and list in fp32), writes six scalars. Accumulates in fp32 (fp64 for fp64) and
combines the partial sums of fixed chunks in a fixed order: equal inputs give equal bits, whatever the number of threads.
Differentiable with respect to g, h and q.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .lists import accumulator, check_lists

SCHEMA = "(Tensor[] g, Tensor[] h, Tensor[] q, Tensor[] weights, float eta) -> Tensor"
_PAIRS = ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))  # GRAM in terms of (g, h, q)


def reference(g: list[Tensor], h: list[Tensor], q: list[Tensor], weights: list[Tensor], eta: float) -> Tensor:
    """The specification: plain torch, any device and floating dtype."""
    lists = (g, h, q)
    like = next((x[0] for x in lists if x), None)
    dtype = accumulator(like.dtype) if like is not None else torch.float32
    out = torch.zeros(6, dtype=dtype, device=like.device if like is not None else None)
    for k, (i, j) in enumerate(_PAIRS):
        for t, (x, y) in enumerate(zip(lists[i], lists[j], strict=False)):
            product = x.to(dtype) * y.to(dtype)
            out[k] += (product * (weights[t].to(dtype).abs() + eta).square() if weights else product).sum()
    return out


def fake(g: list[Tensor], h: list[Tensor], q: list[Tensor], weights: list[Tensor], eta: float, backend: str = "") -> Tensor:
    like = next((x[0] for x in (g, h, q) if x), None)
    return torch.empty(6) if like is None else like.new_empty(6, dtype=accumulator(like.dtype))


OP = declare("inner_products", SCHEMA, reference, guards.parallel, fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, h, q, weights, eta, _ = inputs
    ctx.lengths, ctx.eta = (len(g), len(h), len(q), len(weights)), eta
    ctx.save_for_backward(*g, *h, *q, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved, lists = list(ctx.saved_tensors), []
    for length in ctx.lengths:
        lists.append(saved[:length])
        del saved[:length]
    weights, grads = lists.pop(), [[torch.zeros_like(x) for x in values] for values in lists]
    for k, (i, j) in enumerate(_PAIRS):
        for t, (x, y) in enumerate(zip(lists[i], lists[j], strict=False)):
            scale = grad[k] if not weights else grad[k] * (weights[t].to(grad.dtype).abs() + ctx.eta).square()
            grads[i][t] += (scale * y).to(x.dtype)
            grads[j][t] += (scale * x).to(y.dtype)
    return (*grads, [None] * len(weights), None, None)


torch.library.register_autograd("sam_kernels::inner_products", _backward, setup_context=_setup_context)


def inner_products(
    g: Sequence[Tensor],
    h: Sequence[Tensor] | None = None,
    q: Sequence[Tensor] | None = None,
    *,
    weights: Sequence[Tensor] | None = None,
    eta: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Inner products between up to three lists of tensors, as if each list were one vector.

    Args:
        g, h, q: lists that run in parallel: same shapes, strides, dtype and device; ``h`` and ``q`` may be left out. ``q``, a list
            that is kept across steps, is in fp32 where the others are bf16 or fp16.
        weights: optional list w; every product is then weighted by ``(|w| + eta)**2`` (the ASAM norm). Not differentiated.
        eta: added to ``|w|``.
        backend: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; by default the preferred one that is available.

    Returns:
        ``[6]`` tensor ``(g.g, g.h, h.h, g.q, h.q, q.q)`` on the same device, fp32 (fp64 for fp64 lists), 0 for absent lists.

    Raises:
        TypeError, ValueError: lists that do not match; the message names the tensor.

    Example:
        >>> inner_products([torch.ones(3)], [torch.full((3,), 2.0)])
        tensor([ 3.,  6., 12.,  0.,  0.,  0.])
    """
    check_lists("g", {"g": g, "h": h, "q": q, "weights": weights}, kept=("q",))
    lists = [list(x) if x is not None else [] for x in (g, h, q, weights)]
    return call(OP, backend, *lists, float(eta))


def sq_norm(g: Sequence[Tensor], *, weights: Sequence[Tensor] | None = None, eta: float = 0.0, backend: str | None = None) -> Tensor:
    """Squared L2 norm of a list of tensors taken as one vector: ``inner_products(g)[0]``, a 0-dimensional tensor."""
    return inner_products(g, weights=weights, eta=eta, backend=backend)[0]
