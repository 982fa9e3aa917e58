"""SAM, ASAM and Stable SAM as they are usually written in PyTorch: one Python loop per parameter and operation.

The yardstick of ``digits.py``. It does the arithmetic of the fused optimizer with plain tensor operations, so that the two can be
compared weight for weight before they are compared in time.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class PlainLoopSAM:
    """Two-phase SAM around ``torch.optim.SGD``.

    Args:
        params: parameters to train.
        rho: radius of the perturbation.
        adaptive, eta: ASAM, whose perturbation is scaled by ``(|w| + eta)**2``.
        stable: Stable SAM, whose second gradient is rescaled to the norm of the first.
        sgd: arguments of ``torch.optim.SGD``.
    """

    def __init__(
        self, params: Iterable[Tensor], rho: float, *, adaptive: bool = False, eta: float = 0.0, stable: bool = False, **sgd: float
    ) -> None:
        self.params = list(params)
        self.rho, self.adaptive, self.eta, self.stable = rho, adaptive, eta, stable
        self.base = torch.optim.SGD(self.params, **sgd)
        self.saved: list[Tensor] = []
        self.first_norm = torch.zeros(())

    @torch.no_grad()
    def first_step(self) -> None:
        """Keep the weights, move to ``w + rho * g / |g|``, drop the gradients."""
        if self.adaptive:
            norm = torch.stack([((p.abs() + self.eta) * p.grad).norm() for p in self.params]).norm()
        else:
            norm = torch.stack([p.grad.norm() for p in self.params]).norm()
        self.first_norm = norm
        scale = self.rho / (norm + 1e-12)
        self.saved = []
        for p in self.params:
            self.saved.append(p.clone())
            p.add_((p.abs() + self.eta).square() * p.grad * scale if self.adaptive else p.grad * scale)
        self.base.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Restore the weights, update them with the gradient found at the perturbed ones, drop the gradients."""
        if self.stable:
            gamma = self.first_norm / torch.stack([p.grad.norm() for p in self.params]).norm()
            for p in self.params:
                p.grad.mul_(gamma)
        for p, saved in zip(self.params, self.saved, strict=True):
            p.copy_(saved)
        self.base.step()
        self.base.zero_grad()
