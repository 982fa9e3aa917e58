"""ascend_: the norm of an ascent direction, the perturbation along it, and the stash that undoes it, in one call.

    d = +-(direction[0] g + direction[1] q)             minus where the group maximizes; with noise z_j = +-1 takes the place of g
    c = |w| + eta where the group is adaptive, else 1
    sq_norm = sum |c d|^2 over the groups with rho != 0
    s = rho / (sqrt(sq_norm) + eps), or rho where not normalized; 0 where sq_norm is 0 or not finite
    stash = w;  w += s c^2 d;  q <- ema[0] q + ema[1] g (the first time q <- g), unless sq_norm is not finite

Reads g for the norm (and w where adaptive, q where given), then reads w and g and writes w and stash: 20 bytes per element in
fp32; with noise only w, for the update: 12. Deterministic. With s = 0 the weights keep their bits, whatever the gradient holds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import call, declare
from . import guards
from .ascend_reference import reference
from .lists import PerGroup, accumulator, check_aliasing, check_group, check_lists, check_scalar, hyper_table

SCHEMA = (
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] stash, Tensor(c!)[] q, Tensor(d!) sq_norm, Tensor(e!)? gram, "
    "Tensor(f!)? q_steps, Tensor? rho, Tensor? direction_device, int[] group, float[] hyper, float[] direction, float[] ema, "
    "float eps, bool normalize, str phase, Tensor? noise, int noise_stream) -> ()"
)
OP = declare("ascend_", SCHEMA, reference, guards.ascend)


def ascend_(
    params: Sequence[Tensor], grads: Sequence[Tensor] | None, stash: Sequence[Tensor] | None, *, rho: PerGroup | Tensor,
    q: Sequence[Tensor] | None = None, direction: tuple[float, float] | Tensor = (1.0, 0.0), ema: tuple[float, float] | None = None,
    q_steps: Tensor | None = None, adaptive: bool | Sequence[bool] = False, eta: PerGroup = 0.0,
    maximize: bool | Sequence[bool] = False, normalize: bool = True, eps: float = 1e-12, group: Sequence[int] | None = None,
    sq_norm: Tensor | None = None, phase: str = "all", gram: Tensor | None = None, noise: Tensor | None = None, noise_stream: int = 0,
    backend: str | None = None,
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
        noise: int64 ``[2]`` tensor (seed, offset) on the device, only read: the direction is ``direction[0] z`` with random signs z in
            the place of the gradients (Reweighted SAM, 2509.18001), the same for the same state on every backend, generated and never
            stored. Needs ``grads=None``, leaves ``gram`` alone, and takes no ``ema``. Advance the offset for new signs.
        noise_stream: keeps the signs of several calls with one state apart, 0 to 2^32 - 1; its tensors are told apart by their number.
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
    check_scalar("noise", noise, like, 2, torch.int64)
    if noise is not None and (grads is not None or ema is not None):
        raise ValueError(f"noise takes the place of grads, but {'grads' if grads is not None else 'ema'} is given; pass None for it")
    if not 0 <= noise_stream < 1 << 32:
        raise ValueError(f"noise_stream is {noise_stream}; expected a number from 0 to 2^32 - 1")
    on_device = isinstance(direction, Tensor)
    factors = [1.0, 0.0] if on_device else [float(x) for x in direction]
    first = grads if noise is None else noise
    if (q is None and (ema or on_device or factors[1] != 0)) or (first is None and (ema or on_device or factors[0] != 0)):
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
            [float(x) for x in ema or ()], float(eps), bool(normalize), phase, noise, noise_stream,
        )  # fmt: skip
        if phase != "norm":
            torch.autograd.graph.increment_version([*params, *(stash or ()), *((q or ()) if ema else ())])
        torch.autograd.graph.increment_version([x for x in (sq_norm, gram, q_steps) if x is not None])
    return sq_norm
