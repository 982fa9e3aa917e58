"""ascend_: the norm of an ascent direction, the perturbation along it, and the stash that undoes it, in one call.

    d = +-(direction[0] g + direction[1] q)             minus where the group maximizes
    c = |w| + eta where the group is adaptive, else 1
    sq_norm = sum |c d|^2 over the groups with rho != 0
    s = rho / (sqrt(sq_norm) + eps), or rho where not normalized; 0 where sq_norm is 0 or not finite
    stash = w;  w += s c^2 d;  q <- ema[0] q + ema[1] g (the first time q <- g), unless sq_norm is not finite

Reads g for the norm (and w where adaptive, q where given), then reads w and g and writes w and stash: 20 bytes per element in
fp32. Deterministic. With s = 0 the weights keep their bits, whatever the gradient holds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .lists import PerGroup, accumulator, check_aliasing, check_group, check_lists, check_scalar, hyper_table

HYPER = ("rho", "eta", "adaptive", "maximize")
SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] stash, Tensor(c!)[] q, Tensor(d!) sq_norm, Tensor(e!)? gram, "
    "Tensor(f!)? q_steps, Tensor? rho, Tensor? direction_device, int[] group, float[] hyper, float[] direction, float[] ema, "
    "float eps, bool normalize, str phase) -> ()"
)


def reference(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str,
) -> None:  # fmt: skip
    """The specification: plain torch, any device and floating dtype."""
    dtype = sq_norm.dtype
    table = torch.tensor(hyper, dtype=dtype, device=sq_norm.device).view(-1, len(HYPER))
    rhos = table[:, 0] if rho is None else rho.to(dtype)
    alpha, beta = torch.tensor(direction, dtype=dtype, device=sq_norm.device) if direction_device is None else direction_device.to(dtype)

    def parts(t: int) -> tuple[Tensor, Tensor | float]:
        _, eta, adaptive, maximize = hyper[len(HYPER) * group[t] : len(HYPER) * (group[t] + 1)]
        d = torch.zeros_like(params[t], dtype=dtype)
        for factor, x in ((alpha, grads), (beta, q)):  # a list whose factor is 0 is not looked at
            d = torch.where(factor != 0, d + factor * x[t].to(dtype), d) if x else d
        return -d if maximize else d, params[t].to(dtype).abs() + eta if adaptive else 1.0

    if phase != "update":
        zero = torch.zeros_like(sq_norm[0])
        total = zero
        for t, row in enumerate(group):
            d, c = parts(t)
            total = total + torch.where(rhos[row] != 0, (c * d).square().sum(), zero)
        sq_norm[0] = total
        if gram is not None and grads:
            gram[0] = sum((g.to(dtype).square().sum() for g in grads), zero)
    if phase == "norm":
        return
    finite = torch.isfinite(sq_norm[0])
    moves = finite & (sq_norm[0] > 0)
    for t, row in enumerate(group):
        d, c = parts(t)
        s = rhos[row] / (sq_norm[0].sqrt() + eps) if normalize else rhos[row]
        moved = (params[t].to(dtype) + s * (c * c * d)).to(params[t].dtype)
        stash[t].copy_(params[t])
        params[t].copy_(torch.where(moves & (rhos[row] != 0), moved, params[t]))
        if ema:
            g = grads[t].to(dtype)
            mean = ema[0] * q[t].to(dtype) + ema[1] * g
            mean = mean if q_steps is None else torch.where(q_steps[0] == 0, g, mean)
            q[t].copy_(torch.where(finite, mean.to(q[t].dtype), q[t]))
    if q_steps is not None and ema:
        q_steps += finite


OP = declare("ascend_", SCHEMA, reference, guards.ascend)


def ascend_(
    params: Sequence[Tensor], grads: Sequence[Tensor] | None, stash: Sequence[Tensor] | None, *, rho: PerGroup | Tensor,
    q: Sequence[Tensor] | None = None, direction: tuple[float, float] | Tensor = (1.0, 0.0), ema: tuple[float, float] | None = None,
    q_steps: Tensor | None = None, adaptive: bool | Sequence[bool] = False, eta: PerGroup = 0.0,
    maximize: bool | Sequence[bool] = False, normalize: bool = True, eps: float = 1e-12, group: Sequence[int] | None = None,
    sq_norm: Tensor | None = None, phase: str = "all", gram: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Perturb ``params`` along the gradient and keep the clean weights in ``stash`` (SAM, arXiv 2010.01412; ASAM, 2102.11600).

    Args:
        params: weights w, perturbed in place. ``grads``: gradients g, or None where only q gives the direction.
        stash: tensors like ``params``, overwritten with the clean weights. May be None in phase ``"norm"``.
        rho: radius, >= 0; a number, one per group, or a ``[groups]`` tensor on the device. A group with 0 is neither moved nor counted.
        q, direction: a kept list (fp32 where ``params`` are bf16 or fp16) and the factors of (g, q) in the direction, numbers or a
            ``[2]`` tensor on the device.
        ema: factors ``(of q, of g)`` of an update of q in the same pass (Friendly SAM); ``q_steps``: ``[1]`` fp32 count of updates.
        adaptive, eta, maximize: as in ASAM and torch.optim, each one value or one per group.
        normalize: divide by the norm; ``eps`` guards the division.
        group: the group index of every tensor; needed where there is more than one.
        sq_norm: ``[1]`` tensor that receives the squared norm.
        phase: ``"all"``; or ``"norm"``, which writes ``sq_norm`` and ``gram`` and nothing else, and ``"update"``, which reads ``sq_norm``
            and reduces nothing: between them, norms of several calls (dtypes, devices, shards) can be added up.
        gram: ``[6]`` tensor (see ``inner_products``) whose entry 0 receives the plain ``|g|^2`` over all tensors.
        backend: a backend by name; by default the preferred one that is available.

    Returns:
        ``sq_norm``, fp32 (fp64 for fp64 tensors), on the device of ``params``.

    Raises:
        TypeError, ValueError: before anything is written; the message names the argument.
    """
    if phase not in ("all", "norm", "update"):
        raise ValueError(f"phase is {phase!r}; expected 'all', 'norm' or 'update'")
    if stash is None and phase != "norm":
        raise ValueError("stash is None; pass one tensor like each parameter, which receives its clean value")
    stash = None if phase == "norm" else stash
    check_lists("params", {"params": params, "grads": grads, "stash": stash, "q": q}, kept=("q",))
    check_aliasing({"params": params, "stash": stash, "q": q if ema else None}, {"grads": grads, "q": None if ema else q})
    like = params[0] if params else None
    dtype = accumulator(like.dtype) if like is not None else torch.float32
    if ema is not None and len(ema) != 2:
        raise ValueError(f"ema is {ema}; expected two factors, of q and of g")
    columns: dict[str, Any] = {"rho": 0.0 if isinstance(rho, Tensor) else rho, "eta": eta, "adaptive": adaptive, "maximize": maximize}
    rows, groups = check_group(group, len(params), columns)
    hyper = hyper_table(groups, columns, nonnegative=("rho", "eta"))
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps is {eps}; expected a finite number >= 0")
    on_device = isinstance(direction, Tensor)
    factors = [1.0, 0.0] if on_device else [float(x) for x in direction]
    if (q is None and (ema or on_device or factors[1] != 0)) or (grads is None and (ema or on_device or factors[0] != 0)):
        raise ValueError(f"direction={direction}, ema={ema} read {'q' if q is None else 'grads'}, which is None; pass the list")
    sq_norm = torch.zeros(1, dtype=dtype, device=like.device if like is not None else None) if sq_norm is None else sq_norm
    scalars = (("sq_norm", sq_norm, 1), ("gram", gram, 6), ("rho", rho, groups), ("direction", direction, 2))
    for name, x, numel in scalars:
        check_scalar(name, x if isinstance(x, Tensor) else None, like, numel, dtype)
    check_scalar("q_steps", q_steps, like, 1, torch.float32)
    with torch.no_grad():
        call(
            OP, backend, list(params), list(grads or ()), list(stash or ()), list(q or ()), sq_norm, gram, q_steps,
            rho if isinstance(rho, Tensor) else None, direction if on_device else None, rows, hyper, factors,
            [float(x) for x in ema or ()], float(eps), bool(normalize), phase,
        )  # fmt: skip
        if phase != "norm":
            torch.autograd.graph.increment_version([*params, *(stash or ()), *((q or ()) if ema else ())])
        torch.autograd.graph.increment_version([x for x in (sq_norm, gram, q_steps) if x is not None])
    return sq_norm
