"""The four choices that make a sharpness-aware optimizer, as small immutable objects. A published algorithm is a preset over them.

=========  =====================================================  ===================
rule       what it decides                                        values so far
=========  =====================================================  ===================
batch      what the ascent gradient is taken of                   ``WholeBatch``, ``Reweighted``, ``MicroBatch``,
                                                                  ``Efficient``, ``Sampled``
ascent     the direction; ``adaptive``, ``eta`` and ``normalize``  ``Gradient``
           of the optimizer scale any direction
descent    the coefficients of (h, g) in the base update          ``Plain``, ``Stable``
schedule   which steps have a second pass                         ``EveryStep``
=========  =====================================================  ===================
"""

from dataclasses import dataclass

from ..ops import Combination
from ..ops.coefficients import entry_mask, needed_entries
from .batches import WholeBatch
from .efficient import Efficient
from .microbatch import MicroBatch
from .reweighting import Reweighted
from .sampled import Sampled

__all__ = ["Descent", "Efficient", "EveryStep", "Gradient", "MicroBatch", "Plain", "Reweighted", "Sampled", "Stable", "WholeBatch"]


@dataclass(frozen=True)
class Gradient:
    """The ascent direction is the gradient itself."""

    direction: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True)
class Descent:
    """What the base update sees: ``coefficients`` of h and g, rescaled to the norm of g where ``match_norm``. Norms are those of all first
    gradients; where a rule reads g itself, those of the parameters that have a second gradient too."""

    coefficients: Combination = Combination()  # noqa: RUF009  (frozen)
    match_norm: bool = False

    def __post_init__(self) -> None:
        entries = needed_entries(self.coefficients, self.match_norm, 1.0)
        if self.coefficients.reads("q") or self.coefficients.writes_q() or entries & entry_mask(["gq", "hq", "qq"]):
            raise ValueError("descent coefficients involve q, a vector kept across steps; this optimizer keeps none: use h and g only")

    def keeps_g(self, max_norm: float) -> bool:
        """Whether the first gradient itself, not only its norm, is needed in the second phase."""
        entries = needed_entries(self.coefficients, self.match_norm, max_norm)
        return self.coefficients.reads("g") or bool(entries & entry_mask(["gh"]))

    def sees_g(self, max_norm: float) -> bool:
        """Whether it depends on the first gradient at all, be it on its norm."""
        entries = needed_entries(self.coefficients, self.match_norm, max_norm)
        return self.keeps_g(max_norm) or bool(entries & entry_mask(["gg"]))


@dataclass(frozen=True)
class Plain(Descent):
    """The gradient at the perturbed weights, as it is."""


@dataclass(frozen=True)
class Stable(Descent):
    """The descent gradient gets the norm of the ascent gradient (Stable SAM, arXiv 2401.07250)."""

    match_norm: bool = True


@dataclass(frozen=True)
class EveryStep:
    """Every step has a second pass."""
