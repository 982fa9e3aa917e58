"""Listeners of spans: how long phases take, and their names for NVIDIA's tools and for torch's profiler.

A recorder's time of a phase is its own: that of the phases inside of it is theirs. So all of them add up to the step, with what lies
outside of any phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import torch

from ..spans import Listener, listen

Path = tuple[str, ...]  # names from the outermost phase to this one
OTHER: Path = ("other",)  # what lies outside of any phase


class Mark(NamedTuple):
    """A point in time: on the host, and in the stream of a CUDA device."""

    host: float
    event: Any = None

    def until(self, end: Mark) -> tuple[float, float]:
        """Seconds, and seconds of the host alone; of events once they have happened."""
        host = end.host - self.host
        return (host if self.event is None else self.event.elapsed_time(end.event) / 1e3), host


@dataclass
class Phase:
    """One phase in one step, all of its calls together."""

    seconds: float = 0.0
    host: float = 0.0
    calls: int = 0

    def add(self, seconds: float, host: float, calls: int = 0) -> None:
        self.seconds += seconds
        self.host += host
        self.calls += calls


@dataclass
class Step:
    """``total`` is the sum of ``phases``, which come in the order in which they began."""

    total: Phase
    phases: dict[Path, Phase] = field(default_factory=dict)


class Recorder:
    """Times of the phases of every step, by the clock on the CPU and by events on a CUDA device: recorded as the step goes, waited for at
    its end alone. For the spans of one thread, and of those that it waits for.

    ::

        recorder = Recorder("cpu")
        for x, y in data:
            with recorder.step():
                optimizer.step(closure)
        recorder.steps[-1].phases["ascend",].seconds

    A step that ends by an exception is not recorded.
    """

    def __init__(self, device: str) -> None:
        self.steps: list[Step] = []
        self._cuda = device == "cuda"
        self._path: list[str] = []
        self._begun: list[int] = []  # indices of open phases in _found
        self._found: list[tuple[Path, Mark, Mark | None]] = []

    @contextmanager
    def step(self, *others: Listener) -> Iterator[None]:
        """One step; ``others`` listen as well."""
        self._path, self._begun, self._found = [], [], []
        if self._cuda:
            torch.cuda.synchronize()
        with listen(self, *others):
            begin = self._now()
            yield
            end = self._now()
        if self._cuda:
            torch.cuda.synchronize()
        self.steps.append(self._settled(begin, end))

    def enter(self, name: str) -> None:
        self._path.append(name)
        self._begun.append(len(self._found))
        self._found.append((tuple(self._path), self._now(), None))

    def leave(self, name: str) -> None:
        path, begin, _ = self._found[self._begun[-1]]
        self._found[self._begun.pop()] = (path, begin, self._now())
        self._path.pop()

    def _now(self) -> Mark:
        if not self._cuda:
            return Mark(perf_counter())
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return Mark(perf_counter(), event)

    def _settled(self, begin: Mark, end: Mark) -> Step:
        total = begin.until(end)
        step = Step(Phase(*total, 1))
        rest = Phase(*total)
        for path, start, stop in self._found:
            if stop is None:
                raise RuntimeError(f"span {path[-1]!r} was entered in this step and not left; expected: with span({path[-1]!r}): ...")
            seconds, host = start.until(stop)
            step.phases.setdefault(path, Phase()).add(seconds, host, calls=1)
            outer = step.phases[path[:-1]] if len(path) > 1 else rest
            outer.add(-seconds, -host)
        step.phases[OTHER] = Phase(rest.seconds, rest.host, 1)
        return step


class Nvtx:
    """Phases as NVTX ranges of the thread that enters them, for Nsight: a backward launches its kernels from a thread of autograd's, so
    that ``--nvtx-include backward/`` finds none of them."""

    def enter(self, name: str) -> None:
        torch.cuda.nvtx.range_push(name)

    def leave(self, name: str) -> None:
        torch.cuda.nvtx.range_pop()


class Labels:
    """Phases as labels of torch's profiler."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    def enter(self, name: str) -> None:
        label = torch.profiler.record_function(name)
        label.__enter__()
        self._open.append(label)

    def leave(self, name: str) -> None:
        self._open.pop().__exit__(None, None, None)


def ordered(steps: Sequence[Step]) -> list[Path]:
    """All phases of all steps, each behind the one that it lies in; ``OTHER`` last."""
    children: dict[Path, list[Path]] = {}
    for step in steps:
        for path in step.phases:
            among = children.setdefault(path[:-1], [])
            if path not in among:
                among.append(path)

    def below(path: Path) -> list[Path]:
        return [x for child in children.get(path, ()) for x in (child, *below(child))]

    return [path for path in below(()) if path != OTHER] + [OTHER]
