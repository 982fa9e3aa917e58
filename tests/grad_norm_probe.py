"""A kernel that shows what ``pair_of`` returns. Of its own module: only what needs Triton imports it."""

import triton
import triton.language as tl

from sam_kernels.backends.triton.sample_norms import pair_of


@triton.jit
def pairs_kernel(index, out, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    i, j = pair_of(tl.load(index + lane))
    tl.store(out + lane, i)
    tl.store(out + SIZE + lane, j)
