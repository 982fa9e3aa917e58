"""Match before time: three steps of every method from equal weights on equal data, against the plain form of the method in fp64.

In fp32 without autocast and TF32, on the first samples of the batch: losses, changes of the weights, statistics of BatchNorm, per-sample
norms. Plain is the loop for SAM, and the reference backend for what is ours alone. No result may err by more than ``TOLERANCE`` of its
largest element, and a change by as much as the weights are rounded in so many steps. ReLU is GELU here: beside a kink no error is small.
(ResNet-18, in fractions of that: 0.3 for what is right, 19 for a radius that is wrong by 2 %, 6 for no weight decay.)

A captured step must have the bits of the eager one, on the batch and under the autocast that are timed, with deterministic kernels that are
not autotuned. Where the eager one does not repeat its own bits, its repetitions say by how much the captured one may differ.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from end_methods import Captured, ExactNorms, Ours, PlainLoop, Reweighted, Sgd, on_reference
from end_trial import Trial, Work
from torch import Tensor

from sam_kernels.profiling.match import Mismatch, assert_bits
from sam_kernels.profiling.steps import thinned

STEPS, SAMPLES, REPETITIONS = 3, 4, 3
TOLERANCE = 2e-4
CHANGES = "changes of the weights"
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
        CHANGES: [t for name, t in change.items() if name in trained and trial.optimizer is not None],
        "gradients": gradients,
        "statistics": [t for name, t in change.items() if name not in trained],
        "norms": norms,
    }
    return {name: [t.cpu() for t in thinned(values)] for name, values in found.items() if values}  # no part of anybody's peak of memory


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
        largest = max(p.abs().max().item() for p in self.work.model.parameters())
        rounding = {CHANGES: STEPS * torch.finfo(torch.float32).eps / 2 * largest}
        allowed = {part: TOLERANCE * size(values) + rounding.get(part, 0.0) for part, values in truth.items()}
        return f"{within(name, got, truth, allowed):.2f} of the tolerance"

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
        first, again, got = (results(k, self.work) for k in (eager, eager, kind))  # capture last: it cannot recover from a refusal
        if any(errors(again, first).values()):
            more = [errors(run, first) for run in (again, *(results(eager, self.work) for _ in range(REPETITIONS - 1)))]
            allowed = {part: 2 * max(found[part] for found in more) for part in first}
            return f"{within(name, got, first, allowed):.2f} of twice the spread of the eager step, whose bits do not repeat"
        for part, values in got.items():
            assert_bits(f"{name}: {part}", values, first[part])
        return "bits"


def size(tensors: list[Tensor]) -> float:
    return max(t.abs().max().item() for t in tensors)


def errors(got: Results, want: Results) -> dict[str, float]:
    """The largest of each result."""
    return {part: size([x.double() - y.double() for x, y in zip(got[part], want[part], strict=True)]) for part in want}


def within(name: str, got: Results, want: Results, allowed: dict[str, float]) -> float:
    """The largest part of what is ``allowed`` that an error takes."""
    if got.keys() != want.keys():
        raise Mismatch(f"{name}: it has {sorted(got)}, the reference {sorted(want)}")
    found = errors(got, want)
    for part, error in found.items():
        if not error <= allowed[part]:  # not a number either
            raise Mismatch(f"{name}: {part}: error {error:.2e} exceeds {allowed[part]:.2e}, largest element {size(want[part]):.2e}")
    return max(error / allowed[part] if error else 0.0 for part, error in found.items())
