"""Kernels that run parts of a draw on numbers of the test's own: random ones of 62 bits never tie and never meet a boundary."""

import triton
import triton.language as tl

from sam_kernels.backends.triton.draw_formulas import lot_of, points_below
from sam_kernels.backends.triton.draw_phases import rank, select, settle


@triton.jit(do_not_specialize=["count", "k", "span"])
def race_kernel(keys, weights, counts, inclusion, found, count, k, span, TILE: tl.constexpr):
    """Every program selects the same time, and draws in its own part."""
    begin = tl.program_id(0) * span
    size = tl.minimum(count - begin, span)
    last = select(keys, count, k, TILE)
    tl.store(found, last)
    lot, out = lot_of(weights + begin, size, 127, 0), (counts + begin, inclusion + begin)
    settle(lot, out, keys + begin, last, rank(keys, begin, last, TILE), rank(keys, count, last, TILE), k, TILE)


@triton.jit(do_not_specialize=["count", "k"])
def points_kernel(upto, total, start, below, count, k, TILE: tl.constexpr):
    lane = tl.arange(0, TILE)
    value = tl.load(upto + lane, mask=lane < count, other=0)
    tl.store(below + lane, points_below(value, tl.load(total), k, tl.load(start)), mask=lane < count)
