"""normalization_grads in Triton: dx in the same pass as each sample's sums, then one small sum over pieces.

    xhat = (x - mean) rstd,   h = grad weight,   dx = rstd (h - xhat avg(h xhat) - avg(h));   rows[b] = sums of (grad xhat, grad)

All arithmetic in fp32. Two kernels:
``rows_kernel``, one position and at most MOST channels (LayerNorm, RMSNorm): a program owns a run of entries of one sample in one group,
holds whole rows in registers and adds up [ROWS, WIDTH] tiles of the affine gradients. Reads grad and x once, writes dx once; partial sums
add 16 bytes per channel and LEAST or more entries. About PROGRAMS programs of 4 to 16 warps.
``maps_kernel``, everything else (GroupNorm, InstanceNorm): a program owns one (entry, group) and sweeps it twice, in tiles
[CHANNELS, POSITIONS]; the second sweep finds what the first has read in L2 as long as the groups in flight fit there.
Deterministic: the pieces follow from the sizes alone, whatever the GPU, and their partial sums are added in one order.
Few samples with few large groups leave a GPU idle: a map is not split, since dx needs its sums before anything is written.
"""

# ruff: noqa: ANN001, ANN201 (tuples of tiles have no useful annotation)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tile import bits, narrow, widen

MOST, PROGRAMS, LEAST = 8192, 1024, 16  # channels of a row in registers; programs aimed at; entries of a run, where there are enough
TILE = 1024  # elements that a program holds of each operand, unless a row is longer: one 16-byte vector of a half type per thread


@triton.jit(do_not_specialize=["own", "run", "runs"])
def rows_kernel(
    grad: tl.tensor, x: tl.tensor, mean: tl.tensor, rstd: tl.tensor, weight: tl.tensor, dx: tl.tensor, partial: tl.tensor, own: tl.tensor,
    run: tl.tensor, runs: tl.tensor, groups: tl.tensor, channels: tl.tensor, COUPLED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``own`` entries of a sample in ``runs`` of ``run`` entries; mean and weight may be None."""
    piece, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    first = piece // runs * own + piece % runs * run
    last = tl.minimum(first + run, (piece // runs + 1) * own)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    affine = group.to(tl.int64) * channels + channel
    w = widen(tl.load(weight + affine, mask=inside, other=0)) if weight is not None else tl.full([WIDTH], 1.0, tl.float32)
    scale = tl.zeros([ROWS, WIDTH], tl.float32)
    shift = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(first, last, ROWS):
        entry = start + tl.arange(0, ROWS)
        at = entry.to(tl.int64) * groups + group
        mask = (entry < last)[:, None] & inside[None, :]
        offset = at[:, None] * channels + channel[None, :]
        g = widen(tl.load(grad + offset, mask=mask, other=0))
        values = widen(tl.load(x + offset, mask=mask, other=0))
        r = tl.load(rstd + at, mask=entry < last, other=0.0)[:, None]
        centred = values - tl.load(mean + at, mask=entry < last, other=0.0)[:, None] if mean is not None else values
        xhat = centred * r
        scale += g * xhat
        shift += g
        h = g * w[None, :]
        out = h
        if COUPLED:
            out -= xhat * (tl.sum(h * xhat, 1) / channels)[:, None]
            if mean is not None:
                out -= (tl.sum(h, 1) / channels)[:, None]
        tl.store(dx + offset, narrow(out * r, dx.dtype.element_ty), mask=mask)
    row = partial + piece.to(tl.int64) * 2 * groups * channels + affine
    tl.store(row, tl.sum(scale, 0), mask=inside)
    tl.store(row + groups * channels, tl.sum(shift, 0), mask=inside)


@triton.jit
def tile_at(start, c0, s0, channels: tl.tensor, positions: tl.tensor, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    channel, position = c0 + tl.arange(0, CHANNELS), s0 + tl.arange(0, POSITIONS)
    mask = (channel < channels)[:, None] & (position < positions)[None, :]
    return start + channel.to(tl.int64)[:, None] * positions + position[None, :], mask


@triton.jit
def maps_kernel(
    grad: tl.tensor, x: tl.tensor, mean: tl.tensor, rstd: tl.tensor, weight: tl.tensor, dx: tl.tensor, partial: tl.tensor,
    groups: tl.tensor, channels: tl.tensor, positions: tl.tensor, COUPLED: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    entry, group, start = at // groups, at % groups, at * channels * positions
    r = tl.load(rstd + at)
    m = tl.load(mean + at) if mean is not None else r * 0
    row = partial + (entry * 2 * groups + group) * channels
    sum_gx, sum_g = r * 0, r * 0
    for c0 in range(0, channels, CHANNELS):
        scale = tl.zeros([CHANNELS, POSITIONS], tl.float32)
        shift = tl.zeros([CHANNELS, POSITIONS], tl.float32)
        for s0 in range(0, positions, POSITIONS):
            offset, mask = tile_at(start, c0, s0, channels, positions, CHANNELS, POSITIONS)
            g = widen(tl.load(grad + offset, mask=mask, other=0))
            scale += g * (widen(tl.load(x + offset, mask=mask, other=0)) - m)
            shift += g
        channel = c0 + tl.arange(0, CHANNELS)
        of_scale, of_shift = tl.sum(scale, 1) * r, tl.sum(shift, 1)
        tl.store(row + channel, of_scale, mask=channel < channels)
        tl.store(row + groups * channels + channel, of_shift, mask=channel < channels)
        w = widen(tl.load(weight + group * channels + channel, mask=channel < channels, other=0)) if weight is not None else 1.0
        sum_gx += tl.sum(w * of_scale)
        sum_g += tl.sum(w * of_shift)
    size = channels * 1.0 * positions
    pull, push = -r * r * (sum_gx / size), -r * (sum_g / size) if mean is not None else r * 0
    for c0 in range(0, channels, CHANNELS):
        channel = c0 + tl.arange(0, CHANNELS)
        w = widen(tl.load(weight + group * channels + channel, mask=channel < channels, other=0)) if weight is not None else 1.0
        factor = (w * r + tl.zeros([CHANNELS], tl.float32))[:, None]
        for s0 in range(0, positions, POSITIONS):
            offset, mask = tile_at(start, c0, s0, channels, positions, CHANNELS, POSITIONS)
            out = widen(tl.load(grad + offset, mask=mask, other=0)) * factor
            if COUPLED:
                out += (widen(tl.load(x + offset, mask=mask, other=0)) - m) * pull + push
            tl.store(dx + offset, narrow(out, dx.dtype.element_ty), mask=mask)


def normalization_grads(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, samples: int, coupled: bool
) -> tuple[Tensor, Tensor]:
    (n, groups, channels, positions), dx = x.shape, torch.empty_like(x)
    if not x.numel():
        return dx, x.new_zeros(samples, 2, groups * channels, dtype=torch.float32)
    own = n // samples
    operands = (bits(grad), bits(x), mean if mean.numel() else None, rstd, None if weight is None else bits(weight), bits(dx))
    if positions == 1 and channels <= MOST:
        width = triton.next_power_of_2(channels)
        run = max(-(-own // max(1, PROGRAMS // (samples * groups))), LEAST)
        pieces = -(-own // run)
        partial = x.new_empty((samples, pieces, 2, groups * channels), dtype=torch.float32)
        rows, warps = max(1, TILE // width), min(max(width // 256, 4), 16)
        rows_kernel[(samples * pieces * groups,)](
            *operands, partial, own, run, pieces, groups, channels, coupled, min(rows, triton.next_power_of_2(own)), width, num_warps=warps
        )
    else:
        pieces = own
        partial = x.new_empty((samples, own, 2, groups * channels), dtype=torch.float32)
        wide = min(triton.next_power_of_2(positions), TILE)
        tall = min(triton.next_power_of_2(channels), TILE // wide)
        maps_kernel[(n * groups,)](*operands, partial, groups, channels, positions, coupled, tall, wide, num_warps=4)
    return dx, partial.sum(1) if pieces > 1 else partial.squeeze(1)
