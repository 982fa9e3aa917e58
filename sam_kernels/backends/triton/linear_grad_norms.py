"""linear_grad_norms in Triton: see sample_norms.py for the kernels, their cost and launch.

a and g may have any strides: a transposed or expanded gradient is read as it lies. dW is torch's own product, after the norms; it alone
copies where (B, T) do not flatten, as autograd does, and repeats bit by bit where cuBLAS does.
"""

import torch
from torch import Tensor

from ...ops.linear_grad_norms import reference
from .sample_launch import Problem, norms_and_bias
from .sample_matrix import Matrix, digits, matrix


def rows_and_columns(x: Tensor) -> Matrix:
    """One matrix ``[T, d]`` per sample of ``[B, T, d]``."""
    samples, rows, columns = x.stride()
    return matrix(x, samples, 0, 1, digits(x.shape[1:2], (rows,)), digits(x.shape[2:], (columns,)), (x.shape[1], x.shape[2]))


def linear_grad_norms(a: Tensor, g: Tensor, method: str, weight: bool, bias: bool, grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    if a.numel() == 0 or g.numel() == 0:  # nothing to multiply
        return reference(a, g, method, weight, bias, grads)
    B, T, d = a.shape
    problem = Problem(rows_and_columns(a), rows_and_columns(g), B, 1, T, d, g.shape[2])
    norms, db = norms_and_bias(problem, method, weight, bias, grads, lambda: g.sum(1, dtype=torch.float32))
    dw = g.flatten(0, 1).T @ a.flatten(0, 1) if weight and grads else a.new_empty(0)
    return norms, dw, db
