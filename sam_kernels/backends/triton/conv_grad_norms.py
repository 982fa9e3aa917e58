"""conv_grad_norms in Triton: the kernels of sample_norms.py on patch matrices that exist as addresses only.

A patch matrix differs from a linear layer's input in its digits (sample_matrix.py): rows are (image, output pixel), columns (channel,
tap), each with the strides of x, so stride, dilation and groups cost nothing, and images of one sample are more rows. Both orders are
free, and columns take the one that reads memory best: 16-byte loads of channels-last tensors with a multiple of 16 channels; rows of a
contiguous x are read element by element, since padding shifts them.

``pixel_gram`` runs as ``gram`` here, with B T (T + 1) C k^2 FLOPs for the patches where pixels need B P (P + 1) C. Its Gram matrix R of P
padded pixels would have to stay on chip, and Triton offers registers only: at 256 pixels R fills all of a multiprocessor, and at 128 the
k^2 pairs of shifts (``tl.gather`` by rows, then by columns, each through shared memory: some 10 000 clocks for 9 taps) cost more than
the products they save (8 x 8 pixels, 640 channels, 3 x 3: some 6 000 clocks). Both are counts, not measurements.

dW is torch's own convolution backward, after the norms: its bits repeat where cuDNN's do (torch.use_deterministic_algorithms).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops.conv_grad_norms import reference, weight_grad
from .sample_launch import Problem, norms_and_bias
from .sample_matrix import Digits, Matrix, digits, fastest_last, matrix

Ints = Sequence[int]


def view_matrix(x: Tensor, samples: int, groups: int, out: Ints, moves: Ints, columns: Digits, width: int) -> Matrix:
    """Per sample and group of ``[N, channels, *spatial]`` the rows (image, output pixel), ``moves`` elements apart in each dimension."""
    image, channel = x.stride()[:2]
    sizes = (len(x) // samples, *out)
    rows = digits(sizes, (image, *moves))
    return matrix(x, sizes[0] * image, x.shape[1] // groups * channel, groups, rows, columns, (torch.Size(sizes).numel(), width))


def conv_grad_norms(
    x: Tensor, g: Tensor, samples: int, kernel: Ints, stride: Ints, dilation: Ints, groups: int, method: str, weight: bool, bias: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if x.numel() == 0 or g.numel() == 0:  # nothing to multiply
        return reference(x, g, samples, kernel, stride, dilation, groups, method, weight, bias, grads)
    out, steps, channels, outputs = g.shape[2:], x.stride()[2:], x.shape[1] // groups, g.shape[1] // groups
    taps = (channels, *kernel)
    patch = fastest_last(taps, (x.stride(1), *(s * d for s, d in zip(steps, dilation, strict=True))))
    T, d = len(x) // samples * out.numel(), torch.Size(taps).numel()
    moves = [s * m for s, m in zip(steps, stride, strict=True)]
    a = view_matrix(x, samples, groups, out, moves, patch, d)
    b = view_matrix(g, samples, groups, out, g.stride()[2:], digits((outputs,), (g.stride(1),)), outputs)

    def row_sums() -> Tensor:
        return g.sum(list(range(2, g.dim())), dtype=torch.float32).reshape(samples, -1, g.shape[1]).sum(1)

    norms, db = norms_and_bias(Problem(a, b, samples, groups, T, d, outputs), method, weight, bias, grads, row_sums)
    dw = weight_grad(x, g, kernel, stride, dilation, groups) if weight and grads else x.new_empty(0)
    return norms, dw, db
