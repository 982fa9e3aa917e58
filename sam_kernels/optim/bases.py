"""Base optimizers: how one is built around shared parameter groups, which are fused, and what their options are to the kernels."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from .plain import AMSGrad, Lion

Options = dict[str, Any]
NAMES: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "lion": Lion, "amsgrad": AMSGrad,
}  # fmt: skip
FUSED: dict[type[Optimizer], str] = {  # exact types: a subclass may compute something else
    torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adam", AMSGrad: "adam", Lion: "lion",
}  # fmt: skip
_KEYS: dict[str, dict[str, Any]] = {  # option of descend_ -> key of the group; (key, index) where the key holds a pair
    "sgd": {name: name for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")},
    "adam": {"lr": "lr", "beta1": ("betas", 0), "beta2": ("betas", 1), "eps": "eps", "weight_decay": "weight_decay",
             "decoupled": "decoupled_weight_decay", "amsgrad": "amsgrad", "bias_correction": "bias_correction", "initial_v": "initial_v",
             "maximize": "maximize"},
    "lion": {"lr": "lr", "beta1": ("betas", 0), "beta2": ("betas", 1), "weight_decay": "weight_decay", "maximize": "maximize"},
}  # fmt: skip
_ABSENT = {"bias_correction": True, "initial_v": 0.0, "decoupled_weight_decay": False, "maximize": False}


def options_of(base: str, group: Mapping[str, Any]) -> Options:
    """The options of one group, as ``descend_`` calls them."""
    return {name: group.get(key, _ABSENT.get(key)) if isinstance(key, str) else group[key[0]][key[1]] for name, key in _KEYS[base].items()}


def required_keys(base: str) -> set[str]:
    """Keys that the groups of a checkpoint must have to belong to this base."""
    keys = {key if isinstance(key, str) else key[0] for key in _KEYS[base].values()}
    return keys - set(_ABSENT) - {"nesterov", "amsgrad"}  # torch itself adds these to old checkpoints


def build_base(base: Any, groups: list[dict[str, Any]], kwargs: dict[str, Any]) -> Optimizer:
    """The base optimizer of ``groups``, from a class, a name or an instance; an instance keeps its own groups."""
    if isinstance(base, str):
        if base.lower() not in NAMES:
            raise ValueError(f"base_optimizer is {base!r}; expected one of {tuple(NAMES)}, a torch.optim.Optimizer class, or an instance")
        base = NAMES[base.lower()]
    if isinstance(base, Optimizer):
        if kwargs:
            raise TypeError(f"base_optimizer is an instance, so {sorted(kwargs)} would be ignored; set them on the instance")
        ours = {id(p) for group in groups for p in group["params"]}
        theirs = {id(p) for group in base.param_groups for p in group["params"]}
        if ours != theirs:
            raise ValueError(
                f"base_optimizer holds {len(theirs)} parameters, params {len(ours)}, and they are not the same; build both from one list"
            )
        _refuse_unfit(type(base))
        return base
    if not (inspect.isclass(base) and issubclass(base, Optimizer)):
        raise TypeError(f"base_optimizer is {base!r}; expected a torch.optim.Optimizer class, an instance, or one of {tuple(NAMES)}")
    _refuse_unfit(base)
    return base(groups, **kwargs)


def _refuse_unfit(cls: type[Optimizer]) -> None:
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{cls.__name__}.step needs a closure of its own, so it cannot be the base of a two-pass step; use another base")
    if "rho" in inspect.signature(cls.__init__).parameters:
        raise ValueError(
            f"{cls.__name__} has a hyperparameter rho of its own, and one group key cannot hold two; "
            "perturb around it with sam_kernels.ops.ascend_ and restore_ instead"
        )


def fused_name(base: Optimizer) -> str | None:
    """The name of the fused update that computes what ``base`` computes, if there is one."""
    if any(group.get("differentiable") for group in base.param_groups):
        raise ValueError("differentiable=True is not supported: the update is written in place; leave it out")
    return FUSED.get(type(base))
