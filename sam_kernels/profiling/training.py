"""A whole training step of a preset of ``sam_kernels.optim``, with its forwards and backwards, always on the same batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import optim
from ..optim.batches import WholeBatch
from ..spans import span
from . import Refused
from .subjects import Subject

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-5}),
}


@dataclass(frozen=True)
class Preset:
    name: str = "SAM"
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, options: dict[str, Any]) -> Preset:
        """With these in the place of its own; of two ways to say one thing the own one goes."""
        own = {key: value for key, value in self.options.items() if not (key == "shards" and "shard_size" in options)}
        return Preset(self.name, own | options)

    @property
    def at_logits(self) -> bool:
        """It wants the norms at the logits beside the losses."""
        return self.options.get("estimator") == "logits"


def _reweighted(estimator: str) -> Preset:
    return Preset("ReweightedSAM", {"lam": 1.0, "relative": True, "estimator": estimator})


METHODS = {
    "sam": Preset(),
    "asam": Preset("ASAM", {"rho": 0.5}),
    "stable_sam": Preset("StableSAM"),
    "rw-exact": _reweighted("exact"),
    "rw-logits": _reweighted("logits"),
    "rw-fd": _reweighted("finite_difference"),
    "m-sam": Preset("MicroBatchSAM", {"shards": 4}),
    "esam": Preset("ESAM", {"beta": 0.5, "gamma": 0.5}),
    "ausam": Preset("AUSAM", {"alpha": 0.5}),
}


class Step:
    """One step per call. AUSAM takes the batch for the whole training set, so that it draws from its second step on."""

    def __init__(self, subject: Subject, preset: Preset, base: str = "sgd", **changed: Any) -> None:
        if preset.at_logits and subject.with_norms is None:
            raise Refused(
                f"{subject.label} returned losses without norms, which the estimator at the logits needs: return "
                "ops.cross_entropy_sample(model(x), y) from losses()"
            )
        self.subject, self.preset = subject, preset
        self._losses = subject.with_norms if preset.at_logits else subject.losses
        given: dict[str, Any] = {"rho": 0.05, **BASES[base][1], **preset.options, "model": subject.model, **changed}
        self._sample: dict[str, Any] = {"batch_size": subject.batch_size}
        if preset.name == "AUSAM":
            given.setdefault("num_samples", subject.batch_size)
            self._sample["sample_ids"] = torch.arange(subject.batch_size)
        trained = [p for p in subject.model.parameters() if p.requires_grad]
        self.optimizer: optim.SAM = getattr(optim, preset.name)(trained, BASES[base][0], **given)

    def closure(self) -> Tensor:
        with span("forward"):
            found = self.subject.losses()
            loss: Tensor = (found if isinstance(found, Tensor) else found[0]).mean()
        with span("backward"):
            loss.backward()
        return loss

    def __call__(self) -> Tensor:
        if isinstance(self.optimizer.batch, WholeBatch):
            return self.optimizer.step(self.closure)
        return self.optimizer.step(self._losses, **self._sample)

    def require_update(self, loss: Tensor) -> None:
        """Raise where the step that returned ``loss`` was none: norms that are not finite forbid it, and it is cheaper than one."""
        if not bool(torch.isfinite(loss.detach()).all()) or not bool(self.optimizer.step_taken()):
            raise FloatingPointError(f"its loss is {loss.mean().item():g}, or its gradient is not finite: such a step updates nothing")
