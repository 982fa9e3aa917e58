"""Any base optimizer that is not fused: restore exactly, then its own step on the combined gradient.

Whether a step must be skipped is known on the device, and a Python optimizer cannot be told there: this path waits for the device
once per step. The fused bases never do.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops.coefficients import PLAIN, resolve
from . import engine


def step_base(base: Optimizer, selection: engine.Selection, update: engine.Update, backend: str | None) -> None:
    """Restore the selected parameters and step ``base`` on u; ``.grad`` holds h again afterwards."""
    u, finite = combined_gradients(selection, update, backend)
    for part, _ in selection:
        engine.restore(part, backend)
    norms = selection[0][0].bucket
    good = torch.isfinite(norms.sq_norm[0] + norms.gram[0]) if update.ascended else torch.ones((), dtype=torch.bool)
    for flag in (finite, None if update.found_inf is None else update.found_inf.reshape(()) == 0):
        good = good if flag is None else good & flag.to(good.device)
    if not bool(good):
        return
    params = [p for part, _ in selection for p in part.params]
    held = [p.grad for p in params]
    for p, x in zip(params, (x for xs in u for x in xs), strict=True):
        p.grad = x
    try:
        base.step()
        engine.written([])
    finally:
        for p, grad in zip(params, held, strict=True):
            p.grad = grad


def combined_gradients(selection: engine.Selection, update: engine.Update, backend: str | None) -> tuple[list[list[Tensor]], Tensor | None]:
    """u as new tensors, and a device flag that is False where a norm is not finite."""
    rule = update.rule
    needed, given = engine.descent_norms(selection, update, backend)
    if rule.coefficients == PLAIN and not needed and not update.scaled:
        return [list(grads) for _, grads in selection], None
    out: list[list[Tensor]] = []
    finite = None
    for part, grads in selection:
        bucket = part.bucket
        g = part.kept() if rule.keeps_g(update.max_norm) else []
        if needed & ~given:
            engine.form_gram(part, grads, bool(g), needed & ~given, backend)
        used = torch.stack([bucket.gram[k] for k in range(6) if needed >> k & 1]) if needed else bucket.gram[:0]
        here = torch.isfinite(used).all()
        finite = here if finite is None else finite & here.to(finite.device)
        scale = bucket.loss_scale if update.scaled else None
        factors = resolve(rule.coefficients.flat, bucket.gram, rule.match_norm, update.max_norm, scale)[0]
        u = [(x * factors[0]).to(x.dtype) for x in grads]
        out.append([(a + factors[1] * b).to(a.dtype) for a, b in zip(u, g, strict=True)] if g else u)
    return out, finite
