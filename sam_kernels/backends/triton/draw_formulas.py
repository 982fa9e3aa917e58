# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)
"""The formulas of sam_kernels/ops/draw_reference.py for Triton, equal to the bit: the integers behind the weights, random numbers, points
and arrival times. 64-bit integers, and fp64 without fused multiply-adds.

A ``lot`` is what a program needs to make integers of its weights: (their address, how many, what is added to an exponent to get the
shift, whether none is usable).
"""

from math import log

import triton
import triton.language as tl

from ...ops.draw_reference import _LN2_HIGH, _LN2_LOW, STREAM
from .tile import widen

ROOM = tl.constexpr(62 - 23)  # of an fp32 mantissa in 62 bits
NORMAL, ONE, INFINITY = tl.constexpr(0x00800000), tl.constexpr(0x3F800000), tl.constexpr(0x7F800000)
COUNTER = tl.constexpr(STREAM)
LN2, PER_LN2, LN2_HIGH, LN2_LOW = (tl.constexpr(x) for x in (log(2), 1 / log(2), _LN2_HIGH, _LN2_LOW))


@triton.jit
def patterns(weights, index, count):
    """(bits of the weights in fp32, which are usable): compared as integers; subnormal ones count as 0"""
    u = widen(tl.load(weights + index, mask=index < count, other=0)).to(tl.int32, bitcast=True)
    return u, (u >= NORMAL) & (u < INFINITY)


@triton.jit
def integers(lot, index):
    """q_i = floor(w_i 2^s); 0 beyond the end"""
    weights, count, base, none = lot
    u, usable = patterns(weights, index, count)
    u = tl.where(none & (index < count), ONE, tl.where(usable, u, 0))
    exponent = u >> 23
    mantissa = (u & 0x7FFFFF | tl.where(exponent > 0, 0x800000, 0)).to(tl.int64)
    shift = exponent + base
    return mantissa << tl.maximum(shift, 0).to(tl.int64) >> tl.minimum(tl.maximum(-shift, 0), 63).to(tl.int64)


@triton.jit
def lot_of(weights, count, top, length):
    """``top``: the largest exponent of a usable weight, 0 where there is none and each weight is read as 1"""
    return weights, count, ROOM - length - tl.where(top == 0, 127, top), top == 0


@triton.jit
def numbers(state, pair):
    """The 64-bit random numbers 2 pair and 2 pair + 1."""
    c0 = pair.to(tl.uint32)
    zero = c0 - c0
    offset = tl.load(state + 1).to(tl.uint32)
    x0, x1, x2, x3 = tl.philox(tl.load(state), c0, zero, zero + COUNTER, zero + offset)
    return x1.to(tl.uint64) << 32 | x0.to(tl.uint64), x3.to(tl.uint64) << 32 | x2.to(tl.uint64)


@triton.jit
def numbers_from(state, begin, TILE: tl.constexpr):
    """Numbers begin, begin + 1, ...; ``begin`` is even."""
    even, odd = numbers(state, begin // 2 + tl.arange(0, TILE // 2))
    return tl.interleave(even, odd)


@triton.jit
def position(number, total):
    """floor(R total / 2^64)"""
    return tl.umulhi(number, (number - number) + total.to(tl.uint64)).to(tl.int64)


@triton.jit
def points_below(upto, total, k, start):
    """How many of the points p_m = floor((m total + start) / k), m < k, are below ``upto``.

    They are below where m < x = (k upto - start) / total. The nearest integer to x in fp64, which errs by less than 2^-20, is that
    number or one less; p_m decides.
    """
    k = k.to(tl.int64)
    divisor = tl.maximum(k, 1)
    x = upto.to(tl.float64) * (k.to(tl.float64) / total.to(tl.float64)) - start.to(tl.float64) / total.to(tl.float64)
    m = tl.minimum(tl.maximum(tl.floor(x + 0.5).to(tl.int64), 0), k)
    point = m * (total // divisor) + start // divisor + (m * (total % divisor) + start % divisor) // divisor
    return m + ((m < k) & (point < upto)).to(tl.int64)


@triton.jit
def expected_counts(q, total, k):
    return q.to(tl.float64) * k.to(tl.float64) / total.to(tl.float64)


@triton.jit
def exponential(number):
    """-log(u), u = (2 (R >> 12) + 1) / 2^53, as e ln 2 - 2 artanh(s) with 2^-e f = u, s = (f - 1) / (f + 1), f about 1."""
    bits = (2 * (number >> 12).to(tl.int64) + 1).to(tl.float64).to(tl.int64, bitcast=True)
    up = (bits >> 51 & 1) & (bits >> 50 & 1 | bits >> 49 & 1)  # f >= 1.625 is halved
    f = (bits & 0xFFFFFFFFFFFFF | 1023 - up << 52).to(tl.float64, bitcast=True)
    e, s = (1076 - (bits >> 52) - up).to(tl.float64), (f - 1.0) / (f + 1.0)
    z, p = s * s, s - s + 1 / 21
    for i in tl.static_range(19, 0, -2):
        p = p * z + 1 / i
    return e * LN2 - 2.0 * s * p


@triton.jit
def arrived(x):
    """1 - e^-x for x >= 0, also infinite or NaN, as (1 - 2^-n) + 2^-n (1 - e^-r), x = n ln 2 + r."""
    x = tl.where(x < 700, x, 700.0)
    n = tl.floor(x * PER_LN2 + 0.5)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = r - r + 1.0
    i = tl.full([], 14.0, tl.float64)
    for _ in range(13):  # not unrolled: a division is some thirty instructions
        p = 1.0 - r / i * p
        i -= 1.0
    scale = (1023 - n.to(tl.int64) << 52).to(tl.float64, bitcast=True)
    return (1.0 - scale) + scale * (r * p)
