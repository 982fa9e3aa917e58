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
from .batches import Losses, OfLosses, Turn, backward, losses_of, mean_backward, no_grad_losses, random_state

if TYPE_CHECKING:
    from .sam import SAM

ALL = 0.99  # from this gamma on the authors select nothing


@dataclass(frozen=True)
class Efficient(OfLosses):
    """The batch rule of ESAM; options as in ``optim.ESAM``. State: ``steps`` taken, since the first one moves all tensors."""

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

    @property
    def on_host(self) -> str:  # type: ignore[override]
        if self.beta < 1:
            return "with beta < 1 tosses its coins on the host"
        return "with gamma < 1 rewinds torch's generators, for dropout," if self.gamma < ALL else ""

    def check(self, optimizer: SAM) -> None:
        if self.beta < 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise NotImplementedError(
                "beta < 1 leaves tensors without a first gradient, which DistributedDataParallel waits for; use beta=1 with several ranks"
            )

    def new_state(self, optimizer: SAM) -> dict[str, Any]:
        return {"steps": 0}

    def turns_of(self, optimizer: SAM, losses: Losses, size: int, ids: Tensor | None) -> Sequence[Turn]:
        self.check(optimizer)
        step = _Step(self, optimizer, losses, size, self.selected(size) if movable(optimizer) else size)  # else no loss can grow
        return (Turn(step.first, step.second, done=step.done),)

    def selected(self, size: int) -> int:
        """How many samples the second pass looks at, ties apart; at least one."""
        if self.gamma >= ALL:
            return size
        return max(1, ceil(self.gamma * size - 1e-9) if self.inclusive else int(self.gamma * size) - 1)  # 1e-9: 0.07 * 100 is above 7

    @spanned("draw")
    def left_out(self, tensors: Sequence[Tensor], first_step: bool) -> set[int]:
        """Who takes no part in the ascent, by id: every tensor with probability 1 - beta, but not all; nobody in the first step."""
        if self.beta == 1 or first_step or not tensors:
            return set()
        coins = torch.rand(len(tensors), dtype=torch.float32, device="cpu")  # on the host: what is left out is not computed
        out = (coins >= self.beta) & (coins != coins.min())
        return {id(p) for p, gone in zip(tensors, out.tolist(), strict=True) if gone}

    def select(self, change: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Positions of the ``count`` samples whose loss grew most, and their weights, which sum to 1: equal, and 0 for those that tie with
        the first that is left out unless ``inclusive``, or unless all of them do. Fixed shapes."""
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
        left_out = self.rule.left_out(movable(self.optimizer), self.optimizer.batch_state["steps"] == 0)
        if self.count < self.size:  # losses will be subtracted: dropout is to drop the same in both, coins are not to come again
            self.rewind = random_state(self.optimizer.devices)
        found = losses_of(self.losses, self.size)[0]
        if left_out:
            refuse_reentrant(found)
            backward(found.mean(), [p for p in self.optimizer.members() if p.requires_grad and id(p) not in left_out])
        else:
            backward(found.mean())
        self.clean = found.detach()
        return self.clean.mean()

    def second(self) -> None:
        if self.rewind is None:
            mean_backward(self.losses, self.size)
            return
        assert self.clean is not None
        self.rewind()
        with span("select"):
            change = no_grad_losses(self.losses, self.size) - self.clean
            maximized = all(group.get("maximize", False) for group in self.optimizer.param_groups)  # the ascent is then one down
            index, weights = self.rule.select(-change if maximized else change, self.count)
        self.optimizer.sample_indices = index
        backward((weights * losses_of(self.losses, self.size, index)[0]).sum())

    def done(self) -> None:
        self.optimizer.batch_state["steps"] += 1


def movable(optimizer: SAM) -> list[Tensor]:
    """The parameters that an ascent can move. What a radius on the device is, is not looked at."""

    def may(rho: Any) -> bool:
        return (isinstance(rho, Tensor) and (rho.is_cuda or optimizer.capturable)) or bool(rho)

    return [p for group in optimizer.param_groups if may(group["rho"]) for p in group["params"] if p.requires_grad]


def refuse_reentrant(losses: Tensor) -> None:
    """A reentrant checkpoint hides its weights from a backward that is asked for some of them, and says nothing."""
    waiting, seen = [losses.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError("beta < 1 with a reentrant checkpoint, which hides its weights; pass use_reentrant=False to checkpoint()")
        waiting += [following for following, _ in node.next_functions]
