"""``normalization_grads`` and ``embedding_grad_norms`` on the CPU: outputs are made here, everything else is C++."""

import torch
from torch import Tensor

from ...ops.lists import accumulator
from .call import native

SCHEMAS = {
    "normalization_grads": "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, int samples, bool coupled, Tensor(a!) dx, "
    "Tensor(b!) rows) -> ()",
    "embedding_grad_norms": "(Tensor ids, Tensor g, int padding, Tensor(a!) norms) -> ()",
}
CPU_ONLY = ("normalization_grads", "embedding_grad_norms")


def _normalization_grads(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, samples: int, coupled: bool
) -> tuple[Tensor, Tensor]:
    dtype, affine = accumulator(x.dtype), x.shape[1] * x.shape[2]
    dx, make = torch.empty_like(x), x.new_empty if x.numel() else x.new_zeros
    rows = make(samples, 2, affine, dtype=dtype)
    scale = x.new_ones(affine, dtype=dtype) if weight is None else weight.to(dtype)  # small: no kernel asks whether it is there
    native("normalization_grads")(grad, x, mean, rstd, scale, samples, coupled, dx, rows)
    return dx, rows


def _embedding_grad_norms(ids: Tensor, g: Tensor, padding_idx: int) -> Tensor:
    norms = g.new_zeros(len(ids), dtype=accumulator(g.dtype))
    native("embedding_grad_norms")(ids, g, padding_idx, norms)
    return norms


FUNCTIONS = {"normalization_grads": _normalization_grads, "embedding_grad_norms": _embedding_grad_norms}
