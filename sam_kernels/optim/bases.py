"""Base optimizers: how one is built around shared parameter groups, and which are fused."""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

NAMES: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
FUSED: dict[type[Optimizer], str] = {torch.optim.SGD: "sgd"}  # exact types: a subclass may compute something else


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
