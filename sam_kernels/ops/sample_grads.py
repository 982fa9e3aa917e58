"""Each sample's own gradient, formed and kept, where it is smaller than the inputs and output gradients that it is made of.

A row of the result is the weight gradient of one sample, then its bias gradient. The norms are those of the rows, and any weighted sum of
samples is one product with the rows: what the norms have cost is then all that the gradient costs. fp32 and fp64 only, because products
of halves would have to be rounded.
"""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

Ints = Sequence[int]
SCRATCH = 1 << 21  # bytes at a time on the CPU: a few pieces of this size fit the second-level caches of the cores


def spans(samples: int, elements: int, itemsize: int) -> Iterator[slice]:
    """The batch in pieces of at least one sample whose ``elements`` together fit the scratch."""
    step = max(1, SCRATCH // max(1, elements * itemsize))
    return (slice(begin, min(begin + step, samples)) for begin in range(0, samples, step))


def windows(x: Tensor, out: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Tensor:
    """View ``[N, C, *kernel, *out]`` of x ``[N, C, *spatial]``: what every tap of the kernel sees."""
    steps = x.stride()[2:]
    taps = [s * d for s, d in zip(steps, dilation, strict=True)]
    moves = [s * d for s, d in zip(steps, stride, strict=True)]
    return x.as_strided((*x.shape[:2], *kernel, *out), (*x.stride()[:2], *taps, *moves), x.storage_offset())


def linear_sample_grads(a: Tensor, g: Tensor, bias: bool) -> Tensor:
    """``[B, p d (+ p)]`` of inputs ``[B, T, d]`` and output gradients ``[B, T, p]``."""
    products = torch.bmm(g.mT, a).flatten(1)
    return torch.cat((products, g.sum(1)), 1) if bias else products


def conv_sample_grads(x: Tensor, g: Tensor, kernel: Ints, stride: Ints, dilation: Ints, groups: int, bias: bool) -> Tensor:
    """``[N, O d (+ O)]`` of inputs ``[N, C, *spatial]``, padded, and output gradients ``[N, O, *out]``; d taps and channels of a group."""
    out, outputs = g.shape[2:], g.shape[1]
    positions, depth = prod(out), x.shape[1] // groups * prod(kernel)
    rows = x.new_empty(len(x), outputs * (depth + 1 if bias else depth))
    for at in spans(len(x), groups * depth * positions, x.element_size()) if x.device.type == "cpu" else (slice(0, len(x)),):
        patches = windows(x[at], out, kernel, stride, dilation).reshape(-1, depth, positions)
        left = g[at].reshape(len(patches), -1, positions)
        rows[at, : outputs * depth] = torch.bmm(left, patches.mT).view(at.stop - at.start, -1)
        if bias:
            rows[at, outputs * depth :] = left.sum(2).view(-1, outputs)
    return rows
