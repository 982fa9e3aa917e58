"""inner_products in Triton: partial sums of a fixed set of programs, then one small torch sum.

    out = (g.g, g.h, h.h, g.q, h.q, q.q),   x.y = sum_j c_j^2 x_j y_j,   c = 1, or |w| + eta

g, h and w are fp32, bf16 or fp16; q and the sums are fp32. Reads every present list once. Launch: min(chunks, PARTIALS) programs of
4 warps, program p taking the chunks p, p + programs, ... Deterministic: every lane adds its own elements in chunk order, the lanes
are then summed as a tree.
The running sums are tiles, not scalars, so that the loop holds no reduction across threads.
"""

# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.inner_products import reference
from .formulas import adaptive_scale, is_finite
from .table import LAUNCH, Table, numbers, table
from .tile import CHUNK, ELEMENTS, PARTIALS, TILE, G, H, Q, W, load, locate, total


@triton.jit
def add_products(
    gg: tl.tensor, gh: tl.tensor, hh: tl.tensor, gq: tl.tensor, hq: tl.tensor, qq: tl.tensor, at, start: tl.tensor, size: tl.tensor,
    eta: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_H: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The six running sums plus the products of one tile; absent lists add nothing."""
    c = adaptive_scale(load(at, W, start, size, T, FULL), eta, True) if WEIGHTED else 1.0
    g = load(at, G, start, size, T, FULL) * c if HAS_G else gg
    h = load(at, H, start, size, T, FULL) * c if HAS_H else gg
    q = load(at, Q, start, size, T, FULL) * c if HAS_Q else gg
    gg = tl.fma(g, g, gg) if HAS_G else gg
    gh = tl.fma(g, h, gh) if HAS_G and HAS_H else gh
    hh = tl.fma(h, h, hh) if HAS_H else hh
    gq = tl.fma(g, q, gq) if HAS_G and HAS_Q else gq
    hq = tl.fma(h, q, hq) if HAS_H and HAS_Q else hq
    qq = tl.fma(q, q, qq) if HAS_Q else qq
    return gg, gh, hh, gq, hq, qq


@triton.jit(do_not_specialize=["chunks"])
def inner_products_kernel(
    records: tl.tensor, tensor_of: tl.tensor, chunks: tl.tensor, partials: tl.tensor, etas: tl.tensor, T: tl.constexpr,
    HAS_G: tl.constexpr, HAS_H: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    eta = tl.load(etas)
    gg = tl.zeros([TILE], tl.float32)
    gh, hh, gq, hq, qq = gg, gg, gg, gg, gg
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        _, _, at, size, full = locate(records, tensor_of, chunk, T)
        if full:
            for start in range(0, CHUNK, TILE):
                gg, gh, hh, gq, hq, qq = add_products(gg, gh, hh, gq, hq, qq, at, start, size, eta, T, HAS_G, HAS_H, HAS_Q, WEIGHTED, True)
        else:
            for start in range(0, size, TILE):
                gg, gh, hh, gq, hq, qq = add_products(gg, gh, hh, gq, hq, qq, at, start, size, eta, T, HAS_G, HAS_H, HAS_Q, WEIGHTED, False)
    row = partials + tl.program_id(0)
    tl.store(row, tl.sum(gg))
    tl.store(row + PARTIALS, tl.sum(gh))
    tl.store(row + 2 * PARTIALS, tl.sum(hh))
    tl.store(row + 3 * PARTIALS, tl.sum(gq))
    tl.store(row + 4 * PARTIALS, tl.sum(hq))
    tl.store(row + 5 * PARTIALS, tl.sum(qq))


@triton.jit
def gram_entry(gram: tl.tensor, partials: tl.tensor, k: tl.constexpr, NEEDED: tl.constexpr, REDUCED: tl.constexpr):
    """One entry and whether it is usable; program 0 also writes what this call has reduced, which no program reads."""
    if REDUCED & (1 << k):
        value = total(partials, k, tl.minimum(tl.num_programs(0), PARTIALS))
        if tl.program_id(0) == 0:
            tl.store(gram + k, value)
    else:
        value = tl.load(gram + k) if NEEDED & (1 << k) else tl.zeros([], tl.float32)
    return value, is_finite(value)


@triton.jit
def gram_entries(gram: tl.tensor, partials: tl.tensor, NEEDED: tl.constexpr, REDUCED: tl.constexpr):
    """The six entries, and whether all of them are finite."""
    gg, a = gram_entry(gram, partials, 0, NEEDED, REDUCED)
    gh, b = gram_entry(gram, partials, 1, NEEDED, REDUCED)
    hh, c = gram_entry(gram, partials, 2, NEEDED, REDUCED)
    gq, d = gram_entry(gram, partials, 3, NEEDED, REDUCED)
    hq, e = gram_entry(gram, partials, 4, NEEDED, REDUCED)
    qq, f = gram_entry(gram, partials, 5, NEEDED, REDUCED)
    return (gg, gh, hh, gq, hq, qq), a & b & c & d & e & f


def launch(found: Table, dtype: torch.dtype, g: bool, h: bool, q: bool, weighted: bool = False, eta: float = 0.0) -> Tensor:
    """The [6][PARTIALS] partial sums of a table with chunks; those beyond the number of programs are not written."""
    device = found.records.device
    partials = torch.empty(6, PARTIALS.value, dtype=torch.float32, device=device)
    inner_products_kernel[(min(found.chunks, PARTIALS.value),)](
        found.records, found.tensor_of, found.chunks, partials, numbers(device, (eta,)), ELEMENTS[dtype], g, h, q, weighted, **LAUNCH
    )
    return partials


def reduce_gram(found: Table, dtype: torch.dtype, entries: int) -> Tensor:
    """Partial sums of the Gram entries in the mask, reading only the lists that they mention."""
    return launch(found, dtype, bool(entries & 0b001011), bool(entries & 0b010110), bool(entries & 0b111000))


def inner_products(g: list[Tensor], h: list[Tensor], q: list[Tensor], weights: list[Tensor], eta: float) -> Tensor:
    if not any(x.numel() for x in g or h or q):
        return reference(g, h, q, weights, eta)
    found = table(g=g, h=h, q=q, w=weights)
    partials = launch(found, (g or h or q)[0].dtype, bool(g), bool(h), bool(q), bool(weights), eta)
    return partials[:, : min(found.chunks, PARTIALS.value)].sum(1)
