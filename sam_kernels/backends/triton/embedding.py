"""embedding_grad_norms in Triton: runs of equal ids, added up in registers and squared.

    out_b = sum_v |sum_{t: ids_bt = v} g_bt|^2,   v other than the padding

torch sorts the ids of every sample and finds where each run ends. A program owns the runs that begin in CHUNK sorted positions of a
sample, for WIDTH features, and walks them ROWS positions at a time, so that so many loads are under way. Reads g once, in fp32, bf16 or
fp16, plus 24 bytes of ids per position and program; writes one partial sum per program. Launch: (samples x chunks, slices of features),
32 threads per 256 features. Deterministic: the sort is stable, a run is added in the order of its positions, partial sums in one order.
Sums of runs and not a masked Gram matrix: T x T products of which nearly all would be masked away, and a Gram cancels where a run does.
A run that is longer than a chunk is walked by one program alone: padding that is not declared as such costs time.
"""

# ruff: noqa: ANN201 (a kernel returns nothing)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import bits, widen

CHUNK, ROWS, WIDEST = 64, 8, 1024


@triton.jit(do_not_specialize=["length", "padding"])
def runs_kernel(
    g: tl.tensor, ids: tl.tensor, order: tl.tensor, ends: tl.tensor, partial: tl.tensor, length: tl.tensor, features: tl.tensor,
    padding: tl.tensor, CHUNK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``ids`` sorted per sample, ``order`` their positions, ``ends`` the end of the run that each belongs to."""
    chunks = tl.cdiv(length, CHUNK)
    sample, lowest = (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks * CHUNK
    base, highest = sample * length, tl.minimum(lowest + CHUNK, length)
    begin = tl.load(ends + base + lowest - 1, mask=lowest > 0, other=0).to(tl.int32)  # what began before belongs to another program
    end = tl.load(ends + base + highest - 1).to(tl.int32)
    feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    square = tl.zeros([WIDTH], tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for start in range(begin, end, ROWS):
        for k in tl.static_range(ROWS):
            t = start + k
            used = t < end
            run_end = tl.load(ends + base + t, mask=used, other=0)
            counts = used & ((padding < 0) | (tl.load(ids + base + t, mask=used, other=0) != padding))
            row = (base + tl.load(order + base + t, mask=used, other=0)) * features
            total += widen(tl.load(g + row + feature, mask=counts & (feature < features), other=0))
            closed = t + 1 == run_end
            square += tl.where(closed, total * total, 0.0)
            total = tl.where(closed, 0.0, total)
    tl.store(partial + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1), tl.sum(square))


def embedding_grad_norms(ids: Tensor, g: Tensor, padding_idx: int) -> Tensor:
    (samples, length, features) = g.shape
    if not g.numel():
        return g.new_zeros(samples, dtype=torch.float32)
    tokens, order = torch.sort(ids, dim=1, stable=True)
    ends = torch.searchsorted(tokens, tokens, right=True)
    width = min(triton.next_power_of_2(features), WIDEST)
    chunks, slices = -(-length // CHUNK), -(-features // width)
    partial = g.new_empty((samples, chunks * slices), dtype=torch.float32)
    runs_kernel[(samples * chunks, slices)](
        bits(g), tokens, order, ends, partial, length, features, padding_idx, CHUNK, ROWS, width, num_warps=max(1, width // 256)
    )
    return partial.sum(1)
