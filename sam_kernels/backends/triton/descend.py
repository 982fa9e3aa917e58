"""descend_ in Triton: where a coefficient needs a norm one launch for the Gram entries, then one for the whole update.

    u, direct, q' = combinations of (h, g, q) with factors resolved from the Gram entries
    w = base(w0, u) - lr direct, w0 = stash or w;  q <- q';  skip: w = w0 and nothing else

Gram: 4 bytes per element of every list that a missing entry reads (inner_products_kernel). Update: every present operand once, 20
bytes per element for SGD with momentum (stash, h, m read; w, m written); one program per chunk, backwards through memory, so that
what the Gram phase read last is still in L2. Deterministic; the norm of q' is summed from one partial per chunk by torch.
Every program resolves the factors itself from device memory: 45 scalar loads and nine products are cheaper than a launch. What the
kernel has to change but its own programs read (step counts, the norm of q) is changed after it, by small torch ops.
"""

# ruff: noqa: ANN001, ANN201, SIM102 (tuples of scalars have no useful annotation; a compile-time and a run-time test do not combine)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.bases import HYPER
from ...ops.descend import reference
from .formulas import basis_of, combine, factors_of, is_finite, rescale, sgd
from .inner_products import gram_entries, reduce_gram
from .table import LAUNCH, numbers, table
from .tile import CHUNK, STASH, STATE, TILE, G, H, Q, W, load, locate, store

MAX_NORM, MATCH_NORM, COEFFICIENTS, GROUPS = (tl.constexpr(i) for i in (0, 1, 2, 47))  # `numbers`: these, then HYPER per group


@triton.jit
def sgd_hyper(numbers: tl.tensor, lr: tl.tensor, group: tl.tensor):
    row = numbers + GROUPS + 6 * group
    rate = tl.load(row) if lr is None else tl.load(lr + group)
    return rate, tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4) != 0, tl.load(row + 5) != 0


@triton.jit
def descend_tile(
    at, start: tl.tensor, size: tl.tensor, u, direct, kept, hyper, first: tl.tensor, go: tl.tensor,
    HAS_STASH: tl.constexpr, HAS_H: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr, HAS_STATE: tl.constexpr, SGD: tl.constexpr,
    WRITE_Q: tl.constexpr, AT_PERTURBED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Update one tile; returns the squares of what it wrote to q."""
    clean = load(at[STASH] if HAS_STASH else at[W], start, size, FULL)
    zero = tl.zeros_like(clean)
    h = load(at[H], start, size, FULL) if HAS_H else zero
    g = load(at[G], start, size, FULL) if HAS_G else zero
    q = load(at[Q], start, size, FULL) if HAS_Q else zero
    if SGD:
        decayed = load(at[W], start, size, FULL) if AT_PERTURBED else clean
        m = load(at[STATE], start, size, FULL) if HAS_STATE else zero
        w, m = sgd(clean, decayed, combine(u, h, g, q, HAS_H, HAS_G, HAS_Q), m, first, hyper, HAS_STATE)
        lr, momentum, _, _, _, maximize = hyper
        if (direct[0] != 0) | (direct[1] != 0) | (direct[2] != 0):
            d = combine(direct, h, g, q, HAS_H, HAS_G, HAS_Q)
            w = tl.fma(-lr, tl.where(maximize, -d, d), w)
        store(at[W], tl.where(go, w, clean), start, size, FULL)
        if HAS_STATE:
            if go & (momentum != 0):
                store(at[STATE], m, start, size, FULL)
    elif HAS_STASH:
        store(at[W], clean, start, size, FULL)
    if WRITE_Q:
        zero = combine(kept, h, g, q, HAS_H, HAS_G, HAS_Q)
        if go:
            store(at[Q], zero, start, size, FULL)
    return zero * zero


@triton.jit(do_not_specialize_on_alignment=["numbers", "gram", "sq_norm", "found_inf", "lr", "steps"])
def descend_kernel(
    records: tl.tensor, tensor_of: tl.tensor, numbers: tl.tensor, partials: tl.tensor, gram: tl.tensor, sq_norm: tl.tensor,
    found_inf: tl.tensor, lr: tl.tensor, steps: tl.tensor, went: tl.tensor, squares: tl.tensor,
    NEEDED: tl.constexpr, REDUCED: tl.constexpr, HAS_STASH: tl.constexpr, HAS_H: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr,
    HAS_STATE: tl.constexpr, SGD: tl.constexpr, WRITE_Q: tl.constexpr, AT_PERTURBED: tl.constexpr,
):  # fmt: skip
    entries, go = gram_entries(gram, partials, NEEDED, REDUCED)
    go = go if sq_norm is None else go & is_finite(tl.load(sq_norm))
    go = go if found_inf is None else go & (tl.load(found_inf) == 0)
    if tl.program_id(0) == 0:
        tl.store(went, tl.where(go, 1.0, 0.0))
    basis = basis_of(entries) if NEEDED else entries
    u = factors_of(numbers + COEFFICIENTS, 0, basis, NEEDED != 0)
    u = rescale(u, entries, tl.load(numbers + MATCH_NORM) != 0, tl.load(numbers + MAX_NORM)) if NEEDED else u
    direct = factors_of(numbers + COEFFICIENTS, 1, basis, NEEDED != 0) if SGD else u
    kept = factors_of(numbers + COEFFICIENTS, 2, basis, NEEDED != 0) if WRITE_Q else u
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor, group, at, size, full = locate(records, tensor_of, chunk)
    hyper = sgd_hyper(numbers, lr, group) if SGD else u
    first = tl.load(steps + tensor) == 0 if steps is not None else False
    square = tl.zeros([TILE], tl.float32)
    if full:
        for start in range(0, CHUNK, TILE):
            square += descend_tile(at, start, size, u, direct, kept, hyper, first, go, HAS_STASH, HAS_H, HAS_G, HAS_Q, HAS_STATE, SGD,
                                   WRITE_Q, AT_PERTURBED, True)  # fmt: skip
    else:
        for start in range(0, size, TILE):
            square += descend_tile(at, start, size, u, direct, kept, hyper, first, go, HAS_STASH, HAS_H, HAS_G, HAS_Q, HAS_STATE, SGD,
                                   WRITE_Q, AT_PERTURBED, False)  # fmt: skip
    if squares is not None:
        tl.store(squares + chunk, tl.sum(square))


def descend_(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], state: list[Tensor],
    steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None, lr: Tensor | None,
    group: list[int], hyper: list[float], base: str, coefficients: list[float], write_q: bool, match_norm: bool,
    max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    if not any(x.numel() for x in params):
        return reference(params, stash, h, g, q, state, steps, gram, sq_norm, found_inf, lr, group, hyper, base, coefficients, write_q,
                         match_norm, max_norm, decay_at_perturbed, needed, given)  # fmt: skip
    device, is_sgd, columns, reduced = params[0].device, base == "sgd", len(HYPER[base]), needed & ~given
    outputs = (0, 15) * is_sgd + (30,) * write_q
    reads = [bool(x) and any(any(coefficients[k + 5 * i : k + 5 * i + 5]) for k in outputs) for i, x in enumerate((h, g, q))]
    moves = [is_sgd and hyper[columns * row + 1] != 0 for row in group]
    state = state if any(moves) else []
    found = table(group, w=params, stash=stash, h=h, g=g, q=q, state=state)
    gram = torch.zeros(6, dtype=torch.float32, device=device) if gram is None and needed else gram
    damped = [1.0 - x if is_sgd and i % columns == 2 else x for i, x in enumerate(hyper)]
    went = torch.empty(1, dtype=torch.float32, device=device)
    squares = torch.empty(found.chunks, dtype=torch.float32, device=device) if write_q and gram is not None else None
    descend_kernel[(found.chunks,)](
        found.records, found.tensor_of, numbers(device, (max_norm, float(match_norm), *coefficients, *damped)),
        reduce_gram(found, reduced) if reduced else None, gram if needed else None, sq_norm, found_inf, lr, steps, went, squares,
        needed, reduced, bool(stash), *reads, bool(state), is_sgd, write_q, decay_at_perturbed and bool(stash), **LAUNCH,
    )  # fmt: skip
    if steps is not None and is_sgd:
        steps.addcmul_(numbers(device, [float(x) for x in moves]), went)
    if squares is not None and gram is not None:
        gram[5:].copy_(torch.where(went != 0, squares.sum(), gram[5:]))
    return None
