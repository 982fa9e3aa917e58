"""ESAM (arXiv 2110.03141): the ascent moves a random part A of the tensors, the descent looks at the samples that it has hurt most.

    e = (rho / beta) g_A / |g_A|,   g = grad L(w);   h = mean over S of grad l_i(w + e),   S = {i: l_i(w + e) - l_i(w) > c},

c the int(gamma B)-th largest of these changes. Whole tensors, so that the weight gradients of the others are never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..spans import span, spanned
from .batches import Losses, OfLosses, Turn, backward, losses_of, mean_backward, random_state

if TYPE_CHECKING:
    from .sam import SAM

ALL = 0.99  # from this gamma on the authors select nothing


@dataclass(frozen=True)
class Efficient(OfLosses):
    """The batch rule of ESAM; options as in ``optim.ESAM``. State: ``active`` ``[tensors]``, who takes part in the next ascent."""

    beta: float = 0.6
    gamma: float = 0.5
    inclusive: bool = False

    def __post_init__(self) -> None:
        for name, value, of in (("beta", self.beta, "tensors in the ascent"), ("gamma", self.gamma, "samples in the second pass")):
            if not isinstance(value, int | float) or not 0 < value <= 1:
                raise ValueError(f"{name} is {value!r}; expected a number in (0, 1], the share of the {of}")

    @property
    def radius(self) -> float:  # type: ignore[override]
        return 1 / self.beta

    def check(self, optimizer: SAM) -> None:
        if self.beta < 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise NotImplementedError(
                "beta < 1 leaves tensors without a first gradient, which DistributedDataParallel waits for; use beta=1 with several ranks"
            )

    def new_state(self, optimizer: SAM) -> dict[str, Any]:
        return {"active": torch.ones(len(optimizer.members()), dtype=torch.bool)}

    def turns_of(self, optimizer: SAM, losses: Losses, size: int, ids: Tensor | None) -> Sequence[Turn]:
        step = _Step(self, optimizer, losses, size, self.selected(size))
        return (Turn(step.first, step.second, done=step.done),)

    def selected(self, size: int) -> int:
        """How many samples the second pass looks at, ties apart."""
        if self.gamma >= ALL:
            return size
        count = max(1, ceil(self.gamma * size)) if self.inclusive else int(self.gamma * size) - 1
        if count < 1:
            raise ValueError(
                f"gamma is {self.gamma} for batch_size {size}, which selects int(gamma batch_size) - 1 = {count} samples; expected at "
                "least one: raise gamma, or pass inclusive=True for ceil(gamma batch_size)"
            )
        return count

    def select(self, change: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Positions of the ``count`` samples whose loss grew most, and their weights, which sum to 1: equal, and 0 for those that tie with
        the first that is left out unless ``inclusive``; where all tie, none is left out. Fixed shapes."""
        values, index = change.topk(min(count + 1, len(change)))
        above = torch.ones_like(values[:count], dtype=torch.bool) if self.inclusive else values[:count] > values[-1]
        above = above | ~above.any()
        return index[:count], above.to(change.dtype) / above.sum()


@dataclass
class _Step:
    rule: Efficient
    optimizer: SAM
    losses: Losses
    size: int
    count: int
    clean: Tensor | None = None
    rewind: Callable[[], None] | None = None

    def first(self) -> Tensor:
        if self.count < self.size:  # losses will be subtracted: dropout is to drop the same in both forwards
            self.rewind = random_state(self.optimizer.device)
        found = losses_of(self.losses, self.size)[0]
        members, active = self.optimizer.members(), self.optimizer.batch_state["active"].tolist()  # on the host, where work is left out
        active += [True] * (len(members) - len(active))  # of groups that were added
        if inputs := [p for p, on in zip(members, active, strict=False) if on and p.requires_grad]:
            backward(found.mean(), inputs)
        self.clean = found.detach()
        return self.clean.mean()

    def second(self) -> None:
        if self.rewind is None:
            mean_backward(self.losses, self.size)
            return
        assert self.clean is not None
        self.rewind()
        with span("select"), torch.no_grad():
            change = losses_of(self.losses, self.size)[0] - self.clean
            index, weights = self.rule.select(change, self.count)
        self.optimizer.sample_indices = index
        backward((weights * losses_of(self.losses, self.size, index)[0]).sum())

    @spanned("draw")
    def done(self) -> None:
        if self.rule.beta < 1:
            self.optimizer.batch_state["active"] = torch.rand(len(self.optimizer.members())) < self.rule.beta
