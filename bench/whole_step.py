"""A whole training step of a preset of ``sam_kernels.optim`` on a case, with its forwards and backwards; several in interleaved rounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from sample_cases import Case
from torch import Tensor

from sam_kernels.profiling.timing import ratios, spread, timed, timed_rounds

OPTIONS = {"rho": 0.05, "lr": 1e-3, "momentum": 0.9}
SAM = "SAM"  # the label of what the others are compared with


@dataclass(frozen=True)
class Preset:
    name: str = "SAM"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def at_logits(self) -> bool:
        """It wants the norms at the logits beside the losses."""
        return self.options.get("estimator") == "logits"


class Step:
    """One step per call, always on the same batch."""

    def __init__(self, case: Case, preset: Preset, backend: str, dtype: torch.dtype = torch.float32, **changed: Any) -> None:
        from sam_kernels import ops, optim

        self.case, self.model, self.preset, (x, self.y) = case, case.model().to(dtype), preset, case.batch()
        self.x = x.to(dtype)
        self.none: Callable[..., Any] = ops.cross_entropy_sample if preset.at_logits else case.losses
        options = {**OPTIONS, **preset.options, "model": self.model, "backend": backend, **changed}
        self.optimizer = getattr(optim, preset.name)(self.model.parameters(), torch.optim.SGD, **options)
        self.given: dict[str, Any] = {"batch_size": case.samples}
        if preset.name == "AUSAM":
            self.given["sample_ids"] = torch.arange(case.samples)

    def losses(self, index: Tensor | None = None) -> Any:
        x, y = (self.x, self.y) if index is None else (self.x[index], self.y[index])
        return self.none(self.model(x), y)

    def closure(self) -> Tensor:
        loss = F.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        return loss

    def __call__(self) -> Tensor:
        if self.preset.name == "SAM":
            return self.optimizer.step(self.closure)
        return self.optimizer.step(self.losses, **self.given)


def over_sam(steps: dict[str, Step]) -> dict[str, Any]:
    """Times of steps that have matched, those of SAM among them: what a cell says of its rounds and providers."""
    rounds = timed_rounds({label: timed(step) for label, step in steps.items()})
    base = rounds.totals(SAM)
    info = {label: {"ms": spread(rounds.totals(label), 1e3), "over_sam": ratios(rounds.totals(label), base)} for label in steps}
    return {"label": steps[SAM].case.label, "rounds": len(base), "providers": info}
