# ruff: noqa: ANN001, ANN201, RET505 (what a kernel helper returns has no Python type; both arms of a compile-time branch return)
"""Device side of the table: find a chunk, read and write its tiles, sum partial sums. Used by every kernel.

T is the element type of w, stash, h and g; q and the state are fp32, and so is all arithmetic. `load` and `store` convert, `read` and
`write` move the stored bits. bf16 is T = bfloat16 where it is compiled and T = uint16, its bits, in the interpreter, which truncates
where GPUs and torch round to nearest even.

A tile that is full and whose operands all start at multiples of 16 bytes takes the branch FULL, without a mask and with the
alignment told to the compiler: 16-byte accesses. Every other tile is masked and moves element by element. The hint counts only
after the cast to pointer, and belongs to the value it is given to; so each branch makes its own cast.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table

RECORD = tl.constexpr(len(table.RECORD))
W, STASH, H, G, Q, M, V, V_MAX, NUMEL, FIRST_CHUNK, GROUP, ALIGNED = (tl.constexpr(i) for i in range(len(table.RECORD)))
CHUNK = tl.constexpr(table.CHUNK)
TILE = tl.constexpr(table.TILE)
PARTIALS = tl.constexpr(table.PARTIALS)
ELEMENTS = {
    torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.uint16 if triton.knobs.runtime.interpret else tl.bfloat16,
}  # fmt: skip


def bits(x: Tensor) -> Tensor:
    """``x`` as kernels take it: bf16 in the interpreter as its bits."""
    return x.view(torch.uint16) if ELEMENTS[x.dtype] == tl.uint16 else x


@triton.jit
def locate(records: tl.tensor, tensor_of: tl.tensor, chunk: tl.tensor, T: tl.constexpr):
    """(tensor, its group, address of the chunk in every operand, its elements, whether it is full and aligned)."""
    tensor = tl.load(tensor_of + chunk)
    record = records + tensor.to(tl.int64) * RECORD
    begin = (chunk - tl.load(record + FIRST_CHUNK)) * CHUNK  # 64-bit, as all offsets but those within a chunk
    size = tl.minimum(tl.load(record + NUMEL) - begin, CHUNK).to(tl.int32)
    stored, wide = begin * (T.primitive_bitwidth // 8), begin * 4
    at = (
        tl.load(record + W) + stored,
        tl.load(record + STASH) + stored,
        tl.load(record + H) + stored,
        tl.load(record + G) + stored,
        tl.load(record + Q) + wide,
        tl.load(record + M) + wide,
        tl.load(record + V) + wide,
        tl.load(record + V_MAX) + wide,
    )
    return tensor, tl.load(record + GROUP), at, size, (size == CHUNK) & (tl.load(record + ALIGNED) != 0)


@triton.jit
def pointers(at, OPERAND: tl.constexpr, index: tl.tensor, T: tl.constexpr, FULL: tl.constexpr):
    ELEMENT: tl.constexpr = T if OPERAND < Q else tl.float32
    first = at[OPERAND].to(tl.pointer_type(ELEMENT))
    if FULL:
        return tl.multiple_of(first, 16) + index
    else:
        return first + index


@triton.jit
def read(at, OPERAND: tl.constexpr, start: tl.tensor, size: tl.tensor, T: tl.constexpr, FULL: tl.constexpr):
    index = start + tl.arange(0, TILE)
    if FULL:
        return tl.load(pointers(at, OPERAND, index, T, FULL))
    else:
        return tl.load(pointers(at, OPERAND, index, T, FULL), mask=index < size, other=0)


@triton.jit
def write(at, OPERAND: tl.constexpr, value: tl.tensor, start: tl.tensor, size: tl.tensor, T: tl.constexpr, FULL: tl.constexpr):
    index = start + tl.arange(0, TILE)
    if FULL:
        tl.store(pointers(at, OPERAND, index, T, FULL), value)
    else:
        tl.store(pointers(at, OPERAND, index, T, FULL), value, mask=index < size)


@triton.jit
def widen(x: tl.tensor):
    if x.dtype.is_int():
        return (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x: tl.tensor, T: tl.constexpr):
    """fp32 rounded to nearest even."""
    if T.is_int():
        bits = x.to(tl.uint32, bitcast=True)
        return tl.where(x != x, 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).to(tl.uint16)
    else:
        return x.to(T)


@triton.jit
def load(at, OPERAND: tl.constexpr, start: tl.tensor, size: tl.tensor, T: tl.constexpr, FULL: tl.constexpr):
    return widen(read(at, OPERAND, start, size, T, FULL))


@triton.jit
def store(at, OPERAND: tl.constexpr, value: tl.tensor, start: tl.tensor, size: tl.tensor, T: tl.constexpr, FULL: tl.constexpr):
    write(at, OPERAND, narrow(value, T) if OPERAND < Q else value, start, size, T, FULL)


@triton.jit
def load_if(used: tl.tensor, at, OPERAND: tl.constexpr, start: tl.tensor, size: tl.tensor, FULL: tl.constexpr):
    """A tile of q or of the state, or zeros: nothing is read where it is not ``used``."""
    index = start + tl.arange(0, TILE)
    if FULL:
        return tl.load(pointers(at, OPERAND, index, tl.float32, FULL), mask=used, other=0.0)
    else:
        return tl.load(pointers(at, OPERAND, index, tl.float32, FULL), mask=index < tl.where(used, size, 0), other=0.0)


@triton.jit
def total(partials: tl.tensor, row: tl.constexpr, programs: tl.tensor):
    """The sum of one row of partial sums, in an order that depends on nothing."""
    lane = tl.arange(0, PARTIALS)
    return tl.sum(tl.load(partials + row * PARTIALS + lane, mask=lane < programs, other=0.0))
