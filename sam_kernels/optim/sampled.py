"""AUSAM (arXiv 2406.08001): both passes look at a part S of the batch, drawn by how much the ascent changes each sample's loss.

    d_i = |l_i(w + e) - l_i(w)| for i in S,   m_i the mean of all d_i so far,
    S: int(alpha B) samples without replacement in proportion to (m_i - min m) / (max m - min m) (s_hi - s_min) + s_min

s_hi rises from s_min to s_max over the ramp. In the first pass over the data S is the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.draw import draw
from ..ops.lists import accumulator
from ..spans import span, spanned
from .batches import Losses, OfLosses, Turn, check_draws, is_count, mean_backward, random_state

if TYPE_CHECKING:
    from .sam import SAM

ODDS = 1e6  # beyond, fp32 tells a batch of the smallest from nothing


@dataclass(frozen=True)
class Sampled(OfLosses):
    """The batch rule of AUSAM; options as in ``optim.AUSAM``. State: ``sum`` and ``count`` ``[num_samples]`` of the changes of every
    sample's loss, from one each on; ``seen``, how many samples have been in a batch."""

    num_samples: int
    alpha: float = 0.5
    s_min: float = 0.1
    s_max: float = 0.5
    ramp: int = 30

    takes_ids = True
    on_host = "counts its passes over the data on the host"

    def __post_init__(self) -> None:
        if not is_count(self.num_samples):
            raise ValueError(f"num_samples is {self.num_samples!r}; expected an int >= 1, the number of samples in the training set")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha!r}; expected a number in (0, 1], the share of the samples in both passes")
        bounds = (self.s_min, self.s_max)
        if not all(isinstance(s, int | float) and isfinite(s) for s in bounds) or not 0 < self.s_min <= self.s_max <= ODDS * self.s_min:
            raise ValueError(
                f"s_min is {self.s_min!r} and s_max is {self.s_max!r}; expected odds of being drawn, 0 < s_min <= s_max, and not more "
                f"than {ODDS:g} to one"
            )
        if not is_count(self.ramp, least=0):
            raise ValueError(f"ramp is {self.ramp!r}; expected an int >= 0, passes over the data until the odds differ by s_max / s_min")

    def check(self, optimizer: SAM) -> None:
        check_draws(optimizer)

    def new_state(self, optimizer: SAM) -> dict[str, Any]:
        dtype = accumulator(optimizer.members()[0].dtype)
        total, count = torch.ones(2, self.num_samples, dtype=dtype, device=optimizer.device).unbind()
        return {"sum": total, "count": count, "seen": 0}

    def turns_of(self, optimizer: SAM, losses: Losses, size: int, ids: Tensor | None) -> Sequence[Turn]:
        checked, count = self._checked(ids, size), max(1, int(self.alpha * size))
        step = _Step(self, optimizer, losses, size, count, checked.to(optimizer.device, non_blocking=True))
        return (Turn(step.first, step.second, done=step.done),)

    def odds(self, means: Tensor, epoch: int) -> Tensor:
        """What the samples of a batch are drawn in proportion to, from the mean changes of their losses."""
        left = max(self.ramp - epoch, 0) / max(self.ramp, 1)
        high = self.s_max - left * (self.s_max - self.s_min) + 1e-9
        low, spread = means.min(), means.max() - means.min()
        return torch.where(spread > 0, (means - low) / spread, 0) * (high - self.s_min) + self.s_min

    def _checked(self, ids: Tensor | None, size: int) -> Tensor:
        hint = f"expected int64 [{size}], the position of every sample of the batch in the training set"
        if not isinstance(ids, Tensor):
            raise TypeError(f"sample_ids is {type(ids).__name__}; {hint}: step(losses, batch_size=len(y), sample_ids=ids)")
        if ids.dtype not in (torch.int64, torch.int32) or ids.shape != (size,):
            raise ValueError(f"sample_ids is {tuple(ids.shape)} {ids.dtype}; {hint}")
        outside, ordered = (ids < 0) | (ids >= self.num_samples), ids.sort().values
        repeated = ordered[1:] == ordered[:-1]
        if ids.is_cuda:  # no answer is waited for
            torch._assert_async(~(outside.any() | repeated.any()), f"sample_ids repeated, or not in [0, num_samples={self.num_samples})")
        elif outside.any():
            raise ValueError(
                f"sample_ids holds {ids[outside][0].item()}; expected positions in [0, {self.num_samples}): is num_samples the size of "
                "the training set?"
            )
        elif repeated.any():
            raise ValueError(f"sample_ids holds {ordered[1:][repeated][0].item()} twice; expected every sample of a batch once")
        return ids.long()


@dataclass
class _Step:
    rule: Sampled
    optimizer: SAM
    losses: Losses
    size: int
    count: int
    ids: Tensor
    before: Tensor | None = None
    after: Tensor | None = None
    rewind: Callable[[], None] = lambda: None

    @property
    def epoch(self) -> int:
        return int(self.optimizer.batch_state["seen"]) // self.rule.num_samples

    def first(self) -> Tensor:
        state = self.optimizer.batch_state
        for name in ("sum", "count"):  # the model may have been moved
            state[name] = state[name].to(self.optimizer.device)
        if self.epoch > 0 and self.count < self.size:
            with span("weights"):
                odds = self.rule.odds(state["sum"][self.ids] / state["count"][self.ids], self.epoch)
            with span("draw"):
                self.optimizer.sample_indices = draw(odds, self.count, "top_k", indices=True, backend=self.optimizer.backend).indices
        if self.rule.alpha < 1:  # losses will be subtracted: dropout is to drop the same in both passes
            self.rewind = random_state(self.optimizer.devices)
        self.before = mean_backward(self.losses, self.size, self.optimizer.sample_indices)
        return self.before.mean()

    def second(self) -> None:
        self.rewind()
        self.after = mean_backward(self.losses, self.size, self.optimizer.sample_indices)

    @spanned("table")
    def done(self) -> None:
        """The table: a change is added, in the first pass over the data in the place of the one that every sample starts with. A step
        that was skipped and a loss that is not finite leave no trace."""
        state, chosen = self.optimizer.batch_state, self.optimizer.sample_indices
        assert self.before is not None and self.after is not None
        used, change = self.ids if chosen is None else self.ids[chosen], (self.after - self.before).abs().to(state["sum"])
        counts = torch.isfinite(change) & self.optimizer.step_taken().to(change.device)
        if self.epoch == 0:
            state["sum"][used] = torch.where(counts, change, state["sum"][used])
        else:
            state["sum"][used] += torch.where(counts, change, 0)
            state["count"][used] += counts.to(state["count"])
        state["seen"] += self.size
