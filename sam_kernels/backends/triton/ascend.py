"""ascend_ in Triton: one launch for the norm of the direction, one for the perturbation along it.

    d = +-(alpha g + beta q);  c = |w| + eta or 1;  sq_norm = sum |c d|^2;  s = rho / (sqrt(sq_norm) + eps)
    stash = w;  w += s c^2 d;  q <- ema[0] q + ema[1] g

Norm: reads g (and w where a group is adaptive, q where given), min(chunks, PARTIALS) programs. Update: reads w and g, writes w and
stash, 16 bytes per element, half in bf16 and fp16, 8 more with the update of q; one program per chunk. Deterministic.
With noise the signs of philox.py take the place of g: 4 bytes per element less, in norm and update.
The phase "norm" ends after the first launch and two small torch ops, "update" takes sq_norm as it is.
Every program of the update sums the partial norms itself: a grid-wide barrier cannot be interpreted, and a third launch would cost
more than the 4 KB read from L2. It walks the chunks backwards, because the last ones read are still in that cache.
"""

# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.ascend_reference import HYPER, reference
from .ascend_norm import EPS, NEW, NORMALIZE, OLD, first_of, norm_kernel, options_of, words_of
from .formulas import adaptive_scale, ascent_direction, ascent_scale, is_finite
from .table import LAUNCH, numbers, table
from .tile import CHUNK, ELEMENTS, PARTIALS, STASH, TILE, Q, W, load, locate, narrow, read, store, total, widen, write


@triton.jit
def ascend_tile(
    at, start: tl.tensor, size: tl.tensor, scale: tl.tensor, options, ema, words: tl.tensor,
    T: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, EMA: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    alpha, beta, eta, adaptive = options
    stored = read(at, W, start, size, T, FULL)
    w = widen(stored)
    g = first_of(words, at, start, size, T, HAS_G, FULL)
    q = load(at, Q, start, size, T, FULL) if HAS_Q else g
    c = adaptive_scale(w, eta, adaptive)
    moved = tl.fma(scale, c * (c * ascent_direction(g, q, alpha, beta, HAS_G, HAS_Q)), w)
    write(at, STASH, stored, start, size, T, FULL)
    write(at, W, tl.where(scale != 0, narrow(moved, T), stored), start, size, T, FULL)  # w + 0 * inf would not be w
    if EMA:
        old, new, first, updates = ema
        if updates:
            store(at, Q, tl.where(first, g, tl.fma(old, q, new * g)), start, size, T, FULL)


@triton.jit(
    do_not_specialize=["stream"], do_not_specialize_on_alignment=["numbers", "rho", "direction", "sq_norm", "gram", "q_steps", "noise"]
)
def ascend_kernel(
    records: tl.tensor, tensor_of: tl.tensor, numbers: tl.tensor, partials: tl.tensor, rho: tl.tensor, direction: tl.tensor,
    sq_norm: tl.tensor, gram: tl.tensor, q_steps: tl.tensor, noise: tl.tensor, stream: tl.tensor,
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
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor, group, at, size, full = locate(records, tensor_of, chunk, T)
    words = words_of(noise, stream, records, tensor, chunk) if noise is not None else None
    radius, options = options_of(group, numbers, rho, direction)
    scale = ascent_scale(radius, norm, tl.load(numbers + NORMALIZE) != 0, tl.load(numbers + EPS))
    first = tl.load(q_steps) == 0 if q_steps is not None else False
    ema = tl.load(numbers + OLD), tl.load(numbers + NEW), first, is_finite(norm)
    if full:
        for start in range(0, CHUNK, TILE):
            ascend_tile(at, start, size, scale, options, ema, words, T, HAS_G, HAS_Q, EMA, True)
    else:
        for start in range(0, size, TILE):
            ascend_tile(at, start, size, scale, options, ema, words, T, HAS_G, HAS_Q, EMA, False)


def ascend_(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str,
    noise: Tensor | None, noise_stream: int,
) -> None:  # fmt: skip
    if not any(x.numel() for x in params):
        return reference(params, grads, stash, q, sq_norm, gram, q_steps, rho, direction_device, group, hyper, direction, ema, eps,
                         normalize, phase, noise, noise_stream)  # fmt: skip
    found = table(group, w=params, stash=stash, g=grads, q=q)
    device, element, partials = params[0].device, ELEMENTS[params[0].dtype], None
    scalars = numbers(device, (*direction, *(ema or (0.0, 0.0)), eps, float(normalize), *hyper))
    weighted, plain = any(hyper[HYPER.index("adaptive") :: len(HYPER)]), gram is not None and bool(grads)
    has_g = bool(grads) or noise is not None
    if phase != "update":
        partials = torch.empty(2, PARTIALS.value, dtype=torch.float32, device=device)
        programs = min(found.chunks, PARTIALS.value)
        norm_kernel[(programs,)](
            found.records, found.tensor_of, found.chunks, scalars, partials, rho, direction_device, noise, noise_stream, element, has_g,
            bool(q), weighted, plain, **LAUNCH,
        )  # fmt: skip
        if phase == "norm":
            norms = partials[:, :programs].sum(1)
            sq_norm.copy_(norms[:1])
            if gram is not None and plain:
                gram[:1].copy_(norms[1:])
            return None
    ascend_kernel[(found.chunks,)](
        found.records, found.tensor_of, scalars, partials, rho, direction_device, sq_norm, gram if plain else None,
        q_steps if ema else None, noise, noise_stream, element, has_g, bool(q), bool(ema), **LAUNCH,
    )  # fmt: skip
    if ema and q_steps is not None:
        q_steps.add_(torch.isfinite(sq_norm))
    return None
