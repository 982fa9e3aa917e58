# ruff: noqa: ANN201, RET505 (what a kernel helper returns has no Python type; both arms of a compile-time branch return)
"""Device side of the table: find a chunk, read and write its tiles, sum partial sums. Used by every kernel.

A tile that is full and whose operands all start at multiples of 16 bytes takes the branch FULL, without a mask and with the
alignment told to the compiler: 16-byte accesses. Every other tile is masked and moves element by element. The hint counts only
after the cast to pointer, and belongs to the value it is given to; so each branch makes its own cast.
"""

import triton
import triton.language as tl

from . import table

RECORD = tl.constexpr(len(table.RECORD))
W, STASH, H, G, Q, STATE, NUMEL, FIRST_CHUNK, GROUP, ALIGNED = (tl.constexpr(i) for i in range(len(table.RECORD)))
CHUNK = tl.constexpr(table.CHUNK)
TILE = tl.constexpr(table.TILE)
PARTIALS = tl.constexpr(table.PARTIALS)


@triton.jit
def locate(records: tl.tensor, tensor_of: tl.tensor, chunk: tl.tensor):
    """(tensor, its group, address of the chunk in every operand, its elements, whether it is full and aligned)."""
    tensor = tl.load(tensor_of + chunk)
    record = records + tensor.to(tl.int64) * RECORD
    begin = (chunk - tl.load(record + FIRST_CHUNK)) * CHUNK  # 64-bit, as all offsets but those within a chunk
    size = tl.minimum(tl.load(record + NUMEL) - begin, CHUNK).to(tl.int32)
    at = (
        tl.load(record + W) + begin * 4,
        tl.load(record + STASH) + begin * 4,
        tl.load(record + H) + begin * 4,
        tl.load(record + G) + begin * 4,
        tl.load(record + Q) + begin * 4,
        tl.load(record + STATE) + begin * 4,
    )
    return tensor, tl.load(record + GROUP), at, size, (size == CHUNK) & (tl.load(record + ALIGNED) != 0)


@triton.jit
def load(address: tl.tensor, start: tl.tensor, size: tl.tensor, FULL: tl.constexpr):
    index = start + tl.arange(0, TILE)
    if FULL:
        return tl.load(tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16) + index)
    else:
        return tl.load(address.to(tl.pointer_type(tl.float32)) + index, mask=index < size, other=0.0)


@triton.jit
def store(address: tl.tensor, value: tl.tensor, start: tl.tensor, size: tl.tensor, FULL: tl.constexpr):
    index = start + tl.arange(0, TILE)
    if FULL:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16) + index, value)
    else:
        tl.store(address.to(tl.pointer_type(tl.float32)) + index, value, mask=index < size)


@triton.jit
def total(partials: tl.tensor, row: tl.constexpr, programs: tl.tensor):
    """The sum of one row of partial sums, in an order that depends on nothing."""
    lane = tl.arange(0, PARTIALS)
    return tl.sum(tl.load(partials + row * PARTIALS + lane, mask=lane < programs, other=0.0))
