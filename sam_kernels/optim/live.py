"""Options of the parameter groups as a captured step sees them: lr and rho live, all others as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops.lists import accumulator

if TYPE_CHECKING:
    from .sam import SAM

LIVE = ("lr", "rho")


@dataclass
class _Live:
    row: int
    key: str
    tensor: Tensor  # what the graph reads
    value: float | None  # what we have filled it with; None: it is the user's own
    version: int = 0  # of the tensor when the groups got it

    def number(self, now: Any) -> float:
        what = f"{self.key} of group {self.row} is {now!r}"
        if isinstance(now, Tensor) and now.is_cuda:
            raise RuntimeError(f"{what}, which was a number when the step was captured; set a number, or capture again")
        try:
            value = float("nan") if isinstance(now, str) else float(now)
        except (TypeError, ValueError, RuntimeError):
            value = float("nan")
        if not isfinite(value) or (self.key == "rho" and value < 0):
            raise ValueError(f"{what}; expected a finite number{' >= 0' if self.key == 'rho' else ''}")
        return value


class LiveOptions:
    """``lr`` and ``rho`` of every group in tensors on the device, filled from the groups by ``refresh``; one that is a tensor there already
    is read where it is."""

    def __init__(self, optimizer: SAM) -> None:
        self._optimizer = optimizer
        wide = any(p.dtype == torch.float64 for p in optimizer.members())
        dtype = accumulator(torch.float64 if wide else torch.float32)
        self._live: list[_Live] = []
        for row, group in enumerate(optimizer.param_groups):
            for key in LIVE:
                given = group[key]
                if isinstance(given, Tensor) and given.device == optimizer.device and (given.is_cuda or optimizer.capturable):
                    self._live.append(_Live(row, key, given, None))
                else:
                    value = float(given)
                    self._live.append(_Live(row, key, torch.full((), value, dtype=dtype, device=optimizer.device), value))
        self._fixed = self._others()

    def _others(self) -> list[dict[str, Any]]:
        read = set(self._optimizer.defaults) - set(LIVE)  # a scheduler's initial_lr, say, is none of the step's
        return [{key: x for key, x in group.items() if key in read} for group in self._optimizer.param_groups]

    @contextmanager
    def in_groups(self) -> Iterator[None]:
        """Inside, the groups hold the tensors."""
        groups, capturable = self._optimizer.param_groups, self._optimizer.capturable
        given = [groups[x.row][x.key] for x in self._live]
        self._optimizer.capturable = True
        for x in self._live:
            groups[x.row][x.key], x.version = x.tensor, x.tensor._version
        try:
            yield
        finally:
            self._optimizer.capturable = capturable
            for x, value in zip(self._live, given, strict=True):
                groups[x.row][x.key] = value

    def check_untouched(self) -> None:
        """Inside of ``in_groups``: raise where the step has written an option that a graph would only read."""
        for x in self._live:
            now = self._optimizer.param_groups[x.row][x.key]
            if now is not x.tensor or (x.value is not None and now._version != x.version):
                raise ValueError(
                    f"{x.key} of group {x.row} is changed inside of step(), which a graph would not repeat; call the scheduler behind it"
                )

    def refresh(self) -> None:
        """Bring the groups' present numbers to the device, those that have changed. Raises, before it writes any, where an option has
        changed that the graph does not follow."""
        groups = self._optimizer.param_groups
        for row, (before, now) in enumerate(zip(self._fixed, groups, strict=True)):
            for key, value in before.items():
                if now.get(key) is not value and now.get(key) != value:
                    raise RuntimeError(
                        f"{key} of group {row} is {now.get(key)!r}, and was {value!r} when the step was captured; a graph follows lr and "
                        "rho only: capture again"
                    )
        changed: list[tuple[_Live, float]] = []
        for x in self._live:
            now = groups[x.row][x.key]
            if x.value is None:
                if now is not x.tensor:
                    raise RuntimeError(
                        f"{x.key} of group {x.row} is another object than the tensor that the graph reads; write into that one "
                        "(fill_), or capture again"
                    )
            elif (number := x.number(now)) != x.value:
                changed.append((x, number))
        for x, number in changed:
            x.tensor.fill_(number)
            x.value = number
