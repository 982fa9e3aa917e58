# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)
"""What a row of logits becomes once it is summed, for Triton: the formulas of csrc/core/cross_entropy.h."""

import triton
import triton.language as tl

from .exp_log import exp_of_difference, log1p_of, log_of

PLAIN, SMOOTHED, WEIGHTED = (tl.constexpr(i) for i in range(3))


@triton.jit
def targets(target, weight, row, rows, classes, ignore_index):
    """(class, or 0; whether it is one; whether it is ignored; its weight)"""
    y = tl.load(target + row, mask=row < rows, other=0)
    ignored = y == ignore_index
    counts = (y >= 0) & (y < classes) & (y != ignore_index)
    y = tl.where(counts, y, 0)
    w = tl.load(weight + y) if weight is not None else tl.full(y.shape, 1.0, tl.float32)
    return y, counts, ignored, w


@triton.jit
def finish(mass, squares, spread, weighted, weights, squared_weights, m, z_y, w_y, smoothing, classes, MODE: tl.constexpr):
    """(loss, norm, largest logit, log of the sum relative to it, S)"""
    top = tl.where(m > z_y, m, z_y)
    leads = z_y == top
    unit, e_y = exp_of_difference(m, top), exp_of_difference(z_y, top)
    others = mass * unit
    total = others + e_y
    log_sum = tl.where(leads, log1p_of(others), log_of(tl.where(leads, 1.0, total)))
    nll = tl.where(leads, log_sum, log_sum + (top - z_y))
    scale = tl.div_rn(unit, total)
    if MODE == PLAIN:
        loss, kept = w_y * nll, w_y
        norm = tl.sqrt_rn(tl.fma(mass, mass, squares)) * scale * tl.abs(w_y)
    else:
        a = tl.div_rn(smoothing, classes)
        of_target = (1 - smoothing) * w_y
        kept = tl.fma(a, weights, of_target)
        loss = tl.fma(of_target, nll, a * tl.where(weights != 0, tl.fma(weights, nll, spread), spread))
        u = kept * scale
        own = u * mass - a * (weights - w_y)
        square = u * u * squares - 2 * u * a * weighted + a * a * (squared_weights - w_y * w_y) + own * own
        norm = tl.sqrt_rn(tl.where(square < 0, 0.0, square))
    poison = top - top  # NaN where a logit is NaN or +inf, or all are -inf
    return loss + poison, norm + poison, top, log_sum, kept
