"""A whole training step of a preset of ``sam_kernels.optim`` on a case, with its forwards and backwards; several in interleaved rounds."""

from typing import Any

import torch
from sample_cases import Case

from sam_kernels.profiling import training
from sam_kernels.profiling.subjects import Wish, of_case
from sam_kernels.profiling.timing import ratios, spread, timed, timed_rounds
from sam_kernels.profiling.training import Preset

OPTIONS = {"rho": 0.05, "lr": 1e-3, "momentum": 0.9}
SAM = "SAM"  # the label of what the others are compared with

__all__ = ["OPTIONS", "SAM", "Preset", "Step", "over_sam"]


class Step(training.Step):
    def __init__(self, case: Case, preset: Preset, backend: str, dtype: torch.dtype = torch.float32, **changed: Any) -> None:
        self.case, subject = case, of_case(case, Wish(dtype=dtype))
        self.model = subject.model
        super().__init__(subject, preset, backend=backend, **{**OPTIONS, **preset.options, **changed})


def over_sam(steps: dict[str, Step]) -> dict[str, Any]:
    """Times of steps that have matched, those of SAM among them: what a cell says of its rounds and providers."""
    rounds = timed_rounds({label: timed(step) for label, step in steps.items()})
    base = rounds.totals(SAM)
    info = {label: {"ms": spread(rounds.totals(label), 1e3), "over_sam": ratios(rounds.totals(label), base)} for label in steps}
    return {"label": steps[SAM].case.label, "rounds": len(base), "providers": info}
