"""Match before time: three steps of every method from equal weights on equal data, by the error rule of the project.

In fp32 without autocast and TF32, with deterministic kernels that are not autotuned, on the first samples of the batch: losses, changes of
the weights, statistics of BatchNorm, per-sample norms. Truth is the plain form of the method in fp64, its plain error that of fp32: for SAM
the plain loop, for what is ours alone the reference backend. A captured step must have the bits of the eager one, under the autocast that
is timed; where the eager one does not repeat its own, it may differ from it by as much as the rule allows that difference.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from end_methods import Captured, ExactNorms, Ours, PlainLoop, Reweighted, Sgd, Trial, Work, on_reference
from torch import Tensor

from sam_kernels.profiling.match import assert_bits, assert_elementwise
from sam_kernels.profiling.steps import thinned

STEPS, SAMPLES = 3, 4
Kind = Callable[[Work], Trial]
Results = dict[str, list[Tensor]]


class PlainSgd(Sgd):
    fused = False


REFERENCES: dict[type[Trial], type[Trial]] = {
    Sgd: PlainSgd,
    ExactNorms: on_reference(ExactNorms),
    Reweighted: on_reference(Reweighted),
    Trial: PlainLoop,  # all others are SAM
}


@contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            warnings.filterwarnings("ignore", "Deterministic behavior|.*deterministic", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def results(kind: Kind, work: Work) -> Results:
    """What a method makes of the weights in some steps, thinned where it is much."""
    trial = kind(work)
    names = [name for name, t in trial.model.state_dict().items() if t.is_floating_point()]
    start = {name: t.to(work.device) for name, t in work.model.state_dict().items()}
    losses, norms = [], []
    for _ in range(STEPS):
        losses.append(trial(work.x, work.y).clone().reshape(1))
        norms += [] if trial.norms is None else [trial.norms.clone()]
    trained = {name for name, p in trial.model.named_parameters() if p.requires_grad}
    change = {name: t.double() - start[name].double() for name, t in trial.model.state_dict().items() if name in names}
    gradients = [p.grad.detach().clone() for p in trial.params] if trial.optimizer is None else []
    found = {
        "losses": losses,
        "changes of the weights": [t for name, t in change.items() if name in trained and trial.optimizer is not None],
        "gradients": gradients,
        "statistics": [t for name, t in change.items() if name not in trained],
        "norms": norms,
    }
    return {name: thinned(values) if name != "losses" else values for name, values in found.items() if values}


class Matcher:
    """Of one network; the references are computed once."""

    def __init__(self, work: Work) -> None:
        self.work, self._references = work, {}

    def reference(self, kind: type[Trial]) -> tuple[Results, Results]:
        plain = next(reference for of, reference in REFERENCES.items() if issubclass(kind, of))
        if plain not in self._references:
            self._references[plain] = tuple(results(plain, self.work.matched(SAMPLES, dtype)) for dtype in (torch.float32, torch.float64))
        return self._references[plain]

    def check(self, name: str, kind: type[Trial]) -> str:
        """How it was matched; raises ``Mismatch``."""
        if kind is Trial:
            return "baseline"
        with deterministic():
            if issubclass(kind, Captured):
                return self._captured(name, kind)
            plain, truth = self.reference(kind)
            got = results(kind, self.work.matched(SAMPLES, torch.float32))
            assert got.keys() == truth.keys(), f"{name}: {sorted(got)} where the reference has {sorted(truth)}"
            for part, values in got.items():
                assert_elementwise(f"{name}: {part}", values, plain[part], truth[part], torch.float32)
        return "fp64 rule"

    def _captured(self, name: str, kind: type[Captured]) -> str:
        work = self.work
        eager: type[Ours] = next(k for k in (Reweighted, Ours) if k.preset == kind.preset)
        got, first, again = (results(k, work) for k in (kind, eager, eager))
        try:
            for part in first:
                assert_bits(part, again[part], first[part])
        except AssertionError:
            for part, values in got.items():
                assert_elementwise(f"{name}: {part}", values, again[part], first[part], torch.float32)
            return "within the spread of the eager step, which does not repeat its bits here"
        for part, values in got.items():
            assert_bits(f"{name}: {part}", values, first[part])
        return "bits of the eager step"
