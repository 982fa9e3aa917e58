"""GradScaler: where the loss scale of each gradient is known from, and when not knowing it is an error.

``scaler.step(optimizer)`` finds ``_step_supports_amp_scaling`` and calls ``step()`` with ``grad_scale`` and ``found_inf`` as attributes;
nothing is unscaled and nothing waits for the host. Both gradients of a step carry one scale, which ``scaler.update()`` changes only
afterwards. If the user has called ``scaler.unscale_`` (to clip, say), h is unscaled, g is not, and only ``first_step(scaler=)`` knows by
how much.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from ..ops.coefficients import entry_mask, needed_entries
from .engine import Selection, Update


def scale_of(optimizer: Any, scaler: Any) -> Tensor | None:
    """The present scale, on the device."""
    if scaler is None or not scaler.is_enabled():
        return None
    if scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED:
        raise RuntimeError(
            "scaler.unscale_(optimizer) before first_step(scaler=scaler), which takes the first gradients for scaled ones and leaves the "
            "second ones so; call unscale_ once, after the second backward"
        )
    if getattr(scaler, "_scale", None) is None:
        raise RuntimeError("scaler has not scaled a loss yet; call scaler.scale(loss).backward() before first_step(scaler=scaler)")
    return scaler.scale(torch.ones((), dtype=torch.float32, device=scaler._scale.device))


def set_first_scale(selection: Selection, scale: Tensor, direction: tuple[float, float]) -> None:
    """The factors of the direction that turn scaled gradients into true ones, into every bucket."""
    for part, _ in selection:
        factors = part.bucket.direction
        factors[0], factors[1] = direction[0] / scale.to(factors), direction[1]


def scaled_update(optimizer: Any, update: Update, selection: Selection) -> Update:
    """``update`` with what the scaler has left on the optimizer; the loss scales go into every bucket."""
    found_inf, of_h, of_g = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None), optimizer._first_scale
    if found_inf is None and of_g is None:
        return update
    if found_inf is not None and of_g is None and update.ascended:
        if optimizer.needs_scaler:
            _refuse(optimizer, "an ascent that is not normalized depends on the scale of the loss")
        rule = update.rule
        entries = needed_entries(rule.coefficients, rule.match_norm, update.max_norm)
        if of_h is None and (rule.keeps_g(update.max_norm) or entries & entry_mask(["gg", "gh", "gq"])):
            _refuse(optimizer, "the second gradient was unscaled with scaler.unscale_, but the first, which this update reads, was not")
    if of_g is None and of_h is None:
        return replace(update, found_inf=found_inf)
    for part, _ in selection:
        scales = part.bucket.loss_scale
        for k, scale in enumerate((of_h if of_g is None else of_g, of_h)):
            scales[k] = 1.0 if scale is None else scale.to(scales)
    return replace(update, found_inf=found_inf, scaled=True)


def refuse_scaler(optimizer: Any) -> None:
    """A step that calls backward itself knows of no scale."""
    left = [optimizer.__dict__.pop(name, None) for name in ("grad_scale", "found_inf")]  # both: the next step is none of the scaler's
    if any(value is not None for value in left):
        raise RuntimeError(
            "scaler.step() with the losses of samples, whose backward the optimizer calls itself, without a scale; call "
            "optimizer.step(losses, batch_size=len(y)), with a forward in bf16 or fp32, which need no scale"
        )


def _refuse(optimizer: Any, why: str) -> None:
    optimizer.restore()
    raise RuntimeError(f"{why}; the clean weights are restored: call first_step(scaler=scaler)")
