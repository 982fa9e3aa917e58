"""A whole training step of a network: what is trained, and the forward and backward that every method of ``end_methods`` is made of.

trial(x, y) clears the gradients, takes one step and returns the loss at the clean weights. All forwards are the same code under the same
autocast.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sam_kernels.profiling.models import Case
from sam_kernels.profiling.subjects import Objective, Wish, placed
from sam_kernels.spans import span


@dataclass(frozen=True)
class Work:
    """What is trained: weights on the CPU to be copied, a batch on the device."""

    case: Case
    model: nn.Module
    x: Tensor
    y: Tensor
    device: str
    autocast: bool = True

    @classmethod
    def of(cls, case: Case, device: str, batch_size: int | None = None) -> "Work":
        model, x, y = placed(case, Wish(batch_size))
        return cls(case, model, x.to(device), y.to(device), device)

    def matched(self, samples: int, dtype: torch.dtype) -> "Work":
        """Some of its samples, computed in ``dtype`` throughout; without kinks, where a rounding decides about a gradient."""
        x = self.x[:samples].to(dtype) if self.x.is_floating_point() else self.x[:samples]
        model = deepcopy(self.model).to(dtype)
        for module in model.modules():
            for name, _ in filter(lambda child: isinstance(child[1], nn.ReLU), list(module.named_children())):
                setattr(module, name, nn.GELU())
        return replace(self, model=model, x=x, y=self.y[:samples], autocast=False)


class Trial:
    """Forward and backward; what a method adds to them is in its ``__call__``."""

    optimizer: Any = None
    norms: Tensor | None = None  # [B], of the last step

    def __init__(self, work: Work) -> None:
        self.model = deepcopy(work.model).to(work.device)
        self.objective = Objective(self.model, work.case.losses, work.autocast)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.build(work)

    @classmethod
    def missing(cls, device: str) -> str | None:
        """Why it cannot run here, which is no failure of it."""
        return None

    def build(self, work: Work) -> None:
        """Make the optimizer."""

    def clear(self) -> None:
        for p in self.params:
            p.grad = None

    def passed(self, x: Tensor, y: Tensor) -> Tensor:
        with span("forward"):
            loss: Tensor = self.objective(x, y).mean()
        with span("backward"):
            loss.backward()
        return loss.detach()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.clear()
        return self.passed(x, y)
