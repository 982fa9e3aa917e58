"""A step is matched before it is timed: with the same step on the reference backend, from equal weights, on the same batch.

The perturbation of the first ascent and the momentum, as far as there is one, may err by ``TOLERANCE`` of their largest element, the
change of the weights by as much of its mean: where a gradient is nothing but rounding, Adam makes it as large as any other. Weights may
err by one rounding besides. Under half types all but the perturbation may err by ``HALF``, since weights that differ in one rounding have
other gradients. A radius that is wrong by 2 % shows.

Where a rounding decides on which side of its kink a ReLU is, gradients differ by more than that. A step that does not match is therefore
tried again from nearby weights: rounding fails here and there, a wrong step everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..spans import listen
from .match import Mismatch, full_precision
from .methods import STATE
from .steps import thinned
from .training import Step

TOLERANCE, HALF = 1e-2, 1e-1
ATTEMPTS, NEARBY = 5, 1e-3  # places; how far they are from the weights, relative to each
PERTURBATION, MOMENTUM, CHANGE = "perturbation", "momentum", "change of the weights"
MOMENTA = {keys[0] for keys in STATE.values()}
Results = dict[str, Tensor]


@dataclass
class FirstAscent:
    """A listener that keeps the weights behind the first ``ascend``."""

    params: Sequence[Tensor]
    weights: Tensor | None = None

    def enter(self, name: str) -> None:
        pass

    def leave(self, name: str) -> None:
        if name == "ascend" and self.weights is None:
            (self.weights,) = thinned(self.params)


@dataclass
class Matcher:
    """``build``: a step on a backend by name, on ``model``."""

    name: str
    model: nn.Module
    build: Callable[[str | None], Step]
    halves: bool = False
    params: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.params = [p for p in self.model.parameters() if p.requires_grad]

    def check(self) -> bool:
        """Compare, and leave the model as it was. False where even the reference does not repeat its own step, as with losses that draw
        numbers of their own; raises ``Mismatch``."""
        first: Mismatch | None = None
        for place in range(ATTEMPTS):
            try:
                self._compare(self._results(None, place), self._results("reference", place))
            except Mismatch as error:
                first = first or error
            else:
                return True
        try:
            self._compare(self._results("reference"), self._results("reference"))
        except Mismatch:
            return False
        assert first is not None
        raise first

    @torch.no_grad()
    def _go_to(self, place: int) -> None:
        random = torch.Generator().manual_seed(place)
        for p in self.params if place else ():
            p.mul_(1 + NEARBY * torch.randn(p.shape, generator=random).to(p))

    def _results(self, backend: str | None, place: int = 0) -> Results:
        clean = {key: value.clone() for key, value in self.model.state_dict().items()}
        self._go_to(place)
        (start,) = thinned(self.params)
        torch.manual_seed(0)
        step, ascent = self.build(backend), FirstAscent(self.params)
        try:
            with full_precision(), listen(ascent):
                loss = step()
            step.require_update(loss)
            found = {} if ascent.weights is None else {PERTURBATION: ascent.weights.double() - start.double()}
            state = [value for p in self.params for key, value in step.optimizer.state.get(p, {}).items() if key in MOMENTA]
            found |= {MOMENTUM: thinned(state)[0].double()} if state else {}
            return found | {CHANGE: thinned(self.params)[0].double() - start.double()}
        finally:
            self.model.load_state_dict(clean)
            for p in self.params:
                p.grad = None

    def _compare(self, got: Results, want: Results) -> None:
        if got.keys() != want.keys():
            raise Mismatch(f"{self.name}: it has {', '.join(got)}; the reference has {', '.join(want)}")
        rounding = torch.finfo(self.params[0].dtype).eps * max(p.detach().abs().max().item() for p in self.params)
        for label, x in want.items():
            share = HALF if self.halves and label != PERTURBATION else TOLERANCE
            error, size = (got[label] - x).abs(), x.abs()
            errs, of = (error.mean(), size.mean()) if label == CHANGE else (error.max(), size.max())
            allowed = share * of.item() + (0.0 if label == MOMENTUM else rounding)
            if not errs.item() <= allowed:  # not a number either
                raise Mismatch(f"{self.name}: the {label} errs by {errs.item():.3e} from that of the reference; allowed are {allowed:.3e}")
