"""``linear_grad_norms`` and ``conv_grad_norms`` on the CPU: torch's GEMMs over as many samples at a time as keep the product in cache,
and C++ for the sums behind them. Neither B weight gradients nor the Gram matrices of a batch exist at once.

With ``grads`` the direct method is almost free: the weight gradient is the sum of the products that it makes anyway.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ...ops.conv_grad_norms import weight_grad
from ...ops.lists import accumulator
from ...ops.sample_grads import spans, windows
from .call import native

SCHEMAS = {
    "row_dots": "(Tensor x, Tensor y, Tensor(a!) out) -> ()",
    "pixel_gram": "(Tensor r, Tensor k, Tensor(a!) out, int[] geometry) -> ()",
}
CPU_ONLY = ("linear_grad_norms", "conv_grad_norms")
TILE = 64  # positions: Gram matrices are formed in tiles of about this width, and of two mirrored tiles one
Ints = Sequence[int]


Operand = Callable[[slice], Tensor]  # a piece of the batch as matrices [pieces of it times groups, width, positions], Acc


def row_dots(x: Tensor, y: Tensor, rows: int) -> Tensor:
    """``[rows]``: the products of the rows of x and y, each read once."""
    out = x.new_empty(rows)
    native("row_dots")(x.contiguous(), y.contiguous(), out)
    return out


def direct(a: Operand, g: Operand, at: slice, rows: int, total: Tensor | None) -> Tensor:
    """Forms the products of a piece, squares them, and adds them to ``total``."""
    left, right = g(at), a(at)
    products = torch.bmm(left, right.mT)
    if total is not None:
        total += products.view(rows, *total.shape).sum(0) if rows > 1 else products.view(total.shape)
    return row_dots(products, products, rows)


def tile(positions: int) -> int:
    """The width of equal tiles: a narrow last one would read both operands again for little."""
    return max(1, -(-positions // max(1, round(positions / TILE))))


def gram(a: Operand, g: Operand, at: slice, rows: int) -> Tensor:
    """Gram matrices of a piece, tile by tile of their upper triangle."""
    left, right = g(at), a(at)
    norms = left.new_zeros(rows)
    width = tile(left.shape[2])
    starts = range(0, left.shape[2], width)
    for i in starts:
        for j in starts[i // width :]:
            products, others = (torch.bmm(x[:, :, i : i + width].mT, x[:, :, j : j + width]) for x in (left, right))
            norms.add_(row_dots(products, others, rows), alpha=1 if i == j else 2)
    return norms.clamp_(min=0)  # differences of rounding may fall below


def linear_grad_norms(a: Tensor, g: Tensor, method: str, weight: bool, bias: bool, grads: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype, low = accumulator(a.dtype), a.dtype
    (samples, positions, d), p = a.shape, g.shape[2]
    norms, dw, db = a.new_zeros(samples, dtype=dtype), a.new_empty(0), a.new_empty(0)
    if positions == 1:
        squares = row_dots(g.to(dtype), g.to(dtype), samples)
        norms = squares * (row_dots(a.to(dtype), a.to(dtype), samples) + float(bias)) if weight else squares if bias else norms
        db = g.sum((0, 1), dtype=dtype).to(low) if bias and grads else db
    elif weight:
        total = a.new_zeros((p, d), dtype=dtype) if grads and method == "direct" else None
        operands: tuple[Operand, Operand] = (lambda at: a[at].to(dtype).mT, lambda at: g[at].to(dtype).mT)
        elements = p * d if method == "direct" else 2 * tile(positions) ** 2
        for at in spans(samples, elements, dtype.itemsize):
            rows = at.stop - at.start
            norms[at] = direct(*operands, at, rows, total) if method == "direct" else gram(*operands, at, rows)
        dw = dw if total is None else total.to(low)
    if weight and grads and not dw.numel():
        dw = g.flatten(0, 1).t() @ a.flatten(0, 1)
    if bias and positions != 1:
        sums = g.sum(1, dtype=dtype)
        norms += row_dots(sums, sums, samples)
        db = sums.sum(0).to(low) if grads else db
    return norms, dw, db


def conv_grad_norms(
    x: Tensor, g: Tensor, samples: int, kernel: Ints, stride: Ints, dilation: Ints, groups: int, method: str, weight: bool, bias: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, low, out = accumulator(x.dtype), x.dtype, g.shape[2:]
    images, positions = len(x) // max(samples, 1), prod(out)
    p, d = g.shape[1] // groups, x.shape[1] // groups * prod(kernel)
    norms, dw, db = x.new_zeros(samples, dtype=dtype), x.new_empty(0), x.new_empty(0)

    def patches(at: slice) -> Tensor:
        seen = windows(x[at.start * images : at.stop * images], out, kernel, stride, dilation)
        return seen.to(dtype).reshape(-1, d, positions)

    def outputs(at: slice) -> Tensor:
        return g[at.start * images : at.stop * images].to(dtype).reshape(-1, p, positions)

    if weight:
        total = x.new_zeros((groups, p, d), dtype=dtype) if grads and method == "direct" else None
        for at in spans(samples, _conv_scratch(x, images, groups, p, d, positions, method), dtype.itemsize):
            rows = at.stop - at.start
            if method == "pixel_gram":
                norms[at] = _pixel_gram(x, outputs(at), at, groups, out, kernel, stride, dilation)
            elif method == "gram":
                norms[at] = gram(patches, outputs, at, rows)
            else:
                norms[at] = direct(*_joined(patches, outputs, images, groups), at, rows, total)
        dw = dw if total is None else total.view(g.shape[1], -1, *kernel).to(low)
    if weight and grads and not dw.numel():
        dw = weight_grad(x, g, kernel, stride, dilation, groups)
    if bias:
        sums = g.reshape(samples, images, g.shape[1], positions).sum((1, 3), dtype=dtype)
        norms += row_dots(sums, sums, samples)
        db = sums.sum(0).to(low) if grads else db
    return norms, dw, db


def _joined(patches: Operand, outputs: Operand, images: int, groups: int) -> tuple[Operand, Operand]:
    """The images of a sample side by side along the positions."""
    if images == 1:
        return patches, outputs

    def join(operand: Operand) -> Operand:
        def joined(at: slice) -> Tensor:
            x = operand(at)
            x = x.view(at.stop - at.start, images, groups, *x.shape[1:]).permute(0, 2, 3, 1, 4)
            return x.reshape(-1, x.shape[2], images * x.shape[4])

        return joined

    return join(patches), join(outputs)


def _conv_scratch(x: Tensor, images: int, groups: int, p: int, d: int, positions: int, method: str) -> int:
    if method == "pixel_gram":
        return groups * (prod(x.shape[2:]) ** 2 + positions**2)
    return groups * (images * d * positions + (p * d if method == "direct" else 2 * tile(positions) ** 2))


def _pixel_gram(x: Tensor, outputs: Tensor, at: slice, groups: int, out: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Tensor:
    pixels = x[at].to(outputs.dtype).reshape(len(outputs), x.shape[1] // groups, -1)
    r, k = torch.bmm(pixels.mT, pixels), torch.bmm(outputs.mT, outputs)
    norms = outputs.new_empty(len(outputs))
    filled = ([1] * (3 - len(values)) + list(values) for values in (x.shape[2:], out, kernel, stride, dilation))
    native("pixel_gram")(r, k, norms, [value for values in filled for value in values])
    return norms.view(-1, groups).sum(1).clamp_(min=0)


FUNCTIONS = {"linear_grad_norms": linear_grad_norms, "conv_grad_norms": conv_grad_norms}
