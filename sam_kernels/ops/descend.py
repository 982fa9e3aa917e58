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
from .bases import HYPER, sgd
from .coefficients import PLAIN, Combination, check_sources, resolve
from .inner_products import reference as inner_products_reference
from .lists import PerGroup, accumulator, check_aliasing, check_group, check_lists, check_scalar, hyper_table

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
    fresh = inner_products_reference(g, h, q, [], 0.0) if needed & ~given else gram
    for k in range(6):
        if (needed & ~given) >> k & 1:
            gram[k] = fresh[k]
    skip = torch.zeros((), dtype=torch.bool, device=gram.device) if found_inf is None else (found_inf != 0).all()
    for x in (sq_norm, *(gram[k] for k in range(6) if needed >> k & 1)):
        skip = skip if x is None else skip | ~torch.isfinite(x).all()
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
            w, m = sgd(values, lr, row, clean, params[t] if decay_at_perturbed else clean, combine(0), combine(1),
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


OP = declare("descend_", SCHEMA, reference)


def descend_(
    params: Sequence[Tensor], h: Sequence[Tensor] | None = None, *, base: str, stash: Sequence[Tensor] | None = None,
    g: Sequence[Tensor] | None = None, q: Sequence[Tensor] | None = None, lr: PerGroup | Tensor = 0.0, momentum: PerGroup = 0.0,
    dampening: PerGroup = 0.0, weight_decay: PerGroup = 0.0, nesterov: bool | Sequence[bool] = False,
    maximize: bool | Sequence[bool] = False, momentum_buffers: Sequence[Tensor] | None = None, steps: Tensor | None = None,
    coefficients: Combination = PLAIN, match_norm: bool = False, max_norm: float = inf, decay_at: str = "clean",
    gram: Tensor | None = None, given: Sequence[str] = (), sq_norm: Tensor | None = None, found_inf: Tensor | None = None,
    group: Sequence[int] | None = None, backend: str | None = None,
) -> None:  # fmt: skip
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
    if base not in HYPER or decay_at not in ("clean", "perturbed"):
        raise ValueError(f"base is {base!r}, decay_at is {decay_at!r}; expected one of {tuple(HYPER)} and 'clean' or 'perturbed'")
    lists = {"h": h, "g": g, "q": q}
    check_lists("params", {"params": params, "stash": stash, "momentum_buffers": momentum_buffers, **lists})
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm!r}; expected a number > 0, infinity for no clipping")
    flat, write_q = coefficients.flat, coefficients.writes_q()
    if base == "none":  # nothing sees u
        match_norm, max_norm = False, inf
    needed, known = check_sources(coefficients, lists, match_norm, max_norm, given, gram, idle=base == "none" and not write_q)
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
    if (needed or write_q) and gram is None and like is not None:
        gram = torch.zeros(6, dtype=dtype, device=like.device)
    lr_device = lr if isinstance(lr, Tensor) else None
    for name, x, numel in (("gram", gram, 6), ("sq_norm", sq_norm, 1), ("lr", lr_device, groups)):
        check_scalar(name, x, like, numel, dtype)
    check_scalar("found_inf", found_inf, like, 1, torch.float32)
    check_scalar("steps", steps, like, len(params), torch.float32)
    with torch.no_grad():
        call(OP, backend, list(params), *(list(x or ()) for x in (stash, h, g, q, momentum_buffers)), steps, gram, sq_norm, found_inf,
             lr_device, rows, hyper, base, flat, write_q, match_norm, float(max_norm), decay_at == "perturbed", needed, known)  # fmt: skip
        torch.autograd.graph.increment_version([*params, *(momentum_buffers or ()), *((q or ()) if write_q else ())])


def restore_(params: Sequence[Tensor], stash: Sequence[Tensor], *, backend: str | None = None) -> None:
    """Copy the clean weights back, bit for bit and in place: ``descend_`` with base ``"none"``."""
    descend_(params, stash=stash, base="none", backend=backend)
