# ruff: noqa: ANN001, ANN201 (what a kernel helper returns has no Python type)
"""draw in Triton for lists that are too long for one program: a launch per phase, at most 1024 programs of equally many tiles.

Largest exponent (reads w), sum of the integers (reads w), then what the scheme asks: systematic and bernoulli read w and write 8 bytes
per weight; multinomial writes the cumulative sums, 8 bytes, searches them once per draw, counts by integer atomics, and reads w again;
top_k writes its arrival times, 8 bytes, which torch sorts, and reads them twice. What lies before a program it adds up from the partial
sums of all, a few kilobytes in L2. Deterministic: all sums are of integers. Nothing is read back to the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draw_formulas import lot_of
from .draw_phases import bernoulli, cumulate, divide, mass, peak, race, rank, settle, systematic, throw
from .table import LAUNCH

TILE, PARTS = 1024, 1024  # weights of a tile, most programs
OPTIONS = {**LAUNCH, "num_warps": 8}
_VARY = ["count", "k", "length", "span", "parts"]


@triton.jit
def share(count, span):
    """(first weight of this program, how many it has)"""
    begin = tl.program_id(0).to(tl.int64) * span
    return begin, tl.minimum(count - begin, span).to(tl.int32)


@triton.jit
def gathered(partials, parts, PARTS: tl.constexpr):
    """(sum over the programs before this one, sum over all)"""
    lane = tl.arange(0, PARTS)
    values = tl.load(partials + lane, mask=lane < parts, other=0)
    return tl.sum(tl.where(lane < tl.program_id(0), values, 0)), tl.sum(values)


@triton.jit
def highest(tops, parts, PARTS: tl.constexpr):
    lane = tl.arange(0, PARTS)
    values = tl.load(tops + lane, mask=lane < parts, other=0)
    return tl.max(values & 0xFF), tl.max(values >> 8)


@triton.jit(do_not_specialize=_VARY)
def peak_kernel(weights, tops, count, span, TILE: tl.constexpr):
    begin, size = share(count, span)
    top, bad = peak(weights + begin, size, TILE)
    tl.store(tops + tl.program_id(0), top | bad << 8)


@triton.jit(do_not_specialize=_VARY)
def mass_kernel(weights, tops, sums, flag, count, length, span, parts, TILE: tl.constexpr, PARTS: tl.constexpr):
    begin, size = share(count, span)
    top, bad = highest(tops, parts, PARTS)
    tl.store(sums + tl.program_id(0), mass(lot_of(weights + begin, size, top, length), TILE))
    tl.store(flag, tl.where(top == 0, 2, bad), mask=tl.program_id(0) == 0)


@triton.jit(do_not_specialize=_VARY)
def part_kernel(
    weights, state, tops, sums, ranks, last, work, counts, inclusion, count, k, length, span, parts,
    PHASE: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    begin, size = share(count, span)
    lot = lot_of(weights + begin, size, highest(tops, parts, PARTS)[0], length)
    before, total = gathered(sums, parts, PARTS)
    out = counts + begin, inclusion + begin
    if PHASE == "systematic":
        systematic(lot, out, state, before, total, k, TILE)
    if PHASE == "bernoulli":
        bernoulli(lot, out, state, begin, total, k, TILE)
    if PHASE == "cumulate":
        cumulate(lot, out[0], work + begin, before, TILE)
    if PHASE == "divide":
        divide(lot, out, total, k, TILE)
    if PHASE == "race":
        race(lot, work + begin, state, begin, TILE)
    if PHASE == "rank":
        tl.store(ranks + tl.program_id(0), rank(work + begin, size, tl.load(last), TILE))
    if PHASE == "settle":
        tied_before, ranked = gathered(ranks, parts, PARTS)
        settle(lot, out, work + begin, tl.load(last), tied_before, ranked, k, TILE)


@triton.jit(do_not_specialize=_VARY)
def throw_kernel(state, sums, cdf, counts, count, k, length, parts, TILE: tl.constexpr, PARTS: tl.constexpr):
    total = gathered(sums, parts, PARTS)[1]
    throw(counts, cdf, state, tl.program_id(0).to(tl.int64) * TILE, total, count, k, length, TILE)


def draw_in_parts(
    weights: Tensor, k: int, scheme: str, state: Tensor, work: Tensor | None, counts: Tensor, inclusion: Tensor, flag: Tensor
) -> None:
    n, device = len(weights), weights.device
    length = (n - 1).bit_length()
    span = triton.cdiv(triton.cdiv(n, TILE), PARTS) * TILE
    parts = triton.cdiv(n, span)
    tops, sums, ranks = (torch.empty(parts, dtype=dtype, device=device) for dtype in (torch.int32, torch.int64, torch.int64))
    last = torch.full((), torch.inf, dtype=torch.float64, device=device)

    def run(phase: str) -> None:
        part_kernel[(parts,)](
            weights, state, tops, sums, ranks, last, work, counts, inclusion, n, k, length, span, parts, phase, TILE, PARTS, **OPTIONS
        )

    peak_kernel[(parts,)](weights, tops, n, span, TILE, **OPTIONS)
    mass_kernel[(parts,)](weights, tops, sums, flag, n, length, span, parts, TILE, PARTS, **OPTIONS)
    if scheme == "multinomial":
        run("cumulate")
        throw_kernel[(triton.cdiv(k, TILE),)](state, sums, work, counts, n, k, length, parts, TILE, PARTS, **OPTIONS)
        run("divide")
    elif work is not None:
        run("race")
        if k < n:
            last = torch.sort(work)[0][k]
        run("rank")
        run("settle")
    else:
        run(scheme)
