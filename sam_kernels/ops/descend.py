"""descend_: restore the clean weights and take the base optimizer's step from them, in one call.

    w0 = stash where given, else w
    u, direct, q' = combinations of (h, g, q), coefficients.py     u rescaled to |g| (match_norm) and to at most max_norm
    w = base(w0, u);  w -= lr direct                               weight decay reads w0, or the perturbed w
    q <- q' where the combination writes it, its squared norm into gram
    a non-finite sq_norm or needed Gram entry, or found_inf, skips the step: w = w0 and nothing else is written

Base "none" is the pure restore. "sgd" is torch.optim.SGD, bit for bit on CPU where u = h. Reads stash, h and the momentum, writes
w and the momentum: 20 bytes per element in fp32, 4 more for every list or norm beyond. Deterministic.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from .coefficients import PLAIN, Combination, entry_mask, needed_entries, resolve
from .inner_products import reference as inner_products_reference
from .lists import PerGroup, accumulator, check_aliasing, check_group, check_lists, check_scalar, hyper_table

HYPER = {"none": (), "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")}
SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] stash, Tensor[] h, Tensor[] g, Tensor(b!)[] q, Tensor(c!)[] state, Tensor(d!)? steps, "
    "Tensor(e!)? gram, Tensor? sq_norm, Tensor? found_inf, Tensor? lr, int[] group, float[] hyper, str base, "
    "float[] coefficients, bool write_q, bool match_norm, float max_norm, bool decay_at_perturbed, int needed, int given) -> ()"
)


def reference(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], state: list[Tensor],
    steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None, lr: Tensor | None,
    group: list[int], hyper: list[float], base: str, coefficients: list[float], write_q: bool, match_norm: bool,
    max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    """The specification: plain torch, any device and floating dtype."""
    if not params:
        return
    dtype, columns = accumulator(params[0].dtype), len(HYPER[base])
    if gram is None:
        gram = torch.zeros(6, dtype=dtype, device=params[0].device)
    if reduced := needed & ~given:
        fresh = inner_products_reference(g, h, q, [], 0.0)
        for k in range(6):
            if reduced >> k & 1:
                gram[k] = fresh[k]
    skip = torch.zeros((), dtype=torch.bool, device=params[0].device)
    for x in (sq_norm, *(gram[k] for k in range(6) if needed >> k & 1)):
        skip = skip if x is None else skip | ~torch.isfinite(x).all()
    skip = skip if found_inf is None else skip | (found_inf != 0).all()
    factors = resolve(coefficients, gram, match_norm, max_norm)
    kept_norm = torch.zeros((), dtype=dtype, device=params[0].device)
    for t, row in enumerate(group):
        clean = stash[t] if stash else params[t].clone()
        inputs = [x[t].to(dtype) if x else None for x in (h, g, q)]

        def combine(output: int, inputs: list[Tensor | None] = inputs, like: Tensor = clean) -> Tensor:
            total = torch.zeros_like(like, dtype=dtype)
            for i, x in enumerate(inputs):
                if x is not None:
                    total = torch.where(factors[output, i] != 0, total + factors[output, i] * x, total)
            return total

        if base == "sgd":
            values = hyper[columns * row : columns * (row + 1)]
            w, m = _sgd(values, lr, row, clean, params[t] if decay_at_perturbed else clean, combine(0), combine(1),
                        state[t] if state else None, steps[t] if steps is not None else None)  # fmt: skip
            if m is not None and values[1] != 0:
                state[t].copy_(torch.where(skip, state[t], m.to(state[t].dtype)))
            params[t].copy_(torch.where(skip, clean, w.to(clean.dtype)))
        else:
            params[t].copy_(clean)
        if write_q:
            kept = combine(2).to(q[t].dtype)
            kept_norm = kept_norm + kept.to(dtype).square().sum()
            q[t].copy_(torch.where(skip, q[t], kept))
    if write_q:
        gram[5] = torch.where(skip, gram[5], kept_norm)
    if steps is not None and base == "sgd":
        counts = torch.tensor([float(hyper[columns * row + 1] != 0) for row in group], dtype=steps.dtype, device=steps.device)
        steps += torch.where(skip, torch.zeros_like(counts), counts)


def _sgd(
    values: list[float], lr: Tensor | None, row: int, clean: Tensor, at: Tensor, u: Tensor, direct: Tensor,
    m: Tensor | None, step: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    rate, momentum, dampening, weight_decay, nesterov, maximize = values
    alpha = lr[row].to(u.dtype) if lr is not None else rate
    u, direct = (-u, -direct) if maximize else (u, direct)
    if weight_decay != 0:
        u = u + weight_decay * at.to(u.dtype)
    if m is not None and momentum != 0:
        buffer = m.to(u.dtype) * momentum + (1 - dampening) * u
        m = torch.where(step == 0, u, buffer) if step is not None else buffer
        u = u + momentum * m if nesterov else m
    return clean.to(u.dtype) - alpha * u - alpha * direct, m


OP = declare("descend_", SCHEMA, reference)


def descend_(
    params: Sequence[Tensor],
    h: Sequence[Tensor] | None = None,
    *,
    base: str,
    stash: Sequence[Tensor] | None = None,
    g: Sequence[Tensor] | None = None,
    q: Sequence[Tensor] | None = None,
    lr: PerGroup | Tensor = 0.0,
    momentum: PerGroup = 0.0,
    dampening: PerGroup = 0.0,
    weight_decay: PerGroup = 0.0,
    nesterov: bool | Sequence[bool] = False,
    maximize: bool | Sequence[bool] = False,
    momentum_buffers: Sequence[Tensor] | None = None,
    steps: Tensor | None = None,
    coefficients: Combination = PLAIN,
    match_norm: bool = False,
    max_norm: float = inf,
    decay_at: str = "clean",
    gram: Tensor | None = None,
    given: Sequence[str] = (),
    sq_norm: Tensor | None = None,
    found_inf: Tensor | None = None,
    group: Sequence[int] | None = None,
    backend: str | None = None,
) -> None:
    """Restore ``params`` from ``stash`` and apply one base-optimizer update to them (SAM and Stable SAM, arXiv 2401.07250).

    Args:
        params: weights, perturbed on entry, updated in place. ``stash``: their clean values; None where they are clean already.
        h, g, q: second gradient, first gradient, kept vector; only those that ``coefficients`` reads. q is written where it says so.
        base: ``"none"`` (restore only) or ``"sgd"``, whose hyperparameters are those of torch.optim.SGD, one number or one per
            group; ``lr`` may be a ``[groups]`` tensor on the device.
        momentum_buffers: state, updated in place; needed where a momentum is not 0. ``steps``: ``[tensors]`` fp32 count of
            updates, incremented in place; a tensor at 0 has no buffer yet. None: the buffers are taken as they are.
        coefficients, match_norm, max_norm: what u is; ``match_norm=True`` gives it the norm of g (Stable SAM).
        decay_at: weight decay reads the ``"clean"`` or the ``"perturbed"`` weight (MomentumSAM).
        gram: ``[6]`` Gram vector (g.g, g.h, h.h, g.q, h.q, q.q); entries named in ``given`` are read from it, the others that are
            needed are reduced here and written to it.
        sq_norm: ``[1]`` squared norm of the ascent. ``found_inf``: ``[1]`` fp32. Not finite, or not 0: the step is skipped.
        group, backend: as in ``ascend_``.

    Raises:
        TypeError, ValueError: before anything is written; the message names the argument.
    """
    if base not in HYPER:
        raise ValueError(f"base is {base!r}; expected one of {tuple(HYPER)}")
    if decay_at not in ("clean", "perturbed"):
        raise ValueError(f"decay_at is {decay_at!r}; expected 'clean' or 'perturbed'")
    lists = {"params": params, "stash": stash, "h": h, "g": g, "q": q, "momentum_buffers": momentum_buffers}
    check_lists("params", lists)
    write_q = any(x != 0 for x in coefficients.flat()[30:])
    reads = {} if base == "none" and not write_q else {k: v for k, v in (("h", h), ("g", g), ("q", q)) if coefficients.reads(k)}
    if absent := [k for k, v in reads.items() if v is None] or (["q"] if write_q and q is None else []):
        raise ValueError(f"coefficients involve {absent[0]}, which is None; pass the list")
    check_aliasing({"params": params, "momentum_buffers": momentum_buffers, "q": q if write_q else None},
                   {"stash": stash, "h": h, "g": g, "q": None if write_q else q})  # fmt: skip
    columns: dict[str, Any] = {"lr": 0.0 if isinstance(lr, Tensor) else lr, "momentum": momentum, "dampening": dampening,
               "weight_decay": weight_decay, "nesterov": nesterov, "maximize": maximize}  # fmt: skip
    rows, groups = check_group(group, len(params), columns)
    hyper = hyper_table(groups, {k: columns[k] for k in HYPER[base]}, nonnegative=("lr", "momentum", "weight_decay"))
    if base == "sgd" and momentum_buffers is None and any(hyper[1 :: len(columns)]):
        raise ValueError("momentum is not 0 but momentum_buffers is None; pass one tensor per parameter")
    like = params[0] if params else None
    dtype = accumulator(like.dtype) if like is not None else torch.float32
    needed, known = needed_entries(coefficients, match_norm, max_norm), entry_mask(given)
    needed = needed if base != "none" or write_q else 0
    if known and gram is None:
        raise ValueError(f"given names {tuple(given)} but gram is None; pass the [6] tensor that holds them")
    if blind := [k for k, v in (("g", g), ("h", h), ("q", q)) if v is None and needed & ~known & entry_mask([e for e in _entries(k)])]:
        raise ValueError(f"the norms need {blind[0]}, which is None; pass the list, or the entries in gram with given=")
    if (needed or write_q) and gram is None and like is not None:
        gram = torch.zeros(6, dtype=dtype, device=like.device)
    for name, x, numel in (("gram", gram, 6), ("sq_norm", sq_norm, 1), ("lr", lr if isinstance(lr, Tensor) else None, groups)):
        check_scalar(name, x, like, numel, dtype)
    check_scalar("found_inf", found_inf, like, 1, torch.float32)
    check_scalar("steps", steps, like, len(params), torch.float32)
    with torch.no_grad():
        call(
            OP, backend, list(params), list(stash or ()), list(h or ()), list(g or ()), list(q or ()),
            list(momentum_buffers or ()), steps, gram, sq_norm, found_inf, lr if isinstance(lr, Tensor) else None, rows, hyper,
            base, coefficients.flat(), write_q, match_norm, float(max_norm), decay_at == "perturbed", needed, known,
        )  # fmt: skip
        torch.autograd.graph.increment_version([*params, *(momentum_buffers or ()), *((q or ()) if write_q else ())])


def _entries(key: str) -> tuple[str, ...]:
    return tuple(name for name in ("gg", "gh", "hh", "gq", "hq", "qq") if key in name)


def restore_(params: Sequence[Tensor], stash: Sequence[Tensor], *, backend: str | None = None) -> None:
    """Copy the clean weights back, bit for bit and in place: ``descend_`` with base ``"none"``."""
    descend_(params, stash=stash, base="none", backend=backend)
