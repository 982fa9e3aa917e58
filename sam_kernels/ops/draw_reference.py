"""The arithmetic of ``draw`` in plain torch, exact to the bit: integers, and fp64 sums and products in a fixed order.

The same formulas stand in csrc/core/draw.h and backends/triton/draw_formulas.py. Integers are int64 below 2^63; a 64-bit random
number R is the pair of its 32-bit halves (high, low).
"""

from math import log

import torch
from torch import Tensor

from .lists import accumulator
from .philox import MASK, philox

STREAM = 0xFFFFFFFF  # third word of the counter: signs of parameters take small numbers there
_LN2_HIGH, _LN2_LOW = 0.69314718036912382, 1.9082149292705877e-10  # n times the first is exact


def reference(weights: Tensor, k: int, scheme: str, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The specification: plain torch, any device and floating dtype."""
    n = len(weights)
    q, flag = integers(weights)
    total = q.sum()
    counts, expected = torch.zeros(n, dtype=torch.int64, device=q.device), k * q.double() / total
    if not n or not k:
        pass
    elif scheme == "top_k":
        counts, expected = _race(q, k, state)
    elif scheme == "bernoulli":
        certain = q > (total - 1) // k  # k q >= total, without a product that may overflow
        counts = certain | (mulhi(random(state, n), total) < k * torch.where(certain, 0, q))
        expected = expected.masked_fill(certain, 1.0)
    else:
        points = mulhi(random(state, 1 if scheme == "systematic" else k), total)
        points = grid(k, total, points) if scheme == "systematic" else points
        found = torch.searchsorted(q.cumsum(0), points, right=True)  # the first i with points < q_0 + ... + q_i
        counts.index_add_(0, found, torch.ones_like(found))
    inclusion = torch.where(counts > 0, counts.double() / expected, 0.0)
    return counts.int(), inclusion.to(accumulator(weights.dtype)), flag


def integers(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(q, flag): q_i = floor(w_i 2^s) for the s with which the largest weight is in [2^(62 - L), 2^(63 - L)), n <= 2^L."""
    n, wide = len(weights), weights.to(accumulator(weights.dtype))
    double = wide.dtype == torch.float64
    bits, stored, one = (wide.view(torch.int64), 52, 1023 << 52) if double else (wide.view(torch.int32).long(), 23, 127 << 23)
    normal, infinite = 1 << stored, 2 * one + (1 << stored)  # as bits, which are in the order of positive numbers
    usable = (bits >= normal) & (bits < infinite)
    refused = ~usable & ((bits & ((1 << 63) - 1 if double else 0x7FFFFFFF)) >= normal)
    flag = torch.where(usable.any() | (n == 0), refused.any().int(), 2).int()
    if not n:
        return bits.long(), flag
    bits = torch.where(usable.any(), torch.where(usable, bits, 0), one)
    exponent = bits >> stored
    mantissa = bits & (normal - 1) | torch.where(exponent > 0, normal, 0)
    shift = 62 - stored - (n - 1).bit_length() - (exponent.amax() - exponent)
    return mantissa << shift.clamp(min=0) >> (-shift).clamp(0, 63), flag


def random(state: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """64-bit number j, as (high, low): words 2 (j % 2) + 1 and 2 (j % 2) of the block with the counter (j // 2, 0, STREAM, offset)."""
    seed, offset = state
    blocks = torch.arange((count + 1) // 2, dtype=torch.int64, device=state.device)
    words = torch.stack(philox((seed, seed >> 32), (blocks, 0, STREAM, offset), state.device), 1).reshape(-1, 2)[:count]
    return words[:, 1], words[:, 0]


def mulhi(number: tuple[Tensor, Tensor], total: Tensor) -> Tensor:
    """floor(R total / 2^64): a position in [0, total)."""
    (high, low), top, bottom = number, total >> 32, total & MASK
    a, b, c = high * bottom, low * top, low * bottom  # wrap at 64 bits, whose pattern is that of the unsigned product
    carry = (a & MASK) + (b & MASK) + (c >> 32 & MASK)
    return high * top + (a >> 32 & MASK) + (b >> 32 & MASK) + (carry >> 32)


def grid(k: int, total: Tensor, start: Tensor) -> Tensor:
    """floor((m total + start) / k) for m < k, in 64 bits; start < total."""
    m = torch.arange(k, dtype=torch.int64, device=total.device)
    return m * (total // k) + start // k + (m * (total % k) + start % k) // k


def _race(q: Tensor, k: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """The k first of a race with rates q, ties to the lower position, and the probability of each to beat the first that lost."""
    arrival = torch.where(q > 0, exponential(random(state, len(q))) / q.double(), torch.inf)
    order = torch.argsort(arrival, stable=True)
    counts = torch.zeros_like(q).index_fill_(0, order[:k], 1) * (q > 0)
    last = arrival[order[k]] if k < len(q) else torch.full_like(arrival[0], torch.inf)
    return counts, arrived(q.double() * last)


def exponential(number: tuple[Tensor, Tensor]) -> Tensor:
    """-log(u), u = (2 (R >> 12) + 1) / 2^53, as e ln 2 - 2 artanh(s) with 2^-e f = u, s = (f - 1) / (f + 1), f about 1."""
    bits = (2 * (number[0] << 20 | number[1] >> 12) + 1).double().view(torch.int64)
    up = (bits >> 51 & 1) & (bits >> 50 & 1 | bits >> 49 & 1)  # f >= 1.625 is halved
    f = ((bits & (1 << 52) - 1) | 1023 - up << 52).view(torch.float64)
    e, s = (53 + 1023 - (bits >> 52) - up).double(), (f - 1) / (f + 1)
    z, p = s * s, torch.full_like(s, 1 / 21)
    for i in range(19, 0, -2):
        p = p * z + 1 / i
    return e * log(2) - 2 * s * p


def arrived(x: Tensor) -> Tensor:
    """1 - e^-x for x >= 0, also infinite or NaN (0 times infinity: a rate of 0), as (1 - 2^-n) + 2^-n (1 - e^-r), x = n ln 2 + r."""
    x = torch.where(x < 700, x, 700.0)
    n = torch.floor(x * (1 / log(2)) + 0.5)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = torch.full_like(r, 1.0)
    for i in range(14, 1, -1):
        p = 1 - r / torch.full_like(r, i) * p  # by a number, a GPU would multiply with its rounded inverse
    scale = (1023 - n.long() << 52).view(torch.float64)
    return (1 - scale) + scale * (r * p)
