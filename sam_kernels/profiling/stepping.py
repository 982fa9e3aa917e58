"""Steps of several methods measured in turns; what ends one of them leaves what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..spans import Listener, listen
from .recorder import Labels, Recorder
from .recorder import Step as Recorded
from .report import progress
from .training import Step

TRACED = 2  # steps of each method


@dataclass
class Found:
    """Steps by method, in the order in which they were asked for; ``failed``: what ended those of a method before their number;
    ``broken``: what could not be done behind them."""

    steps: dict[str, list[Recorded]] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    interrupted: bool = False

    def then(self, what: str, call: Callable[[], None]) -> None:
        """What may still be done, but for a Ctrl-C now or earlier, without losing what there is."""
        if not self.interrupted:
            try:
                call()
            except KeyboardInterrupt:
                self.interrupted = True
            except Exception as error:
                self.broken[what] = error


def in_turns(steps: Mapping[str, Step], device: str, warmup: int, count: int, others: Sequence[Listener] = ()) -> Found:
    """Every round in another order. An update that norms or losses which are no numbers have forbidden is cheaper than one: an error."""
    methods = list(steps)
    found = Found({method: [] for method in methods})

    def all_rounds() -> None:
        with progress(warmup + count) as tick:
            for turn in range(warmup + count):
                tick(f"step {turn - warmup + 1}" if turn >= warmup else "warm-up")
                start = turn % len(methods)
                for method in methods[start:] + methods[:start]:
                    if method not in found.failed:
                        one(method, turn >= warmup)

    def one(method: str, counts: bool) -> None:
        recorder = Recorder(device)
        try:
            with recorder.step(*others):
                loss = steps[method]()
            steps[method].require_update(loss)
        except Exception as error:
            found.failed[method] = error
        else:
            found.steps[method] += recorder.steps if counts else []

    found.then("steps", all_rounds)
    return found


def trace(steps: Mapping[str, Step], path: Path) -> None:
    """A Chrome trace of further steps, with the phases as labels."""
    with torch.profiler.profile() as profile:
        for method, step in steps.items():
            for _ in range(TRACED):
                with torch.profiler.record_function(method), listen(Labels()):
                    step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
