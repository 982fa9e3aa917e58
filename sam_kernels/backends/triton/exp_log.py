# ruff: noqa: ANN201 (what a kernel helper returns has no Python type)
"""csrc/core/exp_log.h for Triton: exponential and logarithms whose last digits count, for the few operations at the end of a row.

Compiled exponentials of Triton are fast ones: two ulp and one more per unit of the argument, which the terms of a sum may have, because
they are smaller than the largest by as much. `term` is that one.
"""

import triton
import triton.language as tl


@triton.jit
def term(x: tl.tensor):
    return tl.exp(x)


@triton.jit
def exp_parts(x: tl.tensor):
    """(scale, tail) of e^x = scale (1 + tail), for x in [-87, 0]."""
    shifted = tl.fma(x, 1.44269504, 12582912.0)  # 1.5 * 2^23: the last bit of a sum with it is 1
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194442e-4, tl.fma(n, -0.693359375, x))
    p = tl.fma(r, 0.00138142204, 0.00836890098)
    p = tl.fma(p, r, 0.0416684039)
    p = tl.fma(p, r, 0.166665196)
    p = tl.fma(p, r, 0.49999994)
    scale = ((shifted.to(tl.uint32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return scale, tl.fma(p * r, r, r)


@triton.jit
def exp_of(x: tl.tensor):
    bounded = tl.where(x < -87, -87.0, x)
    scale, tail = exp_parts(bounded)
    return tl.where(x < -87, 0.0, scale * (1.0 + tail))


@triton.jit
def expm1_of(x: tl.tensor):
    bounded = tl.where(x < -87, -87.0, x)
    scale, tail = exp_parts(bounded)
    return tl.fma(scale, tail, scale - 1.0)


@triton.jit
def exp_of_difference(a: tl.tensor, b: tl.tensor):
    """e^(a - b) with the rounding of the difference put back."""
    d = a - b
    back = d - a
    lost = (a - (d - back)) - (b + back)
    e = exp_of(d)
    return tl.where(tl.abs(d) < float("inf"), tl.fma(e, lost, e), e)


@triton.jit
def log_of(x: tl.tensor):
    """x >= 1"""
    bits = x.to(tl.uint32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True)
    s = tl.div_rn(f - 1.0, f + 1.0)
    z = s * s
    p = tl.fma(z, 2.0 / 9, 2.0 / 7)
    p = tl.fma(p, z, 2.0 / 5)
    p = tl.fma(p, z, 2.0 / 3)
    n = k.to(tl.float32)
    return tl.fma(n, 0.693359375, tl.fma(n, -2.12194442e-4, tl.fma(s * z, p, s + s))) + (x - x)


@triton.jit
def log1p_of(x: tl.tensor):
    total = 1.0 + x
    return log_of(total) + tl.div_rn(x - (total - 1.0), total)
