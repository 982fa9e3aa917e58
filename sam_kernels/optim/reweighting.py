"""Reweighted SAM (arXiv 2509.18001): the ascent follows the samples with the largest gradients.

    p_i = exp(lam s_i) / sum_j exp(lam s_j),   s_i = |grad l_i(w)|,   ascent on sum_i p_i l_i(w),   descent on mean_i l_i(w + e)

Where the norms s come from is the estimator's choice:

=====================  =====================================================  ========================================
estimator              s_i                                                    beyond a SAM step
=====================  =====================================================  ========================================
``exact``              norm of sample i's gradient, all trainable parameters  the norms; no second backward
``logits``             norm of its gradient at the logits                     nothing
``finite_difference``  root mean square over probes z = +-1 of                a forward for each probe
                       (l_i(w + delta z) - l_i(w)) / delta
=====================  =====================================================  ========================================

With ``draw=k`` the ascent is on the mean loss of k samples drawn by p (systematic), whose expectation is the same; then the two estimates
need a graph and a backward of these k samples only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from .. import per_sample
from ..batchnorm import frozen_batchnorm
from ..ops.draw import draw
from ..ops.gibbs_weights import gibbs_weights
from ..spans import span, spanned
from .batches import Losses, OfLosses, backward, check_draws, is_count, losses_of, no_grad_losses, random_state

if TYPE_CHECKING:
    from .sam import SAM

ESTIMATORS = ("exact", "logits", "finite_difference")


@dataclass(frozen=True)
class Reweighted(OfLosses):
    """The batch rule of Reweighted SAM; options as in ``ReweightedSAM``."""

    lam: float | Tensor
    estimator: str = "exact"
    relative: bool = False
    delta: float = 1e-4
    probes: int = 1
    batchnorm: str = "error"
    draw: int | None = None

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}; expected one of {ESTIMATORS}")
        if not isinstance(self.lam, Tensor) and not (isinstance(self.lam, int | float) and isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam is {self.lam!r}; expected a finite number >= 0 (0: every sample counts the same), or a tensor")
        if not isinstance(self.delta, int | float) or not isfinite(self.delta) or self.delta <= 0:
            raise ValueError(f"delta is {self.delta!r}; expected a finite number > 0, the length of a probe's step in every weight")
        if not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"probes is {self.probes!r}; expected an int >= 1")
        if self.draw is not None and not is_count(self.draw):
            raise ValueError(f"draw is {self.draw!r}; expected an int >= 1, how many samples the ascent looks at, or None for all")
        if self.batchnorm not in ("error", "contribution"):
            raise ValueError(
                f"batchnorm is {self.batchnorm!r}; expected 'error' or 'contribution'; to freeze statistics, put the layers in evaluation "
                "mode, so that both passes use them"
            )
        if isinstance(self.lam, Tensor):
            if self.lam.numel() != 1 or not self.lam.is_floating_point():
                raise ValueError(
                    f"lam is a tensor of shape {tuple(self.lam.shape)} and {self.lam.dtype}; expected one floating-point element"
                )
            if not self.lam.is_cuda and not (isfinite(self.lam.item()) and self.lam.item() >= 0):
                raise ValueError(f"lam is {self.lam.item()}; expected a finite number >= 0")

    @property
    def on_host(self) -> str:  # type: ignore[override]
        return "with finite differences rewinds torch's generators, for dropout," if self.estimator == "finite_difference" else ""

    def check(self, optimizer: SAM) -> None:
        if self.draw is not None:
            check_draws(optimizer)
        if self.estimator == "exact" and optimizer.model is None:
            raise ValueError("estimator 'exact' watches the layers of the model; pass model=, or choose 'logits' or 'finite_difference'")
        if self.estimator == "exact":
            _check_members(optimizer)
        if self.estimator == "finite_difference":
            for p in (p for group in optimizer.param_groups for p in group["params"] if p.dtype.itemsize == 2):
                raise ValueError(
                    f"estimator 'finite_difference' with {p.dtype} weights, in which a step of delta={self.delta} drowns; use fp32"
                )

    def first(self, optimizer: SAM, losses: Losses, batch_size: int) -> Tensor:
        if self.estimator == "exact":
            return self._exact(optimizer, losses, batch_size)
        with torch.set_grad_enabled(self.draw is None):  # with a draw, only the drawn samples have a backward
            if self.estimator == "logits":
                found, norms = losses_of(losses, batch_size)
                if norms is None:
                    raise TypeError(
                        "estimator 'logits' needs the norms beside the losses; return ops.cross_entropy_sample(model(x), y) from losses()"
                    )
            else:
                found, norms = self._probed(optimizer, losses, batch_size)
        weights = self._weigh(optimizer, norms, found)
        if self.draw is None:
            backward((weights.to(found.dtype) * found).sum())
        else:
            with frozen_batchnorm(optimizer.model):
                drawn = losses_of(losses, batch_size, optimizer.sample_indices)[0]
            backward((weights[optimizer.sample_indices].to(drawn.dtype) * drawn).sum())
        return found.detach().mean()

    def _exact(self, optimizer: SAM, losses: Losses, batch_size: int) -> Tensor:
        assert optimizer.model is not None
        _check_members(optimizer)
        with per_sample.grad_norms(
            optimizer.model, batch_size, weighted=True, reduction="sum", batchnorm=self.batchnorm, backend=optimizer.backend
        ) as norms:
            found = losses_of(losses, batch_size)[0]
            backward(found.sum())
        weights = self._weigh(optimizer, norms.norm, norms.norm)
        with span("weighted gradients"):
            grads = norms.weighted_gradients(weights, checked=True)
        for p in optimizer.members():  # nobody else's gradients
            p.grad = grads.get(p)
        return found.detach().mean()

    def _probed(self, optimizer: SAM, losses: Losses, batch_size: int) -> tuple[Tensor, Tensor]:
        """Losses, and the estimate. The probes come first: weights must not change between a forward and its backward."""
        noise, probed = optimizer.draw_noise(), []
        rewind = random_state(optimizer.devices)  # dropout drops the same in every forward
        with span("norms"), frozen_batchnorm(optimizer.model):
            for _ in range(self.probes):
                noise[1] += 1
                optimizer.perturb_signs(noise, self.delta)
                try:
                    probed.append(no_grad_losses(losses, batch_size))
                finally:
                    optimizer.restore()
                rewind()
        found = losses_of(losses, batch_size)[0]
        wide = torch.promote_types(found.dtype, torch.float32)
        differences = torch.stack(probed).to(wide) - found.detach().to(wide)
        return found, differences.square().mean(0).sqrt() / self.delta

    @spanned("weights")
    def _weigh(self, optimizer: SAM, norms: Tensor, values: Tensor) -> Tensor:
        """What the losses are multiplied by: the Gibbs weights, or, of samples drawn by them, one over their number each time. A sample
        whose norm is not finite has weight 0; one with another of ``values`` that is not, skips the step, as NaN times 0 does."""
        optimizer.sample_norms = norms.detach()
        gibbs = optimizer.sample_weights = gibbs_weights(optimizer.sample_norms, self.lam, self.relative, backend=optimizer.backend)
        if self.draw is None:
            return gibbs.weights
        with span("draw"):
            drawn = draw(gibbs.weights, self.draw, indices=True, backend=optimizer.backend)
        optimizer.sample_indices = drawn.indices
        good = torch.isfinite(values.detach()).all() & torch.isfinite(gibbs.weights).all()  # a draw would hide that they are not
        once = torch.where(good, gibbs.weights.new_full((len(norms),), 1 / self.draw), float("nan"))
        return drawn.counts * once if self.estimator == "exact" else once


def _check_members(optimizer: SAM) -> None:
    """Nothing but the layers of the model is seen; a parameter of the optimizer that is not in there would lose its gradient."""
    assert optimizer.model is not None
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise NotImplementedError(
            "estimator 'exact' makes the ascent gradient outside of DistributedDataParallel, so every rank would perturb by its own and "
            "skip a step by itself; use estimator 'logits' with several ranks"
        )
    known = set(map(id, optimizer.model.parameters()))
    for row, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            if p.requires_grad and id(p) not in known:
                raise ValueError(
                    f"parameter {i} of group {row}, of shape {tuple(p.shape)}, is not in model=, whose layers estimator 'exact' watches; "
                    "pass the module that holds all of them, or choose another estimator"
                )
