"""conv_grad_norms: the weight gradient of a convolution, and the squared norm of each sample's own share of it.

With the patches A_b [T, d] of one group (T output pixels, d = C/groups taps and channels) and the output gradients G_b [T, p],

    P_b = G_b^T A_b      norms_b = sum over groups |P_b|^2 (weight) + |sum_t g_bt|^2 (bias)

``direct`` forms P_b, ``gram`` multiplies the Gram matrices of patches and gradients, group by group. ``pixel_gram`` gets the Gram matrix
of the patches out of that of the pixels, R = X X^T: a product of two patches is the sum of the products of their shifted pixels,

    (A A^T)[t, s] = sum over taps u of R[stride t + dilation u, stride s + dilation u]

which saves the factor of the kernel's size in the products.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .linear_grad_norms import check_method
from .lists import accumulator
from .sample_grads import windows

SCHEMA = (
    "(Tensor x, Tensor g, int samples, int[] kernel, int[] stride, int[] dilation, int groups, str method, bool weight, bool bias, "
    "bool grads) -> (Tensor, Tensor, Tensor)"
)
METHODS = ("direct", "gram", "pixel_gram")
Ints = Sequence[int]


def weight_grad(x: Tensor, g: Tensor, kernel: Ints, stride: Ints, dilation: Ints, groups: int) -> Tensor:
    """The weight gradient alone, by torch's own kernel, which takes less than a stride of pixels that no output sees; more are cropped."""
    for dim, (size, k, s, d) in enumerate(zip(g.shape[2:], kernel, stride, dilation, strict=True), 2):
        seen = (size - 1) * s + (k - 1) * d + 1
        x = x.narrow(dim, 0, seen) if x.shape[dim] >= seen + s else x
    like = x.new_empty((g.shape[1], x.shape[1] // groups, *kernel))  # only its shape is read
    zeros, mask = [0] * len(kernel), (False, True, False)
    weight: Tensor = torch.ops.aten.convolution_backward(g, x, like, None, stride, zeros, dilation, False, zeros, groups, mask)[1]
    return weight.contiguous()  # whatever the layout of x


def reference(
    x: Tensor, g: Tensor, samples: int, kernel: Ints, stride: Ints, dilation: Ints, groups: int, method: str, weight: bool, bias: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The specification: plain torch, any device and floating dtype."""
    dtype = accumulator(x.dtype)
    norms, dw, db = x.new_zeros(samples, dtype=dtype), x.new_empty(0), x.new_empty(0)
    low, x, g, out = x.dtype, x.to(dtype), g.to(dtype), g.shape[2:]
    if weight:
        images = len(x) // max(samples, 1)
        patches = windows(x, out, kernel, stride, dilation).reshape(samples, images, groups, -1, prod(out))
        outputs = g.reshape(samples, images, groups, -1, prod(out))
        if method == "direct":
            products = torch.einsum("bigpt,bigdt->bgpd", outputs, patches)
            norms += products.square().sum((1, 2, 3))
        else:  # the two Gram methods differ in how they come by the patches' inner products
            norms += ((patches.mT @ patches) * (outputs.mT @ outputs)).sum((1, 2, 3, 4)).clamp(min=0)
        if grads:
            dw = torch.einsum("bigpt,bigdt->gpd", outputs, patches).reshape(g.shape[1], x.shape[1] // groups, *kernel).to(low)
    if bias:
        sums = g.reshape(samples, -1, g.shape[1], prod(out)).sum((1, 3))
        norms += sums.square().sum(1)
        db = sums.sum(0).to(low) if grads else db
    return norms, dw, db


def fake(
    x: Tensor, g: Tensor, samples: int, kernel: Ints, stride: Ints, dilation: Ints, groups: int, method: str, weight: bool, bias: bool,
    grads: bool, backend: str = "",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dw = x.new_empty((g.shape[1], x.shape[1] // groups, *kernel) if weight and grads else 0)
    return x.new_empty(samples, dtype=accumulator(x.dtype)), dw, x.new_empty(g.shape[1] if bias and grads else 0)


OP = declare("conv_grad_norms", SCHEMA, reference, guards.conv_grad_norms, fake)


def conv_grad_norms(
    x: Tensor, g: Tensor, *, samples: int | None = None, kernel: Ints, stride: Ints, dilation: Ints, groups: int = 1,
    method: str = "direct", weight: bool = True, bias: bool = True, grads: bool = True, backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Squared norms of the per-sample gradients of a convolution in 1 to 3 dimensions, with the gradients themselves.

    Args:
        x: inputs ``[N, C, *spatial]``, already padded. ``g``: gradients at the outputs ``[N, O, *out]``.
        samples: number of samples B; the N images belong to them in order, N / B each. None: every image is a sample.
        kernel, stride, dilation: one number per dimension. ``groups``: as in ``torch.nn.functional.conv2d``.
        method: ``"direct"``, or, where every image is a sample, ``"gram"`` or ``"pixel_gram"``; equal up to rounding.
        weight, bias, grads, backend: as in ``linear_grad_norms``.

    Returns:
        ``(norms [B] in fp32, or fp64 for fp64 inputs; dW [O, C / groups, *kernel]; db [O])``, the last two empty unless asked for.

    Raises:
        RuntimeError, ValueError: shapes, dtypes or devices that do not match, or a method that is unknown or does not apply.
    """
    check_method(method, METHODS)
    samples = len(x) if samples is None else samples
    if method != "direct" and samples != len(x):
        raise ValueError(f"method is {method!r} for {len(x)} images of {samples} samples; images that share a sample need 'direct'")
    result: tuple[Tensor, Tensor, Tensor] = call(
        OP, backend, x, g, samples, list(kernel), list(stride), list(dilation), groups, method, weight, bias, grads
    )
    return result
