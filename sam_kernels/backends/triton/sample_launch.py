"""Tile sizes and launches of the kernels of sample_norms.py, from shapes alone: nothing is timed, nothing waits for the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sample_matrix import Matrix
from .sample_norms import direct_kernel, gram_kernel, product_kernel


class Tile(NamedTuple):
    gram: int  # bytes of a row that the Gram method sums over at a time
    direct: int  # and of a column, in the direct one
    warps: int
    stages: int


class Problem(NamedTuple):
    a: Matrix  # [T, d]
    g: Matrix  # [T, p]
    samples: int
    groups: int
    T: int
    d: int
    p: int  # none of them 0


# (tensor cores, longest edge) -> tile, from registers and shared memory, not from time: on tensor cores three stages of two 128-row
# operands are 96 KB, which every GPU since sm_80 has; without them (fp32 at full precision) operands and sums share the registers.
TILES = {
    (True, 16): Tile(256, 128, 4, 4), (True, 32): Tile(256, 128, 4, 4), (True, 64): Tile(128, 128, 4, 4), (True, 128): Tile(128, 128, 8, 3),
    (False, 16): Tile(128, 128, 4, 3), (False, 32): Tile(64, 64, 4, 3), (False, 64): Tile(64, 64, 8, 3),
}  # fmt: skip
LONG = 1 << 31


def edge_of(size: int, cores: bool) -> int:
    """The tile for ``size`` rows or columns: at least what a tensor core takes, at most what the registers hold."""
    largest = 128 if cores else 64
    return min(largest, max(16, _power(size)))


def gram_edge(T: int, cores: bool) -> int:
    """As ``edge_of``, but three tiles of 64 for T up to 192: two thirds of the products of two of 128, and no more bytes."""
    return 64 if 128 < T <= 192 else edge_of(T, cores)


def norms_and_bias(
    problem: Problem, method: str, weight: bool, bias: bool, grads: bool, row_sums: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """(squared norms ``[samples]``, gradient of the bias); ``row_sums`` gives the samples' own in fp32, and is asked where it is needed."""
    x = problem.a.tensor
    folded = weight and bias and (method != "direct" or problem.T == 1)
    rows = row_sums() if bias and (grads or not folded) else None
    norms = squared_norms(problem, method, folded) if weight else x.new_zeros(problem.samples, dtype=torch.float32)
    if bias and not folded and rows is not None:
        norms = norms.add_(rows.square().sum(1))
    return norms, rows.sum(0).to(x.dtype) if grads and rows is not None else x.new_empty(0)


def squared_norms(problem: Problem, method: str, bias: bool) -> Tensor:
    """``[samples]``: the sum over groups of ``|G^T A|^2``; ``bias`` adds ``|sum_t g_t|^2``, which the direct method cannot for T > 1."""
    a, g = problem.a, problem.g
    radices = {f"{name}_{part}": getattr(m, part.lower()).radices for name, m in (("A", a), ("G", g)) for part in ("ROWS", "COLUMNS")}
    common: dict[str, Any] = {**radices, "WIDE": _wide(a) or _wide(g)}
    if problem.T == 1:
        partials = _product(problem, bias, common)
    else:
        cores, common["PRECISION"] = _precision(a.tensor)
        partials = _direct(problem, cores, common) if method == "direct" else _gram(problem, bias, cores, common)
    norms = partials.sum(1) if partials.shape[1] > 1 else partials.view(-1)
    return norms.clamp_(min=0) if method != "direct" else norms  # differences of rounding may fall below


def _product(problem: Problem, bias: bool, common: dict[str, Any]) -> Tensor:
    a, g, samples, groups, _, d, p = problem
    partials = _partials(problem, groups)
    product_kernel[(samples * groups,)](
        a.tensor, g.tensor, partials, a.strides, g.strides, groups, d, p, BIAS=bias, BLOCK_K=1024, num_warps=4, **common
    )
    return partials


def _direct(problem: Problem, cores: bool, common: dict[str, Any]) -> Tensor:
    a, g, _, groups, T, d, p = problem
    block_d, block_p = edge_of(d, cores), 1 if p == 1 else edge_of(p, cores)
    tile = TILES[cores, max(block_d, block_p)]
    block_t = min(_depth(tile.direct, problem), max(16, _power(T)))
    partials = _partials(problem, groups * -(-d // block_d) * -(-p // block_p))
    direct_kernel[(partials.numel(),)](
        a.tensor, g.tensor, partials, a.strides, g.strides, groups, T, d, p, BLOCK_T=block_t, BLOCK_D=block_d, BLOCK_P=block_p,
        num_warps=tile.warps, num_stages=tile.stages, **common,
    )  # fmt: skip
    return partials


def _gram(problem: Problem, bias: bool, cores: bool, common: dict[str, Any]) -> Tensor:
    a, g, samples, groups, T, d, p = problem
    edge = gram_edge(T, cores)
    tile, span, tiles = TILES[cores, edge], min(edge, _power(T)), -(-T // edge)
    partials = _partials(problem, groups * tiles * (tiles + 1) // 2)
    gram_kernel[(-(-samples // (edge // span)) * partials.shape[1],)](
        a.tensor, g.tensor, partials, a.strides, g.strides, samples, groups, T, d, p, BIAS=bias, EDGE=edge, SPAN=span, SAME=tiles == 1,
        BLOCK_K=_depth(tile.gram, problem), num_warps=tile.warps, num_stages=tile.stages, **common,
    )  # fmt: skip
    return partials


def _precision(x: Tensor) -> tuple[bool, str]:
    """Whether tensor cores multiply, and how fp32 is rounded for it; half types are exact in either."""
    if x.dtype != torch.float32:
        return True, "ieee"
    return (False, "ieee") if torch.get_float32_matmul_precision() == "highest" else (True, "tf32")


def _depth(most: int, problem: Problem) -> int:
    """Elements of ``most`` bytes, and half of them where each keeps an address in registers; a tensor core takes 16."""
    vectors = problem.a.vectors and problem.g.vectors
    return max(16, most // problem.a.tensor.element_size() // (1 if vectors else 2))


def _power(size: int) -> int:
    """The least power of two that is not less."""
    return 1 << (size - 1).bit_length()


def _wide(m: Matrix) -> bool:
    return m.reach + 16 * abs(m.sample) >= LONG


def _partials(problem: Problem, parts: int) -> Tensor:
    return problem.a.tensor.new_empty((problem.samples, parts), dtype=torch.float32)
