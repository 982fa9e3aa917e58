# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)
"""The phases of a draw: each walks over the tiles of one program's weights. Kernels put them together.

A ``lot`` is that of draw_formulas.py; ``out`` is (counts, inclusion), at the program's first weight; ``before`` is the sum of the integers
of all programs before. Sums are of integers, so no order shows in them.
"""

import triton
import triton.language as tl

from .draw_formulas import NORMAL, arrived, expected_counts, exponential, integers, numbers, numbers_from, patterns, points_below, position

ALL_BITS, INFINITE = tl.constexpr(0x7FFFFFFFFFFFFFFF), tl.constexpr(0x7FF0000000000000)


@triton.jit
def peak(weights, count, TILE: tl.constexpr):
    """(largest exponent of a usable weight, 0 where none is, 1 where a weight is bad)"""
    top, bad = tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.int32)
    for first in range(0, count, TILE):
        u, usable = patterns(weights, first + tl.arange(0, TILE), count)
        top = tl.maximum(top, tl.where(usable, u >> 23, 0))
        bad |= (~usable & ((u & 0x7FFFFFFF) >= NORMAL)).to(tl.int32)
    return tl.max(top), tl.max(bad)


@triton.jit
def mass(lot, TILE: tl.constexpr):
    total = tl.zeros([TILE], tl.int64)
    for first in range(0, lot[1], TILE):
        total += integers(lot, first + tl.arange(0, TILE))
    return tl.sum(total)


@triton.jit
def write(out, index, count, drawn, expected):
    tl.store(out[0] + index, drawn.to(tl.int32), mask=index < count)
    tl.store(out[1] + index, tl.where(drawn > 0, drawn.to(tl.float64) / expected, 0.0).to(tl.float32), mask=index < count)


@triton.jit
def systematic(lot, out, state, before, total, k, TILE: tl.constexpr):
    start = position(numbers(state, tl.zeros([], tl.int32))[0], total)
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        q = integers(lot, index)
        upto = before + tl.cumsum(q, 0)
        drawn = points_below(upto, total, k, start) - points_below(upto - q, total, k, start)
        write(out, index, lot[1], drawn, expected_counts(q, total, k))
        before += tl.sum(q)


@triton.jit
def bernoulli(lot, out, state, begin, total, k, TILE: tl.constexpr):
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        q = integers(lot, index)
        certain = q > (total - 1) // k
        below = position(numbers_from(state, begin + first, TILE), total) < k.to(tl.int64) * tl.where(certain, 0, q)
        write(out, index, lot[1], (certain | below).to(tl.int32), tl.where(certain, 1.0, expected_counts(q, total, k)))


@triton.jit
def cumulate(lot, counts, cdf, before, TILE: tl.constexpr):
    """The cumulative sums into memory, and zeros where the draws will be counted."""
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        q = integers(lot, index)
        tl.store(cdf + index, before + tl.cumsum(q, 0), mask=index < lot[1])
        tl.store(counts + index, tl.zeros([TILE], tl.int32), mask=index < lot[1])
        before += tl.sum(q)


@triton.jit
def throw(counts, cdf, state, j, total, count, k, length, TILE: tl.constexpr):
    """Draws j, j + 1, ...: halves the 2^length positions until one is left, the first with a cumulative sum above the point."""
    point = position(numbers_from(state, j, TILE), total)
    low, high = tl.zeros([TILE], tl.int32), tl.zeros([TILE], tl.int32) + (count - 1)
    for _ in range(length):
        middle = low + (high - low >> 1)
        above = tl.load(cdf + middle) > point
        low, high = tl.where(above, low, middle + 1), tl.where(above, middle, high)
    tl.atomic_add(counts + low, tl.full([TILE], 1, tl.int32), mask=j + tl.arange(0, TILE) < k, sem="relaxed")


@triton.jit
def divide(lot, out, total, k, TILE: tl.constexpr):
    """The inclusion weights of counts that are in memory."""
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        drawn = tl.load(out[0] + index, mask=index < lot[1], other=0, volatile=True)
        write(out, index, lot[1], drawn, expected_counts(integers(lot, index), total, k))


@triton.jit
def race(lot, keys, state, begin, TILE: tl.constexpr):
    """Arrival times into memory."""
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        q = integers(lot, index)
        time = tl.where(q > 0, exponential(numbers_from(state, begin + first, TILE)) / q.to(tl.float64), float("inf"))
        tl.store(keys + index, time, mask=index < lot[1])


@triton.jit
def select(keys, count, k, TILE: tl.constexpr):
    """The arrival time with k others before it, bit by bit from the highest: times that are not negative are ordered as their bits."""
    found = tl.full([], 0, tl.int64)
    for step in range(63):
        candidate = found | (tl.full([], 1, tl.int64) << (62 - step))
        before = tl.full([TILE], 0, tl.int32)
        for first in range(0, count, TILE):
            index = first + tl.arange(0, TILE)
            key = tl.load(keys + index, mask=index < count, other=float("inf")).to(tl.int64, bitcast=True)
            before += ((key < candidate) & (index < count)).to(tl.int32)
        found = tl.where(tl.sum(before) <= k, candidate, found)
    return tl.minimum(found, INFINITE).to(tl.float64, bitcast=True)


@triton.jit
def rank(keys, count, last, TILE: tl.constexpr):
    """How many arrived before ``last``, and in the upper 32 bits how many together with it."""
    ranks = tl.zeros([TILE], tl.int64)
    for first in range(0, count, TILE):
        index = first + tl.arange(0, TILE)
        key = tl.load(keys + index, mask=index < count, other=float("nan"))
        ranks += (key < last).to(tl.int64) | (key == last).to(tl.int64) << 32
    return tl.sum(ranks)


@triton.jit
def settle(lot, out, keys, last, before, ranks, k, TILE: tl.constexpr):
    """Who arrived before ``last`` is drawn, and of those who arrived together with it the first, until there are k."""
    left, equal = k - (ranks & 0xFFFFFFFF), before >> 32
    for first in range(0, lot[1], TILE):
        index = first + tl.arange(0, TILE)
        key = tl.load(keys + index, mask=index < lot[1], other=float("nan"))
        tied = (key == last).to(tl.int64)
        drawn = (key < last) | (tied != 0) & (equal + tl.cumsum(tied, 0) <= left) & (key < float("inf"))
        write(out, index, lot[1], drawn.to(tl.int32), arrived(integers(lot, index).to(tl.float64) * last))
        equal += tl.sum(tied)
