"""Base updates of descend_: their hyperparameters in the order of the tables that cross to the kernels, their state, their references.

Each reference is one update of one tensor in the accumulation dtype:

    update(o, lr, step, w, at, u, state) -> (new weight, new state)

``o``: the options as a mapping; ``step``: updates so far, 0 where there is no state yet; ``at``: where weight decay reads the weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from .lists import PerGroup, check_group, hyper_table

Options = Mapping[str, float]
State = dict[str, Tensor]


def sgd(o: Options, lr: Tensor | float, step: Tensor, w: Tensor, at: Tensor, u: Tensor, state: State) -> tuple[Tensor, State]:
    """torch.optim.SGD."""
    u = u + o["weight_decay"] * at if o["weight_decay"] else u
    if o["momentum"]:
        m = torch.where(step == 0, u, state["m"] * o["momentum"] + (1 - o["dampening"]) * u)
        u, state = u + o["momentum"] * m if o["nesterov"] else m, {"m": m}
    else:
        state = {}
    return w - lr * u, state


def adam(o: Options, lr: Tensor | float, step: Tensor, w: Tensor, at: Tensor, u: Tensor, state: State) -> tuple[Tensor, State]:
    """torch.optim.Adam; AdamW where decoupled. Without bias correction, from initial_v, with eps 0: AdaSAM's AMSGrad."""

    def correction(beta: float) -> Tensor | float:
        if not o["bias_correction"]:
            return 1.0
        return -torch.expm1((step.to(u.dtype) + 1) * log(beta)) if beta else torch.ones((), dtype=u.dtype, device=u.device)

    u = u + o["weight_decay"] * at if o["weight_decay"] and not o["decoupled"] else u
    w = w - lr * o["weight_decay"] * at if o["weight_decay"] and o["decoupled"] else w
    old = {name: torch.where(step == 0, torch.zeros_like(u), x) for name, x in state.items()}
    m = o["beta1"] * old["m"] + (1 - o["beta1"]) * u
    v = o["beta2"] * old["v"] + (1 - o["beta2"]) * u * u
    new = {"m": m, "v": v}
    if o["amsgrad"]:
        v = new["v_max"] = torch.maximum(torch.where(step == 0, torch.full_like(v, o["initial_v"]), state["v_max"]), v)
    denominator = v.sqrt() / correction(o["beta2"]) ** 0.5 + o["eps"]
    ratio = torch.where(denominator == 0, torch.zeros_like(m), m / denominator)
    return w - lr / correction(o["beta1"]) * ratio, new


def lion(o: Options, lr: Tensor | float, step: Tensor, w: Tensor, at: Tensor, u: Tensor, state: State) -> tuple[Tensor, State]:
    """Lion (arXiv 2302.06675)."""
    w = w - lr * o["weight_decay"] * at if o["weight_decay"] else w
    m = torch.where(step == 0, torch.zeros_like(u), state["m"])
    c = o["beta1"] * m + (1 - o["beta1"]) * u
    return w - lr * torch.where(c == c, c.sign(), c), {"m": o["beta2"] * m + (1 - o["beta2"]) * u}


@dataclass(frozen=True)
class Base:
    hyper: Mapping[str, float | None]  # name -> default; None: has to be given
    state: Mapping[str, str]  # list of descend_ -> its name in torch's optimizers
    update: Callable[..., tuple[Tensor, State]] | None
    counted: bool = False  # torch's optimizer keeps a count of updates in its state

    def counts(self, options: Options) -> bool:
        """Whether an update advances the step count: SGD has nothing to count without momentum."""
        return bool(options["momentum"]) if "momentum" in self.hyper else bool(self.hyper)


NONNEGATIVE = ("lr", "momentum", "weight_decay", "eps", "initial_v")
BASES: dict[str, Base] = {
    "none": Base({}, {}, None),
    "sgd": Base(
        {"lr": None, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False},
        {"m": "momentum_buffer"},
        sgd,
    ),
    "adam": Base(
        {"lr": None, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False, "amsgrad": False,
         "bias_correction": True, "initial_v": 0.0, "maximize": False},
        {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
        adam,
        counted=True,
    ),
    "lion": Base({"lr": None, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "maximize": False}, {"m": "exp_avg"}, lion, counted=True),
}  # fmt: skip


def states_used(base: str, options: Options) -> tuple[str, ...]:
    """The state lists that a group with these options reads and writes."""
    if base == "sgd":
        return ("m",) if options["momentum"] else ()
    return tuple(name for name in BASES[base].state if name != "v_max" or options["amsgrad"])


def rows_of(base: str, hyper: list[float]) -> list[dict[str, Any]]:
    """The flat table as one mapping of options per group."""
    names = list(BASES[base].hyper)
    return [dict(zip(names, hyper[i : i + len(names)], strict=True)) for i in range(0, len(hyper), max(1, len(names)))]


def option_table(
    base: str, hyper: dict[str, PerGroup | Tensor], group: Sequence[int] | None, tensors: int
) -> tuple[list[int], int, list[float]]:
    """The group of every tensor, the number of groups, and the checked table of the base's options."""
    spec = BASES[base]
    if unknown := sorted(set(hyper) - set(spec.hyper)):
        raise TypeError(f"base {base!r} has no option {unknown[0]!r}; expected some of {tuple(spec.hyper)}")
    if missing := [name for name, default in spec.hyper.items() if default is None and name not in hyper]:
        raise TypeError(f"base {base!r} needs {missing[0]}; pass {missing[0]}=")
    columns = {name: hyper.get(name, default) for name, default in spec.hyper.items()}
    columns = {name: 0.0 if isinstance(x, Tensor) and name == "lr" else x for name, x in columns.items()}
    rows, groups = check_group(group, tensors, columns)
    return rows, groups, checked_table(base, groups, columns)


def checked_table(base: str, groups: int, columns: Mapping[str, Any]) -> list[float]:
    """The flat table of the options of all groups, each within its range."""
    table = hyper_table(groups, columns, nonnegative=NONNEGATIVE)
    for options in rows_of(base, table):
        for name in ("beta1", "beta2"):
            if name in options and not 0 <= options[name] < 1:
                raise ValueError(f"{name} is {options[name]}; expected a number in [0, 1)")
    return table


def check_state(base: str, options: list[dict[str, float]], state: dict[str, Sequence[Tensor] | None], steps: Tensor | None) -> None:
    for name in {name for o in options for name in states_used(base, o)}:
        if state[name] is None:
            raise ValueError(f"base {base!r} with these options updates {name}, which is None; pass one tensor per parameter")
    if base == "adam" and steps is None:
        raise ValueError("base 'adam' needs steps, the count of updates of every tensor; pass torch.zeros(len(params)) and keep it")
    for name, x in state.items():
        if x is not None and name not in BASES[base].state:
            raise ValueError(f"base {base!r} has no state {name}; leave it out")
