# ruff: noqa: ANN001, ANN201, RET505 (tuples of scalars have no useful annotation; both arms of a compile-time branch return)
"""The norm of the ascent direction in Triton, and what the perturbation in ascend.py shares with it: options and first operand.

The first operand is g, or the random signs of philox.py in its place, which cost no memory.
"""

import triton
import triton.language as tl

from .formulas import adaptive_scale, ascent_direction
from .philox import chunk_words, signs_of
from .tile import CHUNK, FIRST_CHUNK, PARTIALS, RECORD, TILE, G, Q, W, load, locate

OLD, NEW, EPS, NORMALIZE, GROUPS = (tl.constexpr(i) for i in range(2, 7))  # `numbers`: direction, these, then HYPER per group


@triton.jit
def options_of(group: tl.tensor, numbers: tl.tensor, rho: tl.tensor, direction: tl.tensor):
    """(radius, (alpha, beta, eta, adaptive)), the sign of `maximize` in the radius."""
    row = numbers + GROUPS + 4 * group
    radius = tl.load(row) if rho is None else tl.load(rho + group)
    factors = numbers if direction is None else direction
    options = tl.load(factors), tl.load(factors + 1), tl.load(row + 1), tl.load(row + 2) != 0
    return tl.where(tl.load(row + 3) != 0, -radius, radius), options


@triton.jit
def words_of(noise: tl.tensor, stream: tl.tensor, records: tl.tensor, tensor: tl.tensor, chunk: tl.tensor):
    return chunk_words(noise, stream, tensor, chunk - tl.load(records + tensor.to(tl.int64) * RECORD + FIRST_CHUNK))


@triton.jit
def first_of(words: tl.tensor, at, start: tl.tensor, size: tl.tensor, T: tl.constexpr, HAS_G: tl.constexpr, FULL: tl.constexpr):
    """A tile of g, or of the signs in its place."""
    if words is not None:
        return signs_of(words, start, size, TILE, FULL)
    elif HAS_G:
        return load(at, G, start, size, T, FULL)
    else:
        return tl.zeros([TILE], tl.float32)


@triton.jit
def add_norm(
    square: tl.tensor, plain: tl.tensor, at, start: tl.tensor, size: tl.tensor, options, counted: tl.tensor, words: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr, PLAIN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    alpha, beta, eta, adaptive = options
    g = first_of(words, at, start, size, T, HAS_G, FULL)
    q = load(at, Q, start, size, T, FULL) if HAS_Q else g
    d = ascent_direction(g, q, alpha, beta, HAS_G, HAS_Q)
    if WEIGHTED:
        d = adaptive_scale(load(at, W, start, size, T, FULL), eta, adaptive) * d
    square = tl.where(counted, tl.fma(d, d, square), square)
    return square, tl.fma(g, g, plain) if PLAIN else plain


@triton.jit(do_not_specialize=["chunks", "stream"], do_not_specialize_on_alignment=["numbers", "rho", "direction", "noise"])
def norm_kernel(
    records: tl.tensor, tensor_of: tl.tensor, chunks: tl.tensor, numbers: tl.tensor, partials: tl.tensor, rho: tl.tensor,
    direction: tl.tensor, noise: tl.tensor, stream: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    square = tl.zeros([TILE], tl.float32)
    plain = tl.zeros([TILE], tl.float32)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        tensor, group, at, size, full = locate(records, tensor_of, chunk, T)
        radius, options = options_of(group, numbers, rho, direction)
        moves = radius != 0
        words = words_of(noise, stream, records, tensor, chunk) if noise is not None else None
        if full:
            for start in range(0, CHUNK, TILE):
                square, plain = add_norm(square, plain, at, start, size, options, moves, words, T, HAS_G, HAS_Q, WEIGHTED, PLAIN, True)
        else:
            for start in range(0, size, TILE):
                square, plain = add_norm(square, plain, at, start, size, options, moves, words, T, HAS_G, HAS_Q, WEIGHTED, PLAIN, False)
    tl.store(partials + tl.program_id(0), tl.sum(square))
    tl.store(partials + PARTIALS + tl.program_id(0), tl.sum(plain))
