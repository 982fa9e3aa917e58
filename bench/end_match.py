"""Match before time: three steps of every method from equal weights on equal data, against the plain form of the method in fp64.

In fp32 without autocast and TF32, on the first samples of the batch: losses, changes of the weights, statistics of BatchNorm, per-sample
norms. Plain is the loop for SAM, and the reference backend for what is ours alone. No result may err by more than ``TOLERANCE`` of its
largest element: three steps of ResNet-18 in fp32 err by a fifth of it, a radius that is wrong by 2 % by several times as much. ReLU is GELU
here, since beside a kink no error is small.

A captured step must have the bits of the eager one, on the batch and under the autocast that are timed, with deterministic kernels that are
not autotuned. Where the eager one does not repeat its own bits, its repetitions say by how much the captured one may differ.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from end_methods import Captured, ExactNorms, Ours, PlainLoop, Reweighted, Sgd, Trial, Work, on_reference
from torch import Tensor

from sam_kernels.profiling.match import Mismatch, assert_bits
from sam_kernels.profiling.steps import thinned

STEPS, SAMPLES, REPETITIONS = 3, 4, 3
TOLERANCE = 5e-4
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
def deterministic(strict: bool) -> Iterator[None]:
    """Not strict: what has no deterministic form, and attention, which then does not look for one, run as they are."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        with warnings.catch_warnings(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            warnings.filterwarnings("ignore", "(?i).*deterministic", UserWarning)
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

    def check(self, name: str, kind: type[Trial]) -> str:
        """How well it matches; raises ``Mismatch``."""
        if kind is Trial:
            return "baseline"
        if issubclass(kind, Captured):
            return self._captured(name, kind)
        with deterministic(strict=False):
            got, truth = results(kind, self.work.matched(SAMPLES, torch.float32)), self._truth(kind)
        return f"{assert_near(name, got, truth, TOLERANCE):.1e}"

    def _truth(self, kind: type[Trial]) -> Results:
        plain = next(reference for of, reference in REFERENCES.items() if issubclass(kind, of))
        if plain not in self._references:
            self._references[plain] = results(plain, self.work.matched(SAMPLES, torch.float64))
        return self._references[plain]

    def _captured(self, name: str, kind: type[Captured]) -> str:
        eager = next(k for k in (Reweighted, Ours) if k.preset == kind.preset)
        try:
            with deterministic(strict=True):
                return self._same_bits(name, kind, eager)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
        with deterministic(strict=False):
            return self._same_bits(name, kind, eager)

    def _same_bits(self, name: str, kind: type[Captured], eager: type[Ours]) -> str:
        got, first, again = (results(k, self.work) for k in (kind, eager, eager))
        try:
            for part in first:
                assert_bits(part, again[part], first[part])
        except Mismatch:
            more = [again, *(results(eager, self.work) for _ in range(REPETITIONS - 1))]
            spread = max(assert_near(name, run, first, float("inf")) for run in more)
            return f"{assert_near(name, got, first, 2 * spread):.1e}, eager {spread:.1e}"
        for part, values in got.items():
            assert_bits(f"{name}: {part}", values, first[part])
        return "bits"


def assert_near(name: str, got: Results, want: Results, tolerance: float) -> float:
    """The largest error of all results, over the largest element of each."""
    if got.keys() != want.keys():
        raise Mismatch(f"{name}: it has {sorted(got)}, the reference {sorted(want)}")
    errors = {}
    for part, values in got.items():
        x, y = (torch.cat([t.double().reshape(-1) for t in tensors]) for tensors in (values, want[part]))
        errors[part] = ((x - y).abs().max() / y.abs().max()).item()
        if not errors[part] <= tolerance:  # not a number either
            raise Mismatch(f"{name}: {part}: error {errors[part]:.1e} of the largest element exceeds {tolerance:.1e}")
    return max(errors.values())
