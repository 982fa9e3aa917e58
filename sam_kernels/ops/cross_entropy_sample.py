"""cross_entropy_sample: the loss of every sample and the norm of its gradient with respect to the logits z, in one pass over them.

    t_v = (1 - eps) w_y [v = y] + (eps / C) w_v,   S = sum_v t_v,   loss = sum_v t_v (lse - z_v),   delta_v = S p_v - t_v

Reads every logit once (4 bytes in fp32, 2 in half types) and writes five numbers per row; backward reads and writes every logit once.
Accumulates in fp32 (fp64 for fp64) and never adds the target to the other classes: without smoothing, loss and norm keep their relative
accuracy for samples that the model is all but certain of, where softmax minus one-hot is a difference of equal numbers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import call, declare
from . import loss_checks
from .lists import accumulator

SCHEMA = (
    "(Tensor logits, Tensor target, float label_smoothing, int ignore_index, Tensor? weight) -> (Tensor loss, Tensor norm, Tensor log_norm)"
)
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor logits, Tensor target, Tensor log_norm, float label_smoothing, int ignore_index, Tensor? weight) -> Tensor"
)


class SampleLoss(NamedTuple):
    loss: Tensor
    grad_norm: Tensor


def _target_row(z: Tensor, target: Tensor, smoothing: float, ignore: int, weight: Tensor | None) -> tuple[Tensor, ...]:
    """One-hot mask of the targets, which rows are ignored and which are wrong, and t."""
    classes = z.shape[1]
    ignored, wrong = target == ignore, (target < 0) | (target >= classes)
    hot = torch.arange(classes, device=z.device) == torch.where(wrong, 0, target)[:, None]
    w = torch.ones(classes, dtype=z.dtype, device=z.device) if weight is None else weight
    t = torch.where(hot, (1 - smoothing) * w, 0)
    return hot, ignored, wrong & ~ignored, t + smoothing / classes * w if smoothing else t


def reference(logits: Tensor, target: Tensor, smoothing: float, ignore: int, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The specification: plain torch, any device and floating dtype. log_norm: (largest logit, log sum_v e^(z_v - largest), S)."""
    if not logits.numel():
        zero = logits.new_zeros(len(logits), dtype=accumulator(logits.dtype))
        return zero, zero.clone(), zero[:, None].repeat(1, 3)
    z = logits.to(accumulator(logits.dtype))
    hot, ignored, wrong, t = _target_row(z, target, smoothing, ignore, weight)
    top = z.amax(1, keepdim=True)
    z = z.masked_fill(~torch.isfinite(top), torch.nan)  # as torch has it
    others, own = torch.logsumexp(z.masked_fill(hot, -torch.inf), 1, keepdim=True), z[hot][:, None]
    gap = torch.where(own == -torch.inf, torch.inf, others - own)  # log of the odds against the target
    zero = torch.zeros_like(gap)
    nll, against = torch.logaddexp(zero, gap), torch.sigmoid(gap)  # -log p_y and 1 - p_y
    log_sum = torch.logaddexp(others - top, own - top)
    mass, log_p = t.sum(1, keepdim=True), torch.where(hot, -nll, z - top - log_sum)
    loss = -torch.where(t == 0, zero, t * log_p).sum(1)
    p_others = torch.where(others == -torch.inf, zero, against * torch.exp(z - others))
    t_y = t[hot][:, None]
    delta = torch.where(hot, mass - t_y - mass * against, mass * p_others - t)
    out = loss, torch.linalg.vector_norm(delta, dim=1), torch.cat([top, log_sum, mass], 1)
    keep = [torch.where(_rows(wrong, x), torch.nan, torch.where(_rows(ignored, x), 0, x)) for x in out]
    return keep[0], keep[1], keep[2]


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags if like.dim() == 1 else flags[:, None]


def backward_reference(
    grad: Tensor, logits: Tensor, target: Tensor, log_norm: Tensor, smoothing: float, ignore: int, weight: Tensor | None
) -> Tensor:
    """grad_i (S p_v - t_v), of the logits' dtype."""
    z = logits.to(log_norm.dtype)
    hot, ignored, wrong, t = _target_row(z, target, smoothing, ignore, weight)
    top, log_sum, mass = log_norm.split(1, 1)
    log_p = z - top - log_sum
    delta = torch.where(hot, mass * torch.expm1(log_p) + (mass - t), mass * torch.exp(log_p) - t)
    delta = torch.where(ignored[:, None], 0, grad[:, None] * delta)
    return torch.where(wrong[:, None], torch.nan, delta).to(logits.dtype)


def _fake(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], accumulator(logits.dtype)
    return logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, dtype=dtype), logits.new_empty((rows, 3), dtype=dtype)


OP = declare("cross_entropy_sample", SCHEMA, reference, loss_checks.guard, _fake)
BACKWARD = declare(
    "cross_entropy_sample_backward",
    BACKWARD_SCHEMA,
    lambda grad, logits, *rest: backward_reference(grad, logits, *rest),
    loss_checks.guard_backward,
    lambda grad, logits, *_: logits.new_empty(logits.shape),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.smoothing, ctx.ignore, weight, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, output[2], weight)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    logits, target, log_norm, weight = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    grads = torch.ops.sam_kernels.cross_entropy_sample_backward(
        grad.contiguous(), logits, target, log_norm, ctx.smoothing, ctx.ignore, weight, ctx.backend
    )
    return grads, None, None, None, None, None


def _twice(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError("cross_entropy_sample has no second derivative; use torch.nn.functional.cross_entropy for a double backward")


torch.library.register_autograd("sam_kernels::cross_entropy_sample", _backward, setup_context=_setup_context)
torch.library.register_autograd("sam_kernels::cross_entropy_sample_backward", _twice)


def cross_entropy_sample(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    backend: str | None = None,
) -> SampleLoss:
    """Loss of every sample and norm of its gradient with respect to its logits (EL2N, arXiv 2107.07075).

    Args:
        logits: ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``, fp32, bf16, fp16 or fp64.
        target: class indices, int64, ``[]``, ``[N]`` or ``[N, d1, ...]``.
        label_smoothing: in ``[0, 1]``, as in ``torch.nn.functional.cross_entropy``.
        ignore_index: target of positions without a loss: loss, norm and gradient are 0.
        weight: optional weights of the classes ``[C]``, any floating dtype. Not differentiated.
        backend: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; by default the preferred one that is available.

    Returns:
        ``SampleLoss(loss, grad_norm)`` of the shape of ``target``, both fp32 (fp64 for fp64 logits): ``loss`` as
        ``F.cross_entropy(..., reduction="none")``, which rounds it to the logits' dtype, differentiable once with respect to the logits;
        ``grad_norm`` the L2 norm (not squared) of its gradient, a constant for autograd. An out-of-range target on a GPU makes them NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit; out-of-range targets on CPU. The message names the argument.

    Example:
        >>> cross_entropy_sample(torch.zeros(1, 2), torch.tensor([1])).grad_norm
        tensor([0.7071])
    """
    rows, flat, w = loss_checks.rows(logits, target, label_smoothing, weight)
    loss, norm, _ = call(OP, backend, rows, flat, float(label_smoothing), int(ignore_index), w)
    return SampleLoss(loss, norm) if target.dim() == 1 else SampleLoss(loss.view(target.shape), norm.view(target.shape))
