"""descend_: restore the clean weights and take the base optimizer's step from them, in one call.

    w0 = stash where given, else w
    u, direct, q' = combinations of (h, g, q), coefficients.py     u rescaled to |g| (match_norm) and to at most max_norm
    w = base(w0, u);  w -= lr direct                               weight decay reads w0, or the perturbed w
    q <- q' where the combination writes it, its squared norm into gram
    a non-finite sq_norm or needed Gram entry, or found_inf, skips the step: w = w0 and nothing else is written

Base "none" is the pure restore. "sgd" is torch.optim.SGD, bit for bit on CPU where u = h; "adam" is Adam, AdamW and AMSGrad; "lion"
is Lion. SGD with momentum reads stash, h and the momentum and writes w and the momentum: 20 bytes per element in fp32, AdamW 28, 4
more for every list or norm beyond. bf16 and fp16 weights are computed in fp32 and rounded once. Deterministic.
"""

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .bases import BASES, check_state, option_table, rows_of, states_used
from .coefficients import PLAIN, Combination, check_sources, resolve
from .inner_products import reference as inner_products_reference
from .lists import PerGroup, accumulator, check_aliasing, check_lists, check_scalar

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] stash, Tensor[] h, Tensor[] g, Tensor(b!)[] q, Tensor(c!)[] m, Tensor(d!)[] v, Tensor(e!)[] v_max, "
    "Tensor(f!)? steps, Tensor(g!)? gram, Tensor? sq_norm, Tensor? found_inf, Tensor? loss_scale, Tensor? lr, int[] group, "
    "float[] hyper, str base, float[] coefficients, bool write_q, bool match_norm, float max_norm, bool decay_at_perturbed, "
    "int needed, int given) -> ()"
)


def reference(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], m: list[Tensor], v: list[Tensor],
    v_max: list[Tensor], steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None,
    loss_scale: Tensor | None, lr: Tensor | None, group: list[int], hyper: list[float], base: str, coefficients: list[float],
    write_q: bool, match_norm: bool, max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    """The specification: plain torch, any device and floating dtype."""
    if not params:
        return
    dtype, options = accumulator(params[0].dtype), rows_of(base, hyper)
    gram = torch.zeros(6, dtype=dtype, device=params[0].device) if gram is None else gram
    fresh = inner_products_reference(g, h, q, [], 0.0) if needed & ~given else gram
    for k in range(6):
        if (needed & ~given) >> k & 1:
            gram[k] = fresh[k]
    go = torch.ones((), dtype=torch.bool, device=gram.device) if found_inf is None else found_inf[0] == 0
    for x in (sq_norm, *(gram[k] for k in range(6) if needed >> k & 1)):
        go = go if x is None else go & torch.isfinite(x).all()
    factors = resolve(coefficients, gram, match_norm, max_norm, loss_scale)
    kept_norm = torch.zeros_like(gram[0])

    def combine(output: int, t: int) -> Tensor:
        total = torch.zeros_like(params[t], dtype=dtype)
        for factor, x in zip(factors[output], (h, g, q), strict=True):  # a list whose factor is 0 is not looked at
            total = torch.where(factor != 0, total + factor * x[t].to(dtype), total) if x else total
        return total

    for t, row in enumerate(group):
        clean = stash[t] if stash else params[t].clone()
        kept = combine(2, t).to(q[t].dtype) if write_q else None
        w = clean
        if update := BASES[base].update:
            o, sign = options[row], -1.0 if options[row]["maximize"] else 1.0
            rate = o["lr"] if lr is None else lr[row].to(dtype)
            state = {name: x[t] for name, x in (("m", m), ("v", v), ("v_max", v_max)) if x and name in states_used(base, o)}
            step = torch.ones_like(gram[0]) if steps is None else steps[t]
            at = (params[t] if decay_at_perturbed else clean).to(dtype)
            w, new = update(o, rate, step, clean.to(dtype), at, sign * combine(0, t), state)
            w = w - rate * sign * combine(1, t)
            for name, x in state.items():
                x.copy_(torch.where(go, new[name], x))
        params[t].copy_(torch.where(go, w.to(clean.dtype), clean))
        if kept is not None:
            kept_norm = kept_norm + kept.to(dtype).square().sum()
            q[t].copy_(torch.where(go, kept, q[t]))
    if write_q:
        gram[5] = torch.where(go, kept_norm, gram[5])
    if steps is not None and base != "none":
        counts = torch.tensor([float(BASES[base].counts(options[row])) for row in group], dtype=steps.dtype, device=steps.device)
        steps += torch.where(go, counts, torch.zeros_like(counts))


OP = declare("descend_", SCHEMA, reference, guards.descend)


def descend_(
    params: Sequence[Tensor], h: Sequence[Tensor] | None = None, *, base: str, stash: Sequence[Tensor] | None = None,
    g: Sequence[Tensor] | None = None, q: Sequence[Tensor] | None = None, m: Sequence[Tensor] | None = None,
    v: Sequence[Tensor] | None = None, v_max: Sequence[Tensor] | None = None, steps: Tensor | None = None,
    coefficients: Combination = PLAIN, match_norm: bool = False, max_norm: float = inf, decay_at: str = "clean",
    gram: Tensor | None = None, given: Sequence[str] = (), sq_norm: Tensor | None = None, found_inf: Tensor | None = None,
    loss_scale: Tensor | None = None, group: Sequence[int] | None = None, backend: str | None = None, **hyper: PerGroup | Tensor,
) -> None:  # fmt: skip
    """Restore ``params`` from ``stash`` and apply one base-optimizer update to them (SAM and Stable SAM, arXiv 2401.07250).

    Args:
        params: weights, perturbed on entry, updated in place. ``stash``: their clean values; None where they are clean already.
        h, g, q: second gradient, first gradient, kept vector; only those that ``coefficients`` reads. q is written where it says so.
        base, hyper: ``"none"`` (restore only), or the update and its options as further keyword arguments, one number or one per
            group; ``lr`` may be a ``[groups]`` tensor on the device. ``"sgd"``: lr, momentum, dampening, weight_decay, nesterov,
            maximize. ``"adam"``: lr, beta1, beta2, eps, weight_decay, decoupled (AdamW), amsgrad, bias_correction, initial_v (what
            the maximum of AMSGrad starts from), maximize. ``"lion"``: lr, beta1, beta2, weight_decay, maximize.
        m, v, v_max: state, updated in place, one tensor per parameter: momentum or first moment (needed where a momentum is not 0),
            second moment, its maximum (AMSGrad). State and q are fp32 where ``params`` are bf16 or fp16.
        steps: ``[tensors]`` fp32 count of updates, incremented in place; a tensor at 0 has no state yet. Needed by ``"adam"``; None
            elsewhere: the state is taken as it is.
        coefficients, match_norm, max_norm: what u is; ``match_norm=True`` gives it the norm of g (Stable SAM).
        decay_at: weight decay reads the ``"clean"`` or the ``"perturbed"`` weight (MomentumSAM).
        gram: ``[6]`` Gram vector (g.g, g.h, h.h, g.q, h.q, q.q); entries named in ``given`` are read from it, the others that are
            needed are reduced here and written to it.
        sq_norm: ``[1]`` squared norm of the ascent. ``found_inf``: ``[1]`` fp32. Not finite, or not 0: the step is skipped.
        loss_scale: ``[2]`` fp32, what g and h, and the entries of ``gram`` with them, are multiplied by; the update sees true gradients.
        group, backend: as in ``ascend_``.

    Raises:
        TypeError, ValueError: before anything is written; the message names the argument.
    """
    if base not in BASES or decay_at not in ("clean", "perturbed"):
        raise ValueError(f"base is {base!r}, decay_at is {decay_at!r}; expected one of {tuple(BASES)} and 'clean' or 'perturbed'")
    inputs, state = {"h": h, "g": g, "q": q}, {"m": m, "v": v, "v_max": v_max}
    check_lists("params", {"params": params, "stash": stash, **inputs, **state}, kept=("q", "m", "v", "v_max"))
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm!r}; expected a number > 0, infinity for no clipping")
    flat, write_q = coefficients.flat, coefficients.writes_q()
    if base == "none":  # nothing sees u
        match_norm, max_norm = False, inf
    needed, known = check_sources(coefficients, inputs, match_norm, max_norm, given, gram, idle=base == "none" and not write_q)
    check_aliasing({"params": params, **state, "q": q if write_q else None}, {"stash": stash, **inputs, "q": None if write_q else q})
    lr = hyper.get("lr")
    rows, groups, table = option_table(base, hyper, group, len(params))
    check_state(base, rows_of(base, table), state, steps)
    like = params[0] if params else None
    dtype = accumulator(like.dtype) if like is not None else torch.float32
    if (needed or write_q) and gram is None and like is not None:
        gram = torch.zeros(6, dtype=dtype, device=like.device)
    lr_device = lr if isinstance(lr, Tensor) else None
    for name, x, numel in (("gram", gram, 6), ("sq_norm", sq_norm, 1), ("lr", lr_device, groups)):
        check_scalar(name, x, like, numel, dtype)
    for name, x, numel in (("found_inf", found_inf, 1), ("loss_scale", loss_scale, 2), ("steps", steps, len(params))):
        check_scalar(name, x, like, numel, torch.float32)
    lists = [list(x or ()) for x in (stash, h, g, q, m, v, v_max)]
    with torch.no_grad():
        call(OP, backend, list(params), *lists, steps, gram, sq_norm, found_inf, loss_scale, lr_device, rows, table, base, flat,
             write_q, match_norm, float(max_norm), decay_at == "perturbed", needed, known)  # fmt: skip
        written = [*params, *(x for xs in lists[4:] for x in xs), *((q or ()) if write_q else ())]
        torch.autograd.graph.increment_version(written + [x for x in (steps, gram) if x is not None])


def restore_(params: Sequence[Tensor], stash: Sequence[Tensor], *, backend: str | None = None) -> None:
    """Copy the clean weights back, bit for bit and in place: ``descend_`` with base ``"none"``."""
    descend_(params, stash=stash, base="none", backend=backend)
