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
from . import loss_checks, loss_reference
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


def _fake(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], accumulator(logits.dtype)
    return logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, dtype=dtype), logits.new_empty((rows, 3), dtype=dtype)


OP = declare("cross_entropy_sample", SCHEMA, loss_reference.forward, loss_checks.guard, _fake)
BACKWARD = declare(
    "cross_entropy_sample_backward",
    BACKWARD_SCHEMA,
    loss_reference.backward,
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
