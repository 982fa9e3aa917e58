# ruff: noqa: ANN001, ANN201, RET505 (tuples of scalars have no useful annotation; both arms of a compile-time branch return)
"""The updates of csrc/core/bases.h for Triton: what a group's options are, which state it uses, and the update itself.

    row_of       on the host: the numbers of one group, worked out in fp64 and rounded once: 1 - beta and log(beta), not beta
    options_of   on the device, once per program: (lr, maximize, first, ...), where first = no state yet, its memory may hold anything
    uses         whether a group reads and writes m, v and v_max
    update       the new weight and state of a tile

Multiply-adds are fused exactly where they are there.
"""

import math
from collections.abc import Mapping

import triton
import triton.language as tl

ROW = tl.constexpr(12)  # numbers per group, whatever the base


def row_of(base: str, o: Mapping[str, float]) -> list[float]:
    """The numbers that ``options_of`` reads, from the options of one group."""
    row = [o["lr"], o["maximize"]]
    if base == "sgd":
        row += [o["momentum"], 1.0 - o["dampening"], o["weight_decay"], o["nesterov"]]
    elif base == "adam":
        betas = [o[name] if o["bias_correction"] else 0.0 for name in ("beta1", "beta2")]
        logs = [math.log(beta) if beta > 0 else -math.inf for beta in betas]  # 1 - e^-inf = 1: nothing to correct
        row += [1.0 - o["beta1"], o["beta2"], 1.0 - o["beta2"], *logs, o["eps"], o["weight_decay"]]
        row += [o["decoupled"], o["amsgrad"], o["initial_v"]]
    elif base == "lion":
        row += [o["beta1"], 1.0 - o["beta1"], o["beta2"], 1.0 - o["beta2"], o["weight_decay"]]
    return row + [0.0] * (ROW.value - len(row))


@triton.jit
def bias_correction(log_beta: tl.tensor, steps: tl.tensor):
    """1 - beta^steps = 1 - e^x within 2e-7 of itself: with x = k ln 2 + r, |r| <= ln(2) / 2, it is (1 - 2^k) - 2^k (e^r - 1).

    The exponential of GPUs errs by more than that, and would cancel for small x.
    """
    x = tl.maximum(steps * log_beta, -80.0)  # 1 - e^x is 1 long before; x may be -inf
    k = tl.floor(x * 1.4426950408889634 + 0.5)
    r = x - k * 0.693359375 + k * 2.12194440e-4  # ln 2 in two parts, the first one exact in every product
    series = 1 / 720 + r * (1 / 5040 + r * (1 / 40320))
    series = 0.5 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * series)))
    power = ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (1.0 - power) - power * tl.fma(r * r, series, r)


@triton.jit
def options_of(numbers: tl.tensor, group: tl.tensor, lr: tl.tensor, steps: tl.tensor, BASE: tl.constexpr):
    row = numbers + ROW * group
    rate = tl.load(row) if lr is None else tl.load(lr + group)
    maximize, first = tl.load(row + 1) != 0, steps == 0
    if BASE == "sgd":  # momentum, 1 - dampening, weight_decay, nesterov
        return rate, maximize, first, tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5) != 0
    elif BASE == "adam":  # step_size, 1 - beta1, beta2, 1 - beta2, root of the correction of v, eps, weight_decay, ...
        step_size = tl.div_rn(rate, bias_correction(tl.load(row + 5), steps + 1))
        root_v = tl.sqrt_rn(bias_correction(tl.load(row + 6), steps + 1))
        decoupled, amsgrad, initial_v = tl.load(row + 9) != 0, tl.load(row + 10) != 0, tl.load(row + 11)
        return (
            rate, maximize, first, step_size, tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), root_v, tl.load(row + 7),
            tl.load(row + 8), decoupled, amsgrad, initial_v,
        )  # fmt: skip
    else:  # beta1, 1 - beta1, beta2, 1 - beta2, weight_decay
        return (
            rate, maximize, first, tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5), tl.load(row + 6),
        )  # fmt: skip


@triton.jit
def uses(options, BASE: tl.constexpr):
    """Whether the group uses m, v and v_max, of those that the base has."""
    if BASE == "sgd":
        return options[3] != 0, True, True
    elif BASE == "adam":
        return True, True, options[11]
    else:
        return True, True, True


@triton.jit
def update(w: tl.tensor, at: tl.tensor, u: tl.tensor, state, options, BASE: tl.constexpr, HAS_M: tl.constexpr):
    """(new weight, new state) from the clean weight; decay of weights reads ``at``. State that is not used may hold anything."""
    m, v, v_max = state
    u = tl.where(options[1], -u, u)
    if BASE == "sgd":
        w, m = sgd(w, at, u, m, options, HAS_M)
    elif BASE == "adam":
        w, m, v, v_max = adam(w, at, u, m, v, v_max, options)
    else:
        w, m = lion(w, at, u, m, options)
    return w, (m, v, v_max)


@triton.jit
def sgd(w: tl.tensor, at: tl.tensor, u: tl.tensor, m: tl.tensor, options, HAS_M: tl.constexpr):
    lr, _, first, momentum, damped, weight_decay, nesterov = options
    u = tl.where(weight_decay != 0, tl.fma(weight_decay, at, u), u)
    buffer = u
    if HAS_M:
        buffer = tl.where(first, u, tl.fma(damped, u, momentum * m))
        stepped = tl.where(nesterov, tl.fma(momentum, buffer, u), buffer)
        u = tl.where(momentum != 0, stepped, u)
    return tl.fma(-lr, u, w), buffer


@triton.jit
def adam(w: tl.tensor, at: tl.tensor, u: tl.tensor, m: tl.tensor, v: tl.tensor, v_max: tl.tensor, options):
    lr, _, first, step_size, add_m, beta2, add_v, root_v, eps, weight_decay, decoupled, amsgrad, initial_v = options
    u = tl.where((weight_decay != 0) & ~decoupled, tl.fma(weight_decay, at, u), u)
    w = tl.where((weight_decay != 0) & decoupled, tl.fma(-lr * weight_decay, at, w), w)
    m = tl.where(first, add_m * u, tl.fma(add_m, u, (1.0 - add_m) * m))
    v = tl.where(first, add_v * u * u, tl.fma(add_v * u, u, beta2 * v))
    before = tl.where(first, initial_v, v_max)
    v_max = tl.where((v > before) | (v != v), v, before)  # a NaN stays one, as in torch.maximum
    denominator = tl.div_rn(tl.sqrt_rn(tl.where(amsgrad, v_max, v)), root_v) + eps
    return tl.fma(-step_size, tl.where(denominator == 0, 0.0, tl.div_rn(m, denominator)), w), m, v, v_max


@triton.jit
def lion(w: tl.tensor, at: tl.tensor, u: tl.tensor, m: tl.tensor, options):
    lr, _, first, beta1, add1, beta2, add2, weight_decay = options
    w = tl.where(weight_decay != 0, tl.fma(-lr * weight_decay, at, w), w)
    m = tl.where(first, 0.0, m)
    c = tl.fma(add1, u, beta1 * m)
    sign = tl.where(c > 0, 1.0, tl.where(c < 0, -1.0, c))  # NaN stays NaN
    return tl.fma(-lr, sign, w), tl.fma(add2, u, beta2 * m)
