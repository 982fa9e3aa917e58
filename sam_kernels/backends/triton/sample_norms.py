# ruff: noqa: ANN001, ANN201
"""Squared norms of per-sample weight gradients P_b = G_b^T A_b, of matrices G_b [T, p] and A_b [T, d] read where they lie.

    direct   |P_b|^2, tile of P_b by tile: 2 T d p FLOPs a sample
    gram     sum_ts (a_t.a_s) (g_t.g_s), pair of row tiles by pair: T (T + 1) (d + p) FLOPs; a constant column of ones in A, which is
             1 added to every a_t.a_s, makes it weight + bias for nothing
    product  (|a|^2 + 1) |g|^2: what both are for T = 1

Neither P_b nor a Gram matrix leaves the registers; both are fp32, since a rounded Gram matrix cancels. Reads A and G from memory once
and from the L2 cache once per tile row: the tiles of one sample are neighbours in the grid. Launch: one program per (sample, group,
tile or pair of tiles), and per 16 / T samples for T < 16. Deterministic: each program writes one partial sum per sample, ``[samples,
groups * tiles]``, and one torch sum adds them up.
With p = 1 (depthwise) a tensor core would multiply 15 rows of zeros: multiply-adds, and all reductions across threads after the loop.
"""

import triton
import triton.language as tl

from .sample_matrix import dot, offsets, start_of, tile


@triton.jit
def direct_kernel(
    a: tl.tensor, g: tl.tensor, partials: tl.tensor, a_strides, g_strides, groups: tl.tensor, T: tl.tensor, d: tl.tensor, p: tl.tensor,
    A_ROWS: tl.constexpr, A_COLUMNS: tl.constexpr, G_ROWS: tl.constexpr, G_COLUMNS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles_d = tl.cdiv(d, BLOCK_D)
    tiles = tiles_d * tl.cdiv(p, BLOCK_P)
    program = tl.program_id(0)
    group = program // tiles % groups
    sample = program // tiles // groups
    of_d = program % tiles % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    of_p = program % tiles // tiles_d * BLOCK_P + tl.arange(0, BLOCK_P)
    a = start_of(a, a_strides, sample, group)
    g = start_of(g, g_strides, sample, group)
    a_columns = offsets(of_d, A_COLUMNS, a_strides[3], WIDE)
    g_columns = offsets(of_p, G_COLUMNS, g_strides[3], WIDE)
    total = tl.zeros([BLOCK_T if BLOCK_P == 1 else BLOCK_P, BLOCK_D], tl.float32)
    for start in range(0, T, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        x = tile(a, offsets(t, A_ROWS, a_strides[2], WIDE), t < T, a_columns, of_d < d)
        y = tile(g, offsets(t, G_ROWS, g_strides[2], WIDE), t < T, g_columns, of_p < p)
        if BLOCK_P == 1:
            total += x.to(tl.float32) * y.to(tl.float32)
        else:
            total = dot(tl.trans(y), x, total, PRECISION)
    if BLOCK_P == 1:
        product = tl.sum(total, 0)
        tl.store(partials + program, tl.sum(product * product))
    else:
        tl.store(partials + program, tl.sum(total * total))


@triton.jit
def row_products(
    base: tl.tensor, strides, rows_i: tl.tensor, in_i: tl.tensor, rows_j: tl.tensor, in_j: tl.tensor, columns: tl.tensor,
    RADICES: tl.constexpr, EDGE: tl.constexpr, BLOCK_K: tl.constexpr, SAME: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``[EDGE, EDGE]`` inner products of the rows at offsets ``rows_i`` and ``rows_j``; SAME: they are the same rows."""
    total = tl.zeros([EDGE, EDGE], tl.float32)
    for start in range(0, columns, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        at = offsets(column, RADICES, strides[3], WIDE)
        x = tile(base, rows_i, in_i, at, column < columns)
        if SAME:
            total = dot(x, tl.trans(x), total, PRECISION)
        else:
            total = dot(x, tl.trans(tile(base, rows_j, in_j, at, column < columns)), total, PRECISION)
    return total


@triton.jit
def pair_of(index: tl.tensor):
    """(i, j), j <= i, the ``index``-th of (0, 0), (1, 0), (1, 1), (2, 0), ...; the root, an approximation on GPUs, is corrected."""
    i = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > index, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= index, i + 1, i)
    return i, index - i * (i + 1) // 2


@triton.jit
def gram_kernel(
    a: tl.tensor, g: tl.tensor, partials: tl.tensor, a_strides, g_strides, samples: tl.tensor, groups: tl.tensor, T: tl.tensor,
    d: tl.tensor, p: tl.tensor,
    A_ROWS: tl.constexpr, A_COLUMNS: tl.constexpr, G_ROWS: tl.constexpr, G_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr, EDGE: tl.constexpr, SPAN: tl.constexpr, SAME: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile has EDGE rows: of one sample, or SPAN of each of EDGE / SPAN samples. SAME: one tile holds all rows of a sample."""
    tiles = tl.cdiv(T, EDGE)
    pairs = tiles * (tiles + 1) // 2
    program = tl.program_id(0)
    pair = program % pairs
    group = program // pairs % groups
    first = program // pairs // groups * (EDGE // SPAN)
    i, j = pair_of(pair)
    row = tl.arange(0, EDGE)
    local = (row // SPAN).to(tl.int64) if WIDE else row // SPAN
    t_i, t_j = i * EDGE + row % SPAN, j * EDGE + row % SPAN
    there = first + local < samples
    in_i, in_j = there & (t_i < T), there & (t_j < T)

    at = start_of(a, a_strides, first, group)
    a_i = local * a_strides[0] + offsets(t_i, A_ROWS, a_strides[2], WIDE)
    a_j = local * a_strides[0] + offsets(t_j, A_ROWS, a_strides[2], WIDE)
    products = row_products(at, a_strides, a_i, in_i, a_j, in_j, d, A_COLUMNS, EDGE, BLOCK_K, SAME, WIDE, PRECISION)
    if BIAS:
        products += 1.0  # rows outside have g = 0
    at = start_of(g, g_strides, first, group)
    g_i = local * g_strides[0] + offsets(t_i, G_ROWS, g_strides[2], WIDE)
    g_j = local * g_strides[0] + offsets(t_j, G_ROWS, g_strides[2], WIDE)
    products *= row_products(at, g_strides, g_i, in_i, g_j, in_j, p, G_COLUMNS, EDGE, BLOCK_K, SAME, WIDE, PRECISION)
    if SPAN < EDGE:
        products = tl.where(local[:, None] == local[None, :], products, 0.0)
    sums = tl.sum(tl.reshape(tl.sum(products, 1), [EDGE // SPAN, SPAN]), 1)
    sample = first + tl.arange(0, EDGE // SPAN)
    place = (sample.to(tl.int64) * groups + group) * pairs + pair
    tl.store(partials + place, tl.where(i == j, 1.0, 2.0) * sums, mask=sample < samples)


@triton.jit
def row_norm(base: tl.tensor, strides, columns: tl.tensor, RADICES: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr):
    total = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, columns, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        x = tl.load(base + offsets(column, RADICES, strides[3], WIDE), mask=column < columns, other=0.0).to(tl.float32)
        total = tl.fma(x, x, total)
    return tl.sum(total)


@triton.jit
def product_kernel(
    a: tl.tensor, g: tl.tensor, partials: tl.tensor, a_strides, g_strides, groups: tl.tensor, d: tl.tensor, p: tl.tensor,
    A_ROWS: tl.constexpr, A_COLUMNS: tl.constexpr, G_ROWS: tl.constexpr, G_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    group, sample = program % groups, program // groups
    norm = row_norm(start_of(a, a_strides, sample, group), a_strides, d, A_COLUMNS, BLOCK_K, WIDE)
    norm = norm + 1.0 if BIAS else norm
    norm *= row_norm(start_of(g, g_strides, sample, group), g_strides, p, G_COLUMNS, BLOCK_K, WIDE)
    tl.store(partials + program, norm)
