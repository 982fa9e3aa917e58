"""Methods of ``end_to_end.py``: whole training steps, each on its own copy of the weights.

Every method of two passes freezes the statistics of BatchNorm in the second.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import peers
import torch
from end_trial import Trial, Work
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import sam_kernels
from sam_kernels import optim, per_sample
from sam_kernels.batchnorm import frozen_batchnorm
from sam_kernels.profiling.methods import Method
from sam_kernels.profiling.steps import Step
from sam_kernels.profiling.training import METHODS as PRESETS
from sam_kernels.spans import span

RHO = 0.05
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}  # lr: no step diverges, however often it sees one batch; its cost is the same


class ExactNorms(Trial):
    """Forward and backward with the norm of every sample's gradient."""

    backend: str | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.clear()
        with per_sample.grad_norms(self.model, len(x), batchnorm=batchnorm_of(self.model), backend=self.backend) as norms:
            loss = self.passed(x, y)
        self.norms = norms.norm
        return loss


class Sgd(Trial):
    fused = True

    def build(self, work: Work) -> None:
        self.optimizer = torch.optim.SGD(self.params, **SGD, **({"fused": True} if self.fused else {"foreach": False}))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().__call__(x, y)
        with span("descend"):
            self.optimizer.step()
        return loss


class Peer(Trial):
    """A peer of the benchmark of steps, ``kind``, with passes around it."""

    kind: Callable[..., Step]
    options: dict[str, Any] = {"fused": True}  # noqa: RUF012

    def build(self, work: Work) -> None:
        self.step = self.kind(self.params, Method("sam", "sgd"), **self.options)
        self.step.rho, self.optimizer = RHO, self.step.optimizer
        for group in self.optimizer.param_groups:
            group.update(SGD)
            if "rho" in group:  # of a wrapper, which has read it
                group["rho"] = RHO

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().__call__(x, y)
        with span("ascend"):
            self.step.first()
        self.clear()
        with frozen_batchnorm(self.model):
            self.passed(x, y)
        with span("descend"):
            self.step.second()
        return loss


class Loop(Peer):
    """The single-file SAM that most people use: clone, add, restore by ``.data``, tensor by tensor. That of ``peers.py``, as in the
    benchmark of steps, since it takes a fused base; the loop of the examples does not."""

    kind = peers.PerTensorLoop


class PlainLoop(Loop):
    """The same without a fused base: what all are compared with."""

    options = {"fused": False}  # noqa: RUF012


class Package(Peer):
    kind = peers.PytorchOptimizer
    options = {"foreach": True, "fused": True}  # noqa: RUF012

    @classmethod
    def missing(cls, device: str) -> str | None:
        return None if find_spec("pytorch_optimizer") else "pytorch_optimizer is not installed"


class Foreach(Peer):
    kind = peers.ForeachFused
    options = {"radius": "device", "fused": True}  # noqa: RUF012


class Ours(Trial):
    preset, backend = "sam", None

    def build(self, work: Work) -> None:
        preset = PRESETS[self.preset]
        self.exact = preset.options.get("estimator") == "exact"
        options = preset.options | ({"batchnorm": batchnorm_of(self.model)} if self.exact else {})
        kind = getattr(optim, preset.name)
        self.optimizer = kind(self.params, torch.optim.SGD, rho=RHO, model=self.model, backend=self.backend, **SGD, **options)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.exact:
            return self.optimizer.step(lambda: self.passed(x, y))
        loss = self.optimizer.step(lambda index=None: self.objective(x, y, index), batch_size=len(y))
        self.norms = self.optimizer.sample_norms
        return loss


class Reweighted(Ours):
    preset = "rw-exact"


class Captured(Ours):
    """The same step as a CUDA graph: inputs are copied into it, then it is replayed."""

    replay: Callable[..., Tensor] | None = None

    @classmethod
    def missing(cls, device: str) -> str | None:
        return None if device == "cuda" else "needs a CUDA GPU"

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.replay is None:
            self.replay = sam_kernels.capture(super().__call__, self.optimizer, x, y)
        return self.replay(x, y)


class CapturedReweighted(Captured):
    preset = "rw-exact"


def batchnorm_of(model: nn.Module) -> str:
    """What per-sample norms are to make of BatchNorm in training mode, where there is any."""
    return "contribution" if any(isinstance(module, _BatchNorm) for module in model.modules()) else "error"


def on_reference(kind: type[Trial]) -> type[Trial]:
    """A method of ours in plain torch."""
    return type(f"Reference{kind.__name__}", (kind,), {"backend": "reference"})
