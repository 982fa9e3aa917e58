# ruff: noqa: ANN001, ANN201, RET505 (tuples of scalars have no useful annotation; both arms of a compile-time branch return)
"""The formulas of csrc/core/scalar_math.h for Triton, each once. Multiply-adds are fused exactly where they are there.

The updates of the base optimizers are in bases.py.
"""

import triton
import triton.language as tl


@triton.jit
def is_finite(x: tl.tensor):
    return tl.abs(x) < float("inf")


@triton.jit
def ratio(x: tl.tensor, y: tl.tensor):
    return tl.where(y > 0, tl.div_rn(x, tl.where(y > 0, y, 1.0)), 0.0)


@triton.jit
def adaptive_scale(w: tl.tensor, eta: tl.tensor, adaptive: tl.tensor):
    return tl.where(adaptive, tl.abs(w) + eta, 1.0)


# ---- ascent: w += s c(w)^2 d, with d = +-(alpha g + beta q)


@triton.jit
def ascent_scale(rho: tl.tensor, square: tl.tensor, normalize: tl.tensor, eps: tl.tensor):
    """rho / |d|, or rho; zero (perturb nothing) where the squared norm is zero or not finite."""
    moves = (square > 0) & is_finite(square)
    scale = tl.where(normalize, tl.div_rn(rho, tl.sqrt_rn(tl.where(moves, square, 1.0)) + eps), rho)
    return tl.where(moves, scale, 0.0)


@triton.jit
def ascent_direction(g: tl.tensor, q: tl.tensor, alpha: tl.tensor, beta: tl.tensor, HAS_G: tl.constexpr, HAS_Q: tl.constexpr):
    d = tl.where(alpha != 0, alpha * g, 0.0) if HAS_G else tl.zeros_like(g)  # a list whose factor is 0 is not looked at
    return tl.where(beta != 0, tl.fma(beta, q, d), d) if HAS_Q else d


# ---- descent: u, direct and the kept vector are combinations of (h, g, q)


@triton.jit
def combine(factors, h: tl.tensor, g: tl.tensor, q: tl.tensor, HAS_H: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr):
    value = tl.zeros_like(h)
    if HAS_H:
        value = tl.where(factors[0] != 0, factors[0] * h, 0.0)
    if HAS_G:
        value = tl.where(factors[1] != 0, tl.fma(factors[1], g, value), value)
    if HAS_Q:
        value = tl.where(factors[2] != 0, tl.fma(factors[2], q, value), value)
    return value


@triton.jit
def units_of(loss_scale: tl.tensor):
    """(1 / scale of g, 1 / scale of h): the gradients are in memory multiplied by the scales."""
    return tl.div_rn(1.0, tl.load(loss_scale)), tl.div_rn(1.0, tl.load(loss_scale + 1))


@triton.jit
def gram_in_units(gram, units):
    gg, gh, hh, gq, hq, qq = gram
    g, h = units
    return gg * (g * g), gh * (g * h), hh * (h * h), gq * g, hq * h, qq


@triton.jit
def factors_in_units(factors, units):
    """Factors of the gradients as they are in memory."""
    return factors[0] * units[1], factors[1] * units[0], factors[2]


@triton.jit
def factor(coefficients: tl.tensor, row: tl.constexpr, basis):
    """One factor: a row of coefficients times the basis; entries of the basis that it does not use may be anything."""
    result = tl.load(coefficients + row * 5) + 0.0
    for k in tl.static_range(1, 5):
        c = tl.load(coefficients + row * 5 + k)
        result += tl.where(c != 0, c * basis[k - 1], 0.0)
    return result


@triton.jit
def factors_of(coefficients: tl.tensor, output: tl.constexpr, basis, HAS_GRAM: tl.constexpr):
    if HAS_GRAM:
        return (
            factor(coefficients, output * 3, basis),
            factor(coefficients, output * 3 + 1, basis),
            factor(coefficients, output * 3 + 2, basis),
        )
    else:
        rows = coefficients + output * 15
        return tl.load(rows), tl.load(rows + 5), tl.load(rows + 10)


@triton.jit
def rescale(u, gram, match_norm: tl.tensor, max_norm: tl.tensor):
    """u scaled to the norm of g where asked, and to at most max_norm; entries of products that are 0 may be anything."""
    gg, gh, hh, gq, hq, qq = gram
    square = tl.where(u[0] * u[0] != 0, u[0] * u[0] * hh, 0.0)
    square += tl.where(u[0] * u[1] != 0, u[0] * u[1] * gh, 0.0)
    square += tl.where(u[0] * u[2] != 0, u[0] * u[2] * hq, 0.0)
    square += tl.where(u[1] * u[0] != 0, u[1] * u[0] * gh, 0.0)
    square += tl.where(u[1] * u[1] != 0, u[1] * u[1] * gg, 0.0)
    square += tl.where(u[1] * u[2] != 0, u[1] * u[2] * gq, 0.0)
    square += tl.where(u[2] * u[0] != 0, u[2] * u[0] * hq, 0.0)
    square += tl.where(u[2] * u[1] != 0, u[2] * u[1] * gq, 0.0)
    square += tl.where(u[2] * u[2] != 0, u[2] * u[2] * qq, 0.0)
    norm = tl.sqrt_rn(tl.maximum(square, 0.0))
    scale = tl.where(match_norm, ratio(tl.sqrt_rn(gg), norm), 1.0)
    clip = tl.div_rn(max_norm, scale * norm + 1e-6)
    scale = tl.where(clip < 1, scale * clip, scale)
    return u[0] * scale, u[1] * scale, u[2] * scale


@triton.jit
def basis_of(gram):
    gg, gh, hh, _, _, qq = gram
    norm = tl.sqrt_rn(gg)
    return ratio(norm, tl.sqrt_rn(hh)), ratio(gh, hh), ratio(gh, gg), ratio(norm, tl.sqrt_rn(qq))
