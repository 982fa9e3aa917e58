"""Any base optimizer that is not fused: restore exactly, then its own step on the combined gradient.

Whether a step must be skipped is known on the device, and a Python optimizer cannot be told there: this path waits for the device
once per step. The fused bases never do.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops.coefficients import PLAIN, resolve
from ..ops.inner_products import OP as INNER_PRODUCTS
from . import engine
from .rules import Descent


def step_base(base: Optimizer, selection: engine.Selection, rule: Descent, max_norm: float, ascended: bool, backend: str | None) -> None:
    """Restore the selected parameters and step ``base`` on u; ``.grad`` holds h again afterwards."""
    u, finite = combined_gradients(selection, rule, max_norm, backend)
    for bucket, indices, _ in selection:
        engine.restore(bucket, indices, backend)
    norms = selection[0][0]
    good = torch.isfinite(norms.sq_norm[0] + norms.gram[0]) if ascended else torch.ones((), dtype=torch.bool)
    if not bool(good if finite is None else good & finite.to(good.device)):
        return
    params = [bucket.params[i] for bucket, indices, _ in selection for i in indices]
    held = [p.grad for p in params]
    for p, x in zip(params, (x for xs in u for x in xs), strict=True):
        p.grad = x
    try:
        base.step()
    finally:
        for p, grad in zip(params, held, strict=True):
            p.grad = grad


def combined_gradients(
    selection: engine.Selection, rule: Descent, max_norm: float, backend: str | None
) -> tuple[list[list[Tensor]], Tensor | None]:
    """For a base that is not fused: u as new tensors, and a device flag that is False where a norm is not finite."""
    needed, given = engine.descent_norms(selection, rule, max_norm, backend)
    if rule.coefficients == PLAIN and not needed:
        return [grads for _, _, grads in selection], None
    out, finite = [], None
    for bucket, indices, grads in selection:
        g = bucket.kept(indices) if rule.keeps_g(max_norm) else []
        if needed & ~given:
            fresh = engine.implementation(INNER_PRODUCTS, bucket, backend)(g, grads, [], [], 0.0)
            bucket.gram[1:].copy_(fresh[1:])
        used = torch.stack([bucket.gram[k] for k in range(6) if needed >> k & 1]) if needed else bucket.gram[:0]
        here = torch.isfinite(used).all()
        finite = here if finite is None else finite & here.to(finite.device)
        factors = resolve(rule.coefficients.flat, bucket.gram, rule.match_norm, max_norm)[0]
        u = [(x * factors[0]).to(x.dtype) for x in grads]
        out.append([(a + factors[1] * b).to(a.dtype) for a, b in zip(u, g, strict=True)] if g else u)
    return out, finite
