# ruff: noqa: ANN001, ANN201 (what a kernel helper returns has no Python type)
"""draw in Triton; the formulas are those of ops/draw_reference.py, to the bit, in draw_formulas.py.

    W = sum_j q_j,   E counts_i = k q_i / W,   inclusion_i = counts_i / E counts_i,   q_i = floor(w_i 2^s)

Up to 4096 weights, a batch, go to one program of 8 warps: its launch costs more than what it reads, from L1 after the first time, and a
second would double that. Longer lists: draw_parts.py. Deterministic: all sums are of integers, also those of atomics. Nothing is read
back to the host. The k-th arrival time is found bit by bit: 63 counts of some hundred cycles, less than the launches of a sort.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draw_formulas import lot_of
from .draw_parts import OPTIONS, TILE, draw_in_parts
from .draw_phases import bernoulli, cumulate, divide, mass, peak, race, rank, select, settle, systematic, throw
from .tile import bits

WHOLE = 4096  # weights, and draws of the multinomial scheme, that one program takes


@triton.jit(do_not_specialize=["count", "k", "length"])
def whole_kernel(weights, state, work, counts, inclusion, flag, count, k, length, SCHEME: tl.constexpr, TILE: tl.constexpr):
    top, bad = peak(weights, count, TILE)
    tl.store(flag, tl.where(top == 0, 2, bad))
    lot, out = lot_of(weights, count, top, length), (counts, inclusion)
    zero = tl.full([], 0, tl.int64)
    total = zero if SCHEME == "top_k" else mass(lot, TILE)
    if SCHEME == "systematic":
        systematic(lot, out, state, zero, total, k, TILE)
    if SCHEME == "bernoulli":
        bernoulli(lot, out, state, zero, total, k, TILE)
    if SCHEME == "multinomial":
        cumulate(lot, counts, work, zero, TILE)
        tl.debug_barrier()
        for j in range(0, k, TILE):
            throw(counts, work, state, zero + j, total, count, k, length, TILE)
        tl.debug_barrier()
        divide(lot, out, total, k, TILE)
    if SCHEME == "top_k":
        race(lot, work, state, zero, TILE)
        tl.debug_barrier()
        last = select(work, count, k, TILE)
        settle(lot, out, work, last, zero, rank(work, count, last, TILE), k, TILE)


def draw(weights: Tensor, k: int, scheme: str, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, device = len(weights), weights.device
    counts, inclusion = (torch.empty(n, dtype=dtype, device=device) for dtype in (torch.int32, torch.float32))
    flag = torch.zeros((), dtype=torch.int32, device=device)
    if not n:
        return counts, inclusion, flag
    scheme = scheme if k else "systematic"  # which draws none where others would divide by 0
    kept = {"multinomial": torch.int64, "top_k": torch.float64}.get(scheme)
    work = None if kept is None else torch.empty(n, dtype=kept, device=device)
    if n <= WHOLE and (scheme != "multinomial" or k <= WHOLE):
        length = (n - 1).bit_length()
        whole_kernel[(1,)](bits(weights), state, work, counts, inclusion, flag, n, k, length, scheme, TILE, **OPTIONS)
    else:
        draw_in_parts(bits(weights), k, scheme, state, work, counts, inclusion, flag)
    return counts, inclusion, flag
