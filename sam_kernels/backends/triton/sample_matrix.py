# ruff: noqa: ANN001, ANN201, RET505 (what a kernel helper returns has no Python type; both arms of a compile-time branch return)
"""One matrix per sample and group inside of any strided tensor, read in tiles where it lies: nothing is unfolded, padded or copied.

The address of an element is a sum, base + sample + group + row + column, and row and column are mixed-radix numbers: the row of a
patch matrix has the digits (image, output pixel in each dimension), the column (channel, tap in each dimension), each digit with a
stride of its own. A linear layer has one digit each. So implicit GEMM needs no case of its own: a convolution differs in its digits.
Digits whose strides nest become one on the host; radices are compile-time, since a division by a constant is a multiplication.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


class Digits(NamedTuple):
    radices: tuple[int, ...]  # of all digits but the first
    strides: tuple[int, ...]  # of every digit, the fastest last


class Matrix(NamedTuple):
    """``[rows, columns]`` of every (sample, group) of ``tensor``; all strides in elements."""

    tensor: Tensor
    sample: int
    group: int
    rows: Digits
    columns: Digits
    reach: int  # a bound of every offset within one sample
    vectors: bool  # whether the compiler sees 16-byte loads along the columns; else every element keeps an address in registers

    @property
    def strides(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        return self.sample, self.group, self.rows.strides, self.columns.strides


def digits(sizes: Sequence[int], strides: Iterable[int]) -> Digits:
    """Mixed-radix digits, the fastest last; digits of one value are dropped, and neighbours whose strides nest are one."""
    kept: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if kept and kept[-1][1] == size * stride:
            kept[-1] = (kept[-1][0] * size, stride)
        else:
            kept.append((size, stride))
    return Digits(tuple(size for size, _ in kept[1:]), tuple(stride for _, stride in kept) or (1,))


def fastest_last(sizes: Sequence[int], strides: Sequence[int]) -> Digits:
    """Digits in whatever order reads memory best: for an axis that is only summed over."""
    order = sorted(range(len(sizes)), key=lambda i: -strides[i])
    return digits([sizes[i] for i in order], [strides[i] for i in order])


def matrix(tensor: Tensor, sample: int, group: int, groups: int, rows: Digits, columns: Digits, shape: tuple[int, int]) -> Matrix:
    """``shape``: numbers of rows and columns."""
    reach = abs(group) * groups
    for part, count in zip((rows, columns), shape, strict=True):
        sizes = (-(-count // prod(part.radices)), *part.radices)
        reach += sum(size * abs(stride) for size, stride in zip(sizes, part.strides, strict=True))
    *slower, fastest = columns.strides
    aligned = all(n % 16 == 0 for n in (shape[1], sample, group, *rows.strides, *slower, *columns.radices[-1:]))
    return Matrix(tensor, sample, group, rows, columns, reach, fastest == 1 and aligned)


@triton.jit
def offsets(index: tl.tensor, RADICES: tl.constexpr, strides, WIDE: tl.constexpr):
    """The offsets of the numbers ``index``, digit by digit; WIDE: a sample of more than 2^31 elements."""
    LAST: tl.constexpr = len(RADICES)
    rest = index.to(tl.int64) if WIDE else index
    if LAST == 0:
        return rest * strides[0]
    else:
        total = rest % RADICES[LAST - 1] * strides[LAST]
        rest = rest // RADICES[LAST - 1]
        for k in tl.static_range(1, LAST):
            total += rest % RADICES[LAST - 1 - k] * strides[LAST - k]
            rest = rest // RADICES[LAST - 1 - k]
        return total + rest * strides[0]


@triton.jit
def start_of(x: tl.tensor, strides, sample: tl.tensor, group: tl.tensor):
    return x + (sample.to(tl.int64) * strides[0] + group.to(tl.int64) * strides[1])


@triton.jit
def tile(base: tl.tensor, rows: tl.tensor, in_rows: tl.tensor, columns: tl.tensor, in_columns: tl.tensor):
    """Elements at offsets ``rows[:, None] + columns[None, :]``, 0 outside."""
    return tl.load(base + rows[:, None] + columns[None, :], mask=in_rows[:, None] & in_columns[None, :], other=0.0)


@triton.jit
def dot(x: tl.tensor, y: tl.tensor, total: tl.tensor, PRECISION: tl.constexpr):
    """``total + x y`` in fp32. The interpreter would multiply the bits of bf16, so it gets fp32 values, which are the same."""
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total)
    else:
        return tl.dot(x, y, total, input_precision=PRECISION)
