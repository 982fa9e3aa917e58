# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)
"""cross_entropy_sample in Triton; the formulas are those of csrc/core/cross_entropy.h.

    loss = sum_v t_v (lse - z_v),   delta_v = S p_v - t_v,   t_v = (1 - eps) w_y [v = y] + (eps / C) w_v,   S = sum_v t_v

Forward reads every logit once, backward reads and writes it once. Launch: a tile of ROWS rows by BLOCK logits per program of 4 warps; the
forward walks along its rows, the backward has a program for every tile. Deterministic: a lane adds its own logits in order, the lanes
are then summed as a tree. The running sums are tiles, so that only the largest logit is exchanged between threads in the loop.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exp_log import expm1_of, term
from .loss_formulas import PLAIN, SMOOTHED, WEIGHTED, finish, targets
from .table import LAUNCH
from .tile import bits, narrow, widen


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def loss_kernel(
    logits, target, weight, loss, norm, statistics, rows, classes, stride, ignore_index, smoothing,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    y, counts, ignored, w_y = targets(target, weight, row, rows, classes, ignore_index)
    z_y = widen(tl.load(logits + row * stride + y, mask=row < rows, other=0))
    origin_y = tl.where(tl.abs(z_y) < float("inf"), z_y, 0.0)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS, BLOCK], tl.float32)
    squares, spread, weighted, weights, squared_weights = mass, mass, mass, mass, mass
    for start in range(0, classes, BLOCK):
        v = start + tl.arange(0, BLOCK)[None, :]
        inside = (v < classes) & (row[:, None] < rows)
        read = widen(tl.load(logits + (row * stride)[:, None] + v, mask=inside, other=0))
        z = tl.where(inside & (v != y[:, None]), read, float("-inf"))
        larger = tl.maximum(m, tl.max(z, 1))
        origin = tl.where(larger == float("-inf"), 0.0, larger)[:, None]
        factor = term(m[:, None] - origin)
        e = term(z - origin)
        mass = mass * factor + e
        squares = squares * (factor * factor) + e * e
        m = larger
        if MODE == SMOOTHED:
            spread += tl.where(inside, origin_y[:, None] - read, 0.0)
        if MODE == WEIGHTED:
            w = tl.load(weight + v, mask=v < classes, other=0)
            weighted = weighted * factor + w * e
            spread += tl.where(inside, w * (origin_y[:, None] - read), 0.0)
            weights += w
            squared_weights += w * w
    mass = tl.sum(mass, 1)
    squares, spread = tl.sum(squares, 1), tl.sum(spread, 1)
    many = classes * 1.0 + tl.zeros_like(mass)
    if MODE == WEIGHTED:
        weighted, weights, squared_weights = tl.sum(weighted, 1), tl.sum(weights, 1), tl.sum(squared_weights, 1)
    else:
        weighted, weights, squared_weights = mass, many, many
    a, b, top, log_sum, kept = finish(mass, squares, spread, weighted, weights, squared_weights, m, z_y, w_y, smoothing, many, MODE)
    absent = tl.where(ignored, 0.0, float("nan"))
    tl.store(loss + row, tl.where(counts, a, absent), mask=row < rows)
    tl.store(norm + row, tl.where(counts, b, absent), mask=row < rows)
    tl.store(statistics + row * 3, tl.where(counts, top, 0.0), mask=row < rows)
    tl.store(statistics + row * 3 + 1, tl.where(counts, log_sum, 0.0), mask=row < rows)
    tl.store(statistics + row * 3 + 2, tl.where(counts, kept, absent), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "ignore_index"])
def gradient_kernel(
    grad, logits, target, statistics, weight, out, rows, classes, stride, ignore_index, smoothing,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (v < classes) & (row[:, None] < rows)
    read = widen(tl.load(logits + (row * stride)[:, None] + v, mask=inside, other=0))
    y, counts, ignored, w_y = targets(target, weight, row, rows, classes, ignore_index)
    g = tl.load(grad + row, mask=row < rows, other=0)
    top = tl.load(statistics + row * 3, mask=row < rows, other=0)
    log_sum = tl.load(statistics + row * 3 + 1, mask=row < rows, other=0)
    kept = tl.load(statistics + row * 3 + 2, mask=row < rows, other=0)
    log_p = (read - top[:, None]) - log_sum[:, None]
    value = (g * kept)[:, None] * term(log_p)
    of_target = kept
    if MODE != PLAIN:
        a = tl.div_rn(smoothing, classes * 1.0)
        share = (g * a)[:, None]
        value -= share * tl.load(weight + v, mask=v < classes, other=0) if MODE == WEIGHTED else share
        of_target = tl.fma(a, w_y, (1 - smoothing) * w_y)
    z_y = widen(tl.load(logits + row * stride + y, mask=row < rows, other=0))
    own = g * tl.fma(kept, expm1_of((z_y - top) - log_sum), kept - of_target)
    value = tl.where(v == y[:, None], own[:, None], value)
    value = tl.where(counts[:, None], value, tl.where(ignored, 0.0, float("nan"))[:, None])
    tl.store(out + row[:, None] * classes + v, narrow(value, out.dtype.element_ty), mask=inside)


def _shape(classes: int, smoothing: float, weight: Tensor | None) -> tuple[int, int, int]:
    """ROWS, BLOCK, MODE: four 16-byte vectors of fp32 logits per thread; half as many beside the six sums of class weights."""
    mode = 0 if smoothing == 0 else 1 if weight is None else 2
    block = min(1024 if mode == 2 else 2048, max(16, triton.next_power_of_2(classes)))
    return min(32, max(1, 1024 // block)), block, mode


def cross_entropy_sample(logits: Tensor, target: Tensor, smoothing: float, ignore: int, weight: Tensor | None) -> tuple[Tensor, ...]:
    rows, classes = logits.shape
    loss, norm = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    statistics = torch.empty(rows, 3, dtype=torch.float32, device=logits.device)
    if logits.numel():
        shape = _shape(classes, smoothing, weight)
        loss_kernel[(triton.cdiv(rows, shape[0]),)](
            bits(logits), target, weight, loss, norm, statistics, rows, classes, logits.stride(0), ignore, smoothing, *shape, **LAUNCH
        )  # fmt: skip
    return loss, norm, statistics


def backward(
    grad: Tensor, logits: Tensor, target: Tensor, log_norm: Tensor, smoothing: float, ignore: int, weight: Tensor | None
) -> Tensor:
    rows, classes = logits.shape
    out = torch.empty(rows, classes, dtype=logits.dtype, device=logits.device)
    if logits.numel():
        shape = _shape(classes, smoothing, weight)
        gradient_kernel[(triton.cdiv(rows, shape[0]), triton.cdiv(classes, shape[1]))](
            grad, bits(logits), target, log_norm, weight, bits(out), rows, classes, logits.stride(0), ignore, smoothing, *shape,
            **LAUNCH,
        )  # fmt: skip
    return out
