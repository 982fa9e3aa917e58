"""descend_ in Triton: where a coefficient needs a norm one launch for the Gram entries, then one for the whole update.

    u, direct, q' = combinations of (h, g, q) with factors resolved from the Gram entries
    w = base(w0, u) - lr direct, w0 = stash or w;  q <- q';  skip: w = w0 and nothing else

Gram: every list that a missing entry reads (inner_products_kernel). Update: every present operand once, in fp32 20 bytes per element
for SGD with momentum and Lion (stash, h, m read; w, m written), 28 for Adam; one program per chunk, backwards through memory, so that
what the Gram phase read last is still in L2. Deterministic; the norm of q' is summed from one partial per chunk by torch.
Every program resolves the factors itself from device memory: 45 scalar loads and nine products are cheaper than a launch. (The options
come before the factors: that way round takes fewer registers.) What the
kernel has to change but its own programs read (step counts, the norm of q) is changed after it, by small torch ops.
"""

# ruff: noqa: ANN001, ANN201, SIM102 (tuples of scalars have no useful annotation; a compile-time and a run-time test do not combine)

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.bases import BASES, rows_of, states_used
from ...ops.descend import reference
from .bases import options_of, row_of, update, uses
from .formulas import basis_of, combine, factors_in_units, factors_of, gram_in_units, is_finite, rescale, units_of
from .inner_products import gram_entries, reduce_gram
from .table import LAUNCH, numbers, table
from .tile import CHUNK, ELEMENTS, STASH, TILE, V_MAX, G, H, M, Q, V, W, load, load_if, locate, narrow, read, store, widen, write

MAX_NORM, MATCH_NORM, COEFFICIENTS, GROUPS = (tl.constexpr(i) for i in (0, 1, 2, 47))  # `numbers`: these, then a row per group


@triton.jit
def load_state(at, start: tl.tensor, size: tl.tensor, used, zero: tl.tensor, STATE: tl.constexpr, FULL: tl.constexpr):
    """m, v and v_max of a tile; zeros where they are absent or not used."""
    m = load_if(used[0], at, M, start, size, FULL) if STATE > 0 else zero
    v = load_if(used[1], at, V, start, size, FULL) if STATE > 1 else zero
    return m, v, load_if(used[2], at, V_MAX, start, size, FULL) if STATE > 2 else zero


@triton.jit
def store_state(at, state, start: tl.tensor, size: tl.tensor, used, go: tl.tensor, STATE: tl.constexpr, FULL: tl.constexpr):
    if STATE > 0:
        if go & used[0]:
            store(at, M, state[0], start, size, tl.float32, FULL)
    if STATE > 1:
        if go & used[1]:
            store(at, V, state[1], start, size, tl.float32, FULL)
    if STATE > 2:
        if go & used[2]:
            store(at, V_MAX, state[2], start, size, tl.float32, FULL)


@triton.jit
def descend_tile(
    at, start: tl.tensor, size: tl.tensor, u, direct, kept, options, go: tl.tensor,
    T: tl.constexpr, BASE: tl.constexpr, HAS_STASH: tl.constexpr, HAS_H: tl.constexpr, HAS_G: tl.constexpr, HAS_Q: tl.constexpr,
    STATE: tl.constexpr, WRITE_Q: tl.constexpr, AT_PERTURBED: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Update one tile; returns the squares of what it wrote to q."""
    stored = read(at, STASH if HAS_STASH else W, start, size, T, FULL)
    clean = widen(stored)
    zero = tl.zeros_like(clean)
    h = load(at, H, start, size, T, FULL) if HAS_H else zero
    g = load(at, G, start, size, T, FULL) if HAS_G else zero
    q = load(at, Q, start, size, T, FULL) if HAS_Q else zero
    if BASE != "none":
        decayed = load(at, W, start, size, T, FULL) if AT_PERTURBED else clean
        used = uses(options, BASE)
        state = load_state(at, start, size, used, zero, STATE, FULL)
        w, state = update(clean, decayed, combine(u, h, g, q, HAS_H, HAS_G, HAS_Q), state, options, BASE, STATE > 0)
        if (direct[0] != 0) | (direct[1] != 0) | (direct[2] != 0):
            d = combine(direct, h, g, q, HAS_H, HAS_G, HAS_Q)
            w = tl.fma(-options[0], tl.where(options[1], -d, d), w)
        write(at, W, tl.where(go, narrow(w, T), stored), start, size, T, FULL)
        store_state(at, state, start, size, used, go, STATE, FULL)
    elif HAS_STASH:
        write(at, W, stored, start, size, T, FULL)
    if WRITE_Q:
        zero = combine(kept, h, g, q, HAS_H, HAS_G, HAS_Q)
        if go:
            store(at, Q, zero, start, size, T, FULL)
    return zero * zero


@triton.jit(do_not_specialize_on_alignment=["numbers", "gram", "sq_norm", "found_inf", "loss_scale", "lr", "steps"])
def descend_kernel(
    records: tl.tensor, tensor_of: tl.tensor, numbers: tl.tensor, partials: tl.tensor, gram: tl.tensor, sq_norm: tl.tensor,
    found_inf: tl.tensor, loss_scale: tl.tensor, lr: tl.tensor, steps: tl.tensor, went: tl.tensor, squares: tl.tensor,
    T: tl.constexpr, BASE: tl.constexpr, NEEDED: tl.constexpr, REDUCED: tl.constexpr, HAS_STASH: tl.constexpr, HAS_H: tl.constexpr,
    HAS_G: tl.constexpr, HAS_Q: tl.constexpr, STATE: tl.constexpr, WRITE_Q: tl.constexpr, AT_PERTURBED: tl.constexpr,
):  # fmt: skip
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    tensor, group, at, size, full = locate(records, tensor_of, chunk, T)
    count = tl.load(steps + tensor) if steps is not None else 1.0
    options = options_of(numbers + GROUPS, group, lr, count, BASE) if BASE != "none" else count
    entries, go = gram_entries(gram, partials, NEEDED, REDUCED)
    go = go if sq_norm is None else go & is_finite(tl.load(sq_norm))
    go = go if found_inf is None else go & (tl.load(found_inf) == 0)
    if tl.program_id(0) == 0:
        tl.store(went, tl.where(go, 1.0, 0.0))
    units = units_of(loss_scale) if loss_scale is not None else (1.0, 1.0)
    entries = gram_in_units(entries, units) if NEEDED and loss_scale is not None else entries
    basis = basis_of(entries) if NEEDED else entries
    u = factors_of(numbers + COEFFICIENTS, 0, basis, NEEDED != 0)
    u = rescale(u, entries, tl.load(numbers + MATCH_NORM) != 0, tl.load(numbers + MAX_NORM)) if NEEDED else u
    direct = factors_of(numbers + COEFFICIENTS, 1, basis, NEEDED != 0) if BASE != "none" else u
    kept = factors_of(numbers + COEFFICIENTS, 2, basis, NEEDED != 0) if WRITE_Q else u
    if loss_scale is not None:
        u, direct, kept = factors_in_units(u, units), factors_in_units(direct, units), factors_in_units(kept, units)
    square = tl.zeros([TILE], tl.float32)
    if full:
        for start in range(0, CHUNK, TILE):
            square += descend_tile(at, start, size, u, direct, kept, options, go, T, BASE, HAS_STASH, HAS_H, HAS_G, HAS_Q, STATE, WRITE_Q,
                                   AT_PERTURBED, True)  # fmt: skip
    else:
        for start in range(0, size, TILE):
            square += descend_tile(at, start, size, u, direct, kept, options, go, T, BASE, HAS_STASH, HAS_H, HAS_G, HAS_Q, STATE, WRITE_Q,
                                   AT_PERTURBED, False)  # fmt: skip
    if squares is not None:
        tl.store(squares + chunk, tl.sum(square))


def descend_(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], m: list[Tensor], v: list[Tensor],
    v_max: list[Tensor], steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None,
    loss_scale: Tensor | None, lr: Tensor | None, group: list[int], hyper: list[float], base: str, coefficients: list[float],
    write_q: bool, match_norm: bool, max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    if not any(x.numel() for x in params):
        return reference(params, stash, h, g, q, m, v, v_max, steps, gram, sq_norm, found_inf, loss_scale, lr, group, hyper, base,
                         coefficients, write_q, match_norm, max_norm, decay_at_perturbed, needed, given)  # fmt: skip
    device, dtype, reduced, options = params[0].device, params[0].dtype, needed & ~given, rows_of(base, hyper)
    outputs = (0, 15) * (base != "none") + (30,) * write_q
    reads = [bool(x) and any(any(coefficients[k + 5 * i : k + 5 * i + 5]) for k in outputs) for i, x in enumerate((h, g, q))]
    used = {name for row in set(group) for name in states_used(base, options[row])} if options else set()
    state = {name: x for name, x in (("m", m), ("v", v), ("v_max", v_max)) if x and name in used}
    found = table(group, w=params, stash=stash, h=h, g=g, q=q, **state)
    gram = torch.zeros(6, dtype=torch.float32, device=device) if gram is None and needed else gram
    scalars = (max_norm, float(match_norm), *coefficients, *(x for o in options for x in row_of(base, o)))
    went = torch.empty(1, dtype=torch.float32, device=device)
    squares = torch.empty(found.chunks, dtype=torch.float32, device=device) if write_q and gram is not None else None
    descend_kernel[(found.chunks,)](
        found.records, found.tensor_of, numbers(device, scalars), reduce_gram(found, dtype, reduced) if reduced else None,
        gram if needed else None, sq_norm, found_inf, loss_scale, lr, steps, went, squares, ELEMENTS[dtype], base, needed, reduced,
        bool(stash), *reads, len(state), write_q, decay_at_perturbed and bool(stash), **LAUNCH,
    )  # fmt: skip
    if steps is not None and base != "none":
        steps.addcmul_(numbers(device, [float(BASES[base].counts(options[row])) for row in group]), went)
    if squares is not None and gram is not None:
        gram[5:].copy_(torch.where(went != 0, squares.sum(), gram[5:]))
    return None
