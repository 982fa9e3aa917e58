"""embedding_grad_norms: squared norm of every sample's own gradient of an embedding table.

    out_b = sum over v of |sum over t with ids[b, t] = v of g[b, t]|^2,   v other than padding_idx

Positions with the same id add up before the square: neither a table per sample nor a T x T matrix is formed. Reads g once.
Accumulates in fp32 (fp64 for fp64); equal ids are added in the order of their positions: equal inputs give equal bits.
"""

from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from .lists import accumulator
from .operands import require_floating, require_operand

SCHEMA = "(Tensor ids, Tensor g, int padding_idx) -> Tensor"


def reference(ids: Tensor, g: Tensor, padding_idx: int) -> Tensor:
    """The specification: plain torch, any device and floating dtype."""
    out = g.new_zeros(len(ids), dtype=accumulator(g.dtype))
    for b, (row, grads) in enumerate(zip(ids, g, strict=True)):
        kept = row != padding_idx if padding_idx >= 0 else torch.ones_like(row, dtype=torch.bool)
        tokens, place = torch.unique(row[kept], return_inverse=True)
        sums = out.new_zeros(len(tokens), g.shape[2]).index_add_(0, place, grads[kept].to(out.dtype))
        out[b] = sums.square().sum()
    return out


def fake(ids: Tensor, g: Tensor, padding_idx: int, backend: str = "") -> Tensor:
    return g.new_empty(ids.shape[0], dtype=accumulator(g.dtype))


def guard(a: dict[str, Any]) -> None:
    """Shapes, dtypes, device and layout of both operands."""
    ids, g = a["ids"], a["g"]
    require_floating("g", g, 3, "[samples, positions, features]")
    require_operand("g", g, g.shape, (g.dtype,), g)
    require_operand("ids", ids, g.shape[:2], (torch.int64,), g)
    if a["padding_idx"] < -1:
        raise ValueError(f"padding_idx is {a['padding_idx']}; expected an id >= 0, or None: add the number of rows of the table")


OP = declare("embedding_grad_norms", SCHEMA, reference, guard, fake)


def embedding_grad_norms(ids: Tensor, g: Tensor, *, padding_idx: int | None = None, backend: str | None = None) -> Tensor:
    """Squared norm of each sample's own gradient of the table of an embedding.

    Args:
        ids: ``[B, T]`` int64, what was looked up; contiguous. Ids are compared, never used as addresses.
        g: ``[B, T, d]``, gradient at the embedding's output, any floating dtype, on the device of ``ids``; contiguous.
        padding_idx: id whose row gets no gradient, as in ``torch.nn.functional.embedding``, counted from 0; None (or -1) for none.
        backend: ``"reference"``, ``"cpp"`` or ``"triton"``; by default the preferred one that is available.

    Returns:
        ``[B]`` squared L2 norms in fp32 (fp64 for fp64 ``g``): the "ghost" norm of an embedding (Li et al. 2021, arXiv:2110.05679).

    Raises:
        TypeError, ValueError: an operand whose shape, dtype, device or layout does not fit; the message names it.
        RuntimeError: a backend that was asked for by name and is not there or does not support the device or dtype.

    Example:
        >>> embedding_grad_norms(torch.tensor([[7, 7], [7, 8]]), torch.ones(2, 2, 3))
        tensor([12.,  6.])
    """
    return call(OP, backend, ids, g, -1 if padding_idx is None else int(padding_idx))
