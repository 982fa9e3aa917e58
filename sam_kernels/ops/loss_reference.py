"""The specification of cross_entropy_sample and its backward: plain torch, any device and floating dtype.

The odds against the target take the place of its probability, so that 1 - p_y keeps its digits where p_y rounds to 1.
"""

import torch
from torch import Tensor

from .lists import accumulator


def _target_row(z: Tensor, target: Tensor, smoothing: float, ignore: int, weight: Tensor | None) -> tuple[Tensor, ...]:
    """One-hot mask of the targets, which rows are ignored and which are wrong, and t."""
    classes = z.shape[1]
    ignored, wrong = target == ignore, (target < 0) | (target >= classes)
    hot = torch.arange(classes, device=z.device) == torch.where(wrong, 0, target)[:, None]
    w = torch.ones(classes, dtype=z.dtype, device=z.device) if weight is None else weight
    t = torch.where(hot, (1 - smoothing) * w, 0)
    return hot, ignored, wrong & ~ignored, t + smoothing / classes * w if smoothing else t


def forward(logits: Tensor, target: Tensor, smoothing: float, ignore: int, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, norm and log_norm, whose rows are (largest logit, log sum_v e^(z_v - largest), S)."""
    if not logits.numel():
        zero = logits.new_zeros(len(logits), dtype=accumulator(logits.dtype))
        return zero, zero.clone(), zero[:, None].repeat(1, 3)
    z = logits.to(accumulator(logits.dtype))
    hot, ignored, wrong, t = _target_row(z, target, smoothing, ignore, weight)
    target = hot.int().argmax(1, keepdim=True)
    top = z.amax(1, keepdim=True)
    z = (z - top).masked_fill(~torch.isfinite(top), torch.nan)  # as torch has it
    others, own = torch.logsumexp(z.masked_fill(hot, -torch.inf), 1, keepdim=True), z.gather(1, target)
    gap = torch.where(own == -torch.inf, torch.inf, others - own)  # log of the odds against the target
    zero = torch.zeros_like(gap)
    nll, against = torch.logaddexp(zero, gap), torch.sigmoid(gap)  # -log p_y and 1 - p_y
    log_sum = torch.logaddexp(others, own)
    mass, log_p = t.sum(1, keepdim=True), torch.where(hot, -nll, z - log_sum)
    loss = -torch.where(t == 0, zero, t * log_p).sum(1)
    p_others = torch.where(others == -torch.inf, zero, against * torch.exp(z - others))
    t_y = t.gather(1, target)
    delta = torch.where(hot, mass - t_y - mass * against, mass * p_others - t)
    out = loss, torch.linalg.vector_norm(delta, dim=1), torch.cat([top, log_sum, mass], 1)
    keep = [torch.where(_rows(wrong, x), torch.nan, torch.where(_rows(ignored, x), 0, x)) for x in out]
    return keep[0], keep[1], keep[2]


def _rows(flags: Tensor, like: Tensor) -> Tensor:
    return flags if like.dim() == 1 else flags[:, None]


def backward(
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
