"""Whether a checkpoint is one of this optimizer: everything is looked at before anything changes."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ..ops.bases import BASES, checked_table
from .bases import options_of, required_keys
from .state import STEP, names_of

Saved = dict[str, Any]


def check_shape(state_dict: Any) -> None:
    """Refuse what is not built like a state dict."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        has = sorted(map(str, state_dict)) if isinstance(state_dict, dict) else type(state_dict).__name__
        raise ValueError(f"state_dict is {has}; expected a dict with 'state' and 'param_groups', as state_dict() returns it")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(groups, list | tuple) or not all(isinstance(g, dict) and isinstance(g.get("params"), list | tuple) for g in groups):
        raise ValueError("param_groups of the checkpoint are not dicts with 'params'; pass what state_dict() returned")
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise ValueError("state of the checkpoint is not a dict of dicts; pass what state_dict() returned")


def check_groups(groups: Sequence[Saved], mine: Sequence[Saved], fused: str | None) -> None:
    """As many groups and parameters as here, with options that this base understands."""
    sizes, expected = [len(g["params"]) for g in groups], [len(g["params"]) for g in mine]
    if sizes != expected:
        raise ValueError(f"the checkpoint has groups of {sizes} parameters, this optimizer of {expected}; it belongs to another model")
    for i, group in enumerate(groups):
        if fused is None:
            continue
        if missing := sorted(required_keys(fused) - set(group)):
            raise ValueError(f"param_groups[{i}] of the checkpoint lacks {missing}; it belongs to another optimizer")
        betas = group.get("betas", (0.0, 0.0))
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ValueError(f"betas of param_groups[{i}] of the checkpoint are {betas!r}; expected two numbers")
        options = options_of(fused, {**mine[i], **group})
        if isinstance(options["lr"], Tensor):
            options["lr"] = 0.0  # a value on the device is not looked at
        checked_table(fused, 1, options)


def check_state(params: Sequence[Tensor], groups: Sequence[Saved], state: Mapping[Any, Saved], fused: str | None) -> None:
    """The buffers must be those of this base, complete, and of the shapes of the parameters that they belong to."""
    members = [(key, group) for group in groups for key in group["params"]]
    for i, (p, (key, group)) in enumerate(zip(params, members, strict=True)):
        entry = state.get(key)
        if not entry:
            continue
        for name in _BUFFERS & set(entry):
            _check_buffer(f"{name} of parameter {i}", entry[name], p)
        if fused is not None:
            _check_entry(
                i, entry, BASES[fused].counted, set(BASES[fused].state.values()), set(names_of(fused, options_of(fused, group)).values())
            )


def _check_buffer(name: str, value: Any, p: Tensor) -> None:
    if value is not None and not isinstance(value, Tensor):
        raise TypeError(f"{name} is {type(value).__name__} in the checkpoint; expected a torch.Tensor")
    if value is not None and value.shape != p.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} in the checkpoint but the parameter has {tuple(p.shape)}; "
            "the checkpoint belongs to another model"
        )


def _check_entry(i: int, entry: Saved, counted: bool, known: set[str], needed: set[str]) -> None:
    if unknown := sorted(set(entry) - known - ({STEP} if counted else set())):
        raise ValueError(f"the checkpoint holds {unknown} for parameter {i}; expected {sorted(known)}: it belongs to another optimizer")
    if counted and (missing := sorted((needed | {STEP}) - set(entry))):
        raise ValueError(f"the checkpoint lacks {missing} for parameter {i}; it is incomplete, or belongs to another optimizer")
    if counted:
        step = entry[STEP]
        if not isinstance(step, int | float | Tensor) or torch.as_tensor(step).numel() != 1:
            raise TypeError(f"step of parameter {i} is {step!r} in the checkpoint; expected one number")
        if not (isfinite(float(step)) and float(step) >= 0):
            raise ValueError(f"step of parameter {i} is {float(step)} in the checkpoint; expected a number >= 0")


def checked_batch(saved: Any, rule: str, fresh: Saved) -> Saved:
    """The state of the batch rule: ``fresh`` with the values that were saved. A checkpoint without one starts afresh, and a rule that
    keeps no state needs none."""
    if saved is None or not fresh:
        return fresh
    if not isinstance(saved, dict) or saved.get(RULE) != rule or set(saved) != {RULE, *fresh}:
        held = saved.get(RULE) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(
            f"the checkpoint holds the state of the batch rule {held!r}, this optimizer has {rule!r} with {sorted(fresh)}; it belongs to "
            f"another algorithm: delete its {BATCH!r} entry to start afresh"
        )
    return {name: _like(f"{name} of the batch rule", saved[name], value) for name, value in fresh.items()}


def _like(name: str, saved: Any, fresh: Any) -> Any:
    if isinstance(fresh, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != fresh.shape:
            shape = tuple(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
            raise ValueError(f"{name} is {shape} in the checkpoint; expected a tensor of shape {tuple(fresh.shape)}: it is of other data")
        if not bool(((saved >= 0) & torch.isfinite(saved)).all()):
            raise ValueError(f"{name} holds numbers in the checkpoint that are negative or not finite; delete {BATCH!r} to start afresh")
        return saved.detach().to(fresh.device, fresh.dtype, copy=True)
    if not isinstance(saved, int) or isinstance(saved, bool) or saved < 0:
        raise ValueError(f"{name} is {saved!r} in the checkpoint; expected an int >= 0")
    return saved


BATCH, RULE = "batch", "rule"
_BUFFERS = {key for base in BASES.values() for key in base.state.values()}
