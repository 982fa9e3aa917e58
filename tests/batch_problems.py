"""What the tests of the batch rules share: combinations of rules, and how an optimizer is made and trained on ``problems``."""

from collections.abc import Callable
from typing import Any

import problems
import torch
import torch.nn.functional as F
from batch_loops import BASES, RHO, B
from tolerance import assert_loop
from torch import Tensor, nn

from sam_kernels import ops
from sam_kernels.optim import AUSAM, ESAM, SAM, MicroBatchSAM, ReweightedSAM, rules

STEPS, N = 20, 30
MIX = rules.Descent(ops.Combination(u={"h": 1.0, "g": -0.3}))
LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the loop, of the optimizer
    "plain": ({}, {}),
    "adaptive": ({"adaptive": True}, {"adaptive": True}),
    "unnormalized": ({"normalize": False}, {"normalize": False}),
    "stable": ({"stable": True}, {"descent": rules.Stable()}),
    "mix": ({"mix": -0.3}, {"descent": MIX}),
    "adamw": ({"base": "adamw"}, {"base": "adamw"}),
    "rmsprop": ({"base": "rmsprop"}, {"base": "rmsprop"}),
}


def losses_of(net: nn.Module, step: int) -> Callable[..., Tensor]:
    x, y = problems.batch(step, net)

    def losses(index: Tensor | None = None) -> Tensor:
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return F.cross_entropy(net(xb), yb, reduction="none")

    return losses


def ids_of(step: int) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(step))[:B]


def make(kind: type[SAM], net: nn.Module, options: dict[str, Any], **more: Any) -> SAM:
    base = options.get("base", "sgd")
    rest = {k: v for k, v in options.items() if k != "base"}
    return kind(net.parameters(), BASES[base][0], **{"rho": RHO, **BASES[base][1], **rest, **more})


def train(optimizer: SAM, net: nn.Module, steps: int = STEPS, start: int = 0) -> list[float]:
    with_ids = isinstance(optimizer, AUSAM)
    return [
        optimizer.step(losses_of(net, step), batch_size=B, **({"sample_ids": ids_of(step)} if with_ids else {})).item()
        for step in range(start, start + steps)
    ]


def check(case: str, net: nn.Module, twin: nn.Module) -> None:
    assert_loop(case, list(net.parameters()), list(twin.parameters()))


def sam(options: dict[str, Any] | None = None) -> nn.Module:
    net = problems.model()
    optimizer = make(SAM, net, options or {})
    for step in range(STEPS):
        optimizer.step(problems.closure_of(net, step))
    return net


KINDS: dict[str, tuple[type[SAM], dict[str, Any]]] = {
    "micro": (MicroBatchSAM, {"shards": 3}),
    "esam": (ESAM, {}),
    "ausam": (AUSAM, {"num_samples": 12}),
    "drawn": (ReweightedSAM, {"lam": 4.0, "estimator": "finite_difference", "draw": 4}),
}


def ids_in(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(7))[:B]


def run(kind: str, net: nn.Module, steps: int, start: int = 0, optimizer: SAM | None = None, **options: Any) -> SAM:
    preset, own = KINDS[kind]
    optimizer = optimizer or make(preset, net, {**own, **options})
    for step in range(start, start + steps):
        optimizer.step(losses_of(net, step), batch_size=B, **({"sample_ids": ids_in(12)} if kind == "ausam" else {}))
    return optimizer
