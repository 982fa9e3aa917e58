"""Reweighted SAM over SAM, a whole step with its forwards and backwards: every estimator, matched first, in interleaved rounds."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from sample_cases import CASES, Case
from sample_cell import timed_rounds
from sample_match import SAMPLES, assert_norms
from timing import Times, ratios, spread
from tolerance import assert_elementwise
from torch import Tensor

MODELS = ("cnn", "vit")
ESTIMATORS = ("exact", "logits", "finite_difference")
OPTIONS = {"rho": 0.05, "lr": 1e-3, "momentum": 0.9}
LAM = 1.0


class Step:
    def __init__(self, case: Case, estimator: str | None, backend: str) -> None:
        from sam_kernels import ops, optim

        self.model, self.estimator, (self.x, self.y) = case.model(), estimator, case.batch()
        self.none = ops.cross_entropy_sample if estimator == "logits" else lambda z, y: F.cross_entropy(z, y, reduction="none")
        options: dict[str, Any] = {**OPTIONS, "model": self.model, "backend": backend}
        if estimator is None:
            self.optimizer = optim.SAM(self.model.parameters(), torch.optim.SGD, **options)
        else:
            named = {"lam": LAM, "relative": True, "estimator": estimator}
            self.optimizer = optim.ReweightedSAM(self.model.parameters(), torch.optim.SGD, **named, **options)

    def losses(self, index: Tensor | None = None) -> Any:
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        return self.none(self.model(x), y)

    def closure(self) -> Tensor:
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        return loss

    def __call__(self) -> Tensor:
        if self.estimator is None:
            return self.optimizer.step(self.closure)
        return self.optimizer.step(self.losses, batch_size=len(self.y))


def assert_match(name: str, steps: dict[str, Step]) -> None:
    """The first step: exact norms against autograd one sample at a time, those at the logits in fp64, and equal losses."""
    case = CASES[name]
    losses = {label: step() for label, step in steps.items()}
    assert_norms("exact", name, steps["exact"].optimizer.sample_norms.square())
    x, y = case.batch()
    truth, plain = (_at_logits(case, x[:SAMPLES].to(dtype), y[:SAMPLES]) for dtype in (torch.float64, torch.float32))
    assert_elementwise(f"{name}: norms at the logits", [steps["logits"].optimizer.sample_norms[:SAMPLES]], [plain], [truth], torch.float32)
    for label, loss in losses.items():
        error = abs(loss.item() / losses["SAM"].item() - 1)
        assert error < 1e-5, f"{name}, {label}: loss {loss.item()} where SAM has {losses['SAM'].item()}"


def _at_logits(case: Case, x: Tensor, y: Tensor) -> Tensor:
    z = case.model().to(x.dtype)(x).detach()
    return (z.softmax(1) - F.one_hot(y, z.shape[1])).norm(dim=1)


def entry(step: Step) -> Callable[[], Times]:
    def timed() -> Times:
        start = perf_counter()
        step()
        return (perf_counter() - start,)

    return timed


def measure(name: str, backend: str) -> dict[str, Any]:
    steps = {label: Step(CASES[name], None if label == "SAM" else label, backend) for label in ("SAM", *ESTIMATORS)}
    assert_match(name, steps)
    rounds = timed_rounds({label: entry(step) for label, step in steps.items()})
    base = rounds.totals("SAM")
    info = {label: {"ms": spread(rounds.totals(label), 1e3), "over_sam": ratios(rounds.totals(label), base)} for label in steps}
    return {"reweighted": name, "label": CASES[name].label, "backend": backend, "rounds": len(base), "providers": info}
