"""normalization_grads: the backward of a normalization layer that keeps the affine gradients of every sample apart.

    xhat = (x - mean) rstd,   h = grad weight,   dx = rstd (h - [coupled] (xhat avg(h xhat) + avg(h)))
    rows[b, 0] = sum grad xhat,   rows[b, 1] = sum grad,   over the batch entries n and the positions s of sample b

One form for LayerNorm, RMSNorm (no mean, and no avg(h)), GroupNorm and InstanceNorm: x is [N, G, D, S], statistics are those of each
(n, group) over its D channels and S positions, the affine parameters have an entry per (group, channel). Reads grad and x once from
memory, writes dx once. Accumulates in fp32 (fp64 for fp64); partial sums of fixed pieces are combined in a fixed order.
"""

from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from .lists import accumulator
from .operands import require_floating, require_operand

SCHEMA = "(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int samples, bool coupled) -> (Tensor, Tensor)"


def reference(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, samples: int, coupled: bool
) -> tuple[Tensor, Tensor]:
    """The specification: plain torch, any device and floating dtype."""
    dtype, (n, g, d, _) = accumulator(x.dtype), x.shape
    centred, scale, wide = mean.numel() > 0, rstd.view(n, g, 1, 1), grad.to(dtype)
    xhat = (x.to(dtype) - mean.view(n, g, 1, 1) if centred else x.to(dtype)) * scale
    rows = torch.stack([(wide * xhat).sum(3), wide.sum(3)], 1).view(samples, n // max(samples, 1), 2, g * d).sum(1)
    h = wide if weight is None else wide * weight.to(dtype).view(1, g, d, 1)
    dx = h
    if coupled:
        dx = h - xhat * (h * xhat).mean((2, 3), keepdim=True)
        dx = dx - h.mean((2, 3), keepdim=True) if centred else dx
    return (dx * scale).to(x.dtype), rows


def fake(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, samples: int, coupled: bool, backend: str = ""
) -> tuple[Tensor, Tensor]:
    _, g, d, _ = x.shape
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(samples, 2, g * d, dtype=accumulator(x.dtype))


def guard(a: dict[str, Any]) -> None:
    """Shapes, dtypes, device and layout of every operand."""
    x, grad, samples = a["x"], a["grad"], a["samples"]
    require_floating("x", x, 4, "[N, groups, channels of a group, positions]")
    n, g, d, _ = x.shape
    wide = accumulator(x.dtype)
    require_operand("x", x, x.shape, (x.dtype,), x)
    require_operand("grad", grad, x.shape, (x.dtype,), x)
    require_operand("rstd", a["rstd"], (n, g), (wide,), x)
    require_operand("mean", a["mean"], (n, g) if a["mean"].numel() else a["mean"].shape, (wide,), x)
    if a["weight"] is not None:
        require_operand("weight", a["weight"], (g * d,), tuple(dict.fromkeys((x.dtype, wide))), x)
    if samples < 0 or (samples == 0 and n) or (samples and n % samples):
        raise ValueError(f"samples is {samples}; expected a divisor of the {n} batch entries of x: sample b owns the same number of each")


OP = declare("normalization_grads", SCHEMA, reference, guard, fake)


def normalization_grads(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
    weight: Tensor | None = None,
    *,
    samples: int,
    coupled: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of a normalization layer's input, and each sample's own gradient of its scale and shift.

    | layer                        | x viewed as [N, G, D, S]           | mean                   |
    |------------------------------|------------------------------------|------------------------|
    | LayerNorm over the last d    | [rows, 1, d, 1]                    | of each row            |
    | RMSNorm over the last d      | [rows, 1, d, 1]                    | None                   |
    | GroupNorm of [N, C, *]       | [N, groups, C / groups, positions] | of each (n, group)     |
    | InstanceNorm of [N, C, *]    | [N, C, 1, positions]               | of each (n, channel)   |

    Args:
        grad: gradient at the layer's output, shape, dtype and device of ``x``, contiguous.
        x: the layer's input ``[N, G, D, S]``, contiguous, any floating dtype.
        mean, rstd: statistics ``[N, G]`` over D and S, in fp32 (fp64 for fp64 ``x``). Without a mean x is not centred: RMSNorm.
        weight: scale ``[G * D]`` in the dtype of ``x`` or in fp32; None is 1.
        samples: number of samples B; N is a multiple of it, and sample b owns the b-th run of N / B batch entries.
        coupled: False where the statistics are constants, as with frozen ones: ``dx = grad weight rstd``.
        backend: ``"reference"``, ``"cpp"`` or ``"triton"``; by default the preferred one that is available.

    Returns:
        ``dx``, like ``x``, and ``rows`` ``[B, 2, G * D]`` in fp32 (fp64 for fp64): gradients of scale and shift of every sample.
        Their sum over samples is what autograd would give; ``rows[:, 0].square().sum(1)`` is the squared norm of each sample's own
        gradient of the scale (Goodfellow 2015, arXiv:1510.01799, for the idea of per-sample norms in the ordinary backward).

    Raises:
        TypeError, ValueError: an operand whose shape, dtype, device or layout does not fit; the message names it.
        RuntimeError: a backend that was asked for by name and is not there or does not support the device or dtype.
    """
    return call(OP, backend, grad, x, rstd.new_empty(0) if mean is None else mean, rstd, weight, int(samples), bool(coupled))
