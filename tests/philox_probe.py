"""One run of Triton's generator, on words from memory; see test_noise.py."""

import triton
import triton.language as tl


@triton.jit
def probe(arguments, out):  # int64 [seed, four words of the counter], int64 [4]
    c0, c1 = tl.load(arguments + 1).to(tl.uint32), tl.load(arguments + 2).to(tl.uint32)
    c2, c3 = tl.load(arguments + 3).to(tl.uint32), tl.load(arguments + 4).to(tl.uint32)
    x0, x1, x2, x3 = tl.philox(tl.load(arguments), c0, c1, c2, c3)
    tl.store(out, x0.to(tl.int64))
    tl.store(out + 1, x1.to(tl.int64))
    tl.store(out + 2, x2.to(tl.int64))
    tl.store(out + 3, x3.to(tl.int64))
