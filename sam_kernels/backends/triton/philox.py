# ruff: noqa: ANN201, RET505 (what a kernel helper returns has no Python type; both arms of a compile-time branch return)
"""Random signs in Triton, those of sam_kernels/ops/philox.py bit for bit; `tl.philox` on 32-bit counters is Philox4x32-10.

A program draws the words of its chunk at once, one for each of its 128 threads, which takes one run of the generator per thread and 32
elements; tiles then gather their words, through a few hundred bytes of shared memory. Drawn tile by tile it would be a run per 8
elements, and per element the generator would take longer than the memory.
"""

import triton
import triton.language as tl

from .table import CHUNK

WORDS = tl.constexpr(CHUNK // 32)


@triton.jit
def chunk_words(noise: tl.tensor, stream: tl.tensor, tensor: tl.tensor, chunk: tl.tensor):
    """The words of one chunk, the ``chunk``-th of its tensor: bit i % 32 of word i // 32 belongs to element i."""
    word = tl.arange(0, WORDS)
    block = (chunk * (WORDS // 4)).to(tl.uint32) + (word // 4).to(tl.uint32)
    state, zero = tl.load(noise + 1).to(tl.uint32), tl.zeros([WORDS], tl.uint32)
    x0, x1, x2, x3 = tl.philox(tl.load(noise), block, zero + tensor.to(tl.uint32), zero + stream.to(tl.uint32), zero + state)
    return tl.where(word % 4 < 2, tl.where(word % 4 == 0, x0, x1), tl.where(word % 4 == 2, x2, x3))


@triton.jit
def signs_of(words: tl.tensor, start: tl.tensor, size: tl.tensor, SIZE: tl.constexpr, FULL: tl.constexpr):
    """For the elements of a chunk from ``start`` on: +1 where their bit is set, else -1; 0 beyond the end."""
    index = start + tl.arange(0, SIZE)
    sign = tl.where(tl.gather(words, index // 32, 0) >> (index % 32).to(tl.uint32) & 1 != 0, 1.0, -1.0)
    if FULL:
        return sign
    else:
        return tl.where(index < size, sign, 0.0)
