"""ascend_ in Triton: one launch for the norm of the direction, one for the perturbation along it.

    d = +-(alpha g + beta q);  c = |w| + eta or 1;  sq_norm = sum |c d|^2;  s = rho / (sqrt(sq_norm) + eps)
    stash = w;  w += s c^2 d;  q <- ema[0] q + ema[1] g

Norm: reads g (and w where a group is adaptive, q where given), min(chunks, PARTIALS) programs. Update: reads w and g, writes w and
stash, 16 bytes per element, half in bf16 and fp16, 8 more with the update of q; one program per chunk. Deterministic.
The phase "norm" ends after the first launch and two small torch ops, "update" takes sq_norm as it is.
Every program of the update sums the partial norms itself: a grid-wide barrier cannot be interpreted, and a third launch would cost
more than the 4 KB read from L2. It walks the chunks backwards, because the last ones read are still in that cache.
"""

# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.ascend import HYPER, reference
from .formulas import adaptive_scale, ascent_direction, ascent_scale, is_finite
from .table import LAUNCH, numbers, table
from .tile import CHUNK, ELEMENTS, PARTIALS, STASH, TILE, G, Q, W, load, locate, narrow, read, store, total, widen, write

OLD, NEW, EPS, NORMALIZE, GROUPS = (tl.constexpr(i) for i in range(2, 7))  # `numbers`: direction, these, then HYPER per group


@triton.jit
def options_of(group: tl.tensor, numbers: tl.tensor, rho: tl.tensor, direction: tl.tensor):
    """(radius, (alpha, beta, eta, adaptive)), the sign of `maximize` in the radius."""
    row = numbers + GROUPS + 4 * group
    radius = tl.load(row) if rho is None else tl.load(rho + group)
    factors = numbers if direction is None else direction
    options = tl.load(factors), tl.load(factors + 1), tl.load(row + 1), tl.load(row + 2) != 0
    return tl.where(tl.load(row + 3) != 0, -radius, radius), options


@triton.jit
def add_norm(
    square: tl.tensor, plain: tl.tensor, at, start: tl.tensor, size: tl.tensor, options, counted: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr, PLAIN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    alpha, beta, eta, adaptive = options
    g = load(at, G, start, size, T, FULL) if HAS_G else tl.zeros_like(square)
    q = load(at, Q, start, size, T, FULL) if HAS_Q else g
    d = ascent_direction(g, q, alpha, beta, HAS_G, HAS_Q)
    if WEIGHTED:
        d = adaptive_scale(load(at, W, start, size, T, FULL), eta, adaptive) * d
    square = tl.where(counted, tl.fma(d, d, square), square)
    return square, tl.fma(g, g, plain) if PLAIN else plain


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["numbers", "rho", "direction"])
def norm_kernel(
    records: tl.tensor, tensor_of: tl.tensor, chunks: tl.tensor, numbers: tl.tensor, partials: tl.tensor, rho: tl.tensor,
    direction: tl.tensor, T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, WEIGHTED: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    square = tl.zeros([TILE], tl.float32)
    plain = tl.zeros([TILE], tl.float32)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        _, group, at, size, full = locate(records, tensor_of, chunk, T)
        radius, options = options_of(group, numbers, rho, direction)
        if full:
            for start in range(0, CHUNK, TILE):
                square, plain = add_norm(square, plain, at, start, size, options, radius != 0, T, HAS_G, HAS_Q, WEIGHTED, PLAIN, True)
        else:
            for start in range(0, size, TILE):
                square, plain = add_norm(square, plain, at, start, size, options, radius != 0, T, HAS_G, HAS_Q, WEIGHTED, PLAIN, False)
    tl.store(partials + tl.program_id(0), tl.sum(square))
    tl.store(partials + PARTIALS + tl.program_id(0), tl.sum(plain))


@triton.jit
def ascend_tile(
    at, start: tl.tensor, size: tl.tensor, scale: tl.tensor, options, ema,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, EMA: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    alpha, beta, eta, adaptive = options
    stored = read(at, W, start, size, T, FULL)
    w = widen(stored)
    g = load(at, G, start, size, T, FULL) if HAS_G else tl.zeros_like(w)
    q = load(at, Q, start, size, T, FULL) if HAS_Q else g
    c = adaptive_scale(w, eta, adaptive)
    moved = tl.fma(scale, c * (c * ascent_direction(g, q, alpha, beta, HAS_G, HAS_Q)), w)
    write(at, STASH, stored, start, size, T, FULL)
    write(at, W, tl.where(scale != 0, narrow(moved, T), stored), start, size, T, FULL)  # w + 0 * inf would not be w
    if EMA:
        old, new, first, updates = ema
        if updates:
            store(at, Q, tl.where(first, g, tl.fma(old, q, new * g)), start, size, T, FULL)


@triton.jit(do_not_specialize_on_alignment=["numbers", "rho", "direction", "sq_norm", "gram", "q_steps"])
def ascend_kernel(
    records: tl.tensor, tensor_of: tl.tensor, numbers: tl.tensor, partials: tl.tensor, rho: tl.tensor, direction: tl.tensor,
    sq_norm: tl.tensor, gram: tl.tensor, q_steps: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, EMA: tl.constexpr,
):  # fmt: skip
    if partials is None:
        norm = tl.load(sq_norm)
    else:  # what program 0 writes, no other program reads
        programs = tl.minimum(tl.num_programs(0), PARTIALS)
        norm = total(partials, 0, programs)
        if tl.program_id(0) == 0:
            tl.store(sq_norm, norm)
            if gram is not None:
                tl.store(gram, total(partials, 1, programs))
    _, group, at, size, full = locate(records, tensor_of, tl.num_programs(0) - 1 - tl.program_id(0), T)
    radius, options = options_of(group, numbers, rho, direction)
    scale = ascent_scale(radius, norm, tl.load(numbers + NORMALIZE) != 0, tl.load(numbers + EPS))
    first = tl.load(q_steps) == 0 if q_steps is not None else False
    ema = tl.load(numbers + OLD), tl.load(numbers + NEW), first, is_finite(norm)
    if full:
        for start in range(0, CHUNK, TILE):
            ascend_tile(at, start, size, scale, options, ema, T, HAS_G, HAS_Q, EMA, True)
    else:
        for start in range(0, size, TILE):
            ascend_tile(at, start, size, scale, options, ema, T, HAS_G, HAS_Q, EMA, False)


def ascend_(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str,
) -> None:  # fmt: skip
    if not any(x.numel() for x in params):
        return reference(params, grads, stash, q, sq_norm, gram, q_steps, rho, direction_device, group, hyper, direction, ema, eps,
                         normalize, phase)  # fmt: skip
    found = table(group, w=params, stash=stash, g=grads, q=q)
    device, element, partials = params[0].device, ELEMENTS[params[0].dtype], None
    scalars = numbers(device, (*direction, *(ema or (0.0, 0.0)), eps, float(normalize), *hyper))
    weighted, plain = any(hyper[HYPER.index("adaptive") :: len(HYPER)]), gram is not None and bool(grads)
    if phase != "update":
        partials = torch.empty(2, PARTIALS.value, dtype=torch.float32, device=device)
        programs = min(found.chunks, PARTIALS.value)
        norm_kernel[(programs,)](
            found.records, found.tensor_of, found.chunks, scalars, partials, rho, direction_device, element, bool(grads), bool(q),
            weighted, plain, **LAUNCH,
        )  # fmt: skip
        if phase == "norm":
            norms = partials[:, :programs].sum(1)
            sq_norm.copy_(norms[:1])
            if gram is not None and plain:
                gram[:1].copy_(norms[1:])
            return None
    ascend_kernel[(found.chunks,)](
        found.records, found.tensor_of, scalars, partials, rho, direction_device, sq_norm, gram if plain else None,
        q_steps if ema else None, element, bool(grads), bool(q), bool(ema), **LAUNCH,
    )  # fmt: skip
    if ema and q_steps is not None:
        q_steps.add_(torch.isfinite(sq_norm))
    return None
