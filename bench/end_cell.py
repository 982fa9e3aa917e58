"""One network with all methods: match, look at each alone, then time them in the same interleaved rounds.

Alone: ``peak_bytes``, the peak of the memory while it takes a step, with weights, batch and state (of a captured step with its capture: a
graph takes no memory when it is replayed, but holds its pool for as long as it lives, ``reserved_bytes``), and ``phases_ms`` of its step
between events of the stream, a phase's own without those inside of it; where the host is the slower one, a phase takes as long as it does.
The optimizer's are ``ascend`` and ``descend``. A graph has no such events: null. ``host_ms``: of one step, until it is enqueued.
In rounds: seconds of the host for some steps in a row and the wait for the device behind the last, over their number.
"""

import gc
import math
import sys
import traceback
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from end_match import Matcher
from end_methods import Captured
from end_trial import Trial, Work

from sam_kernels.profiling.recorder import Recorder, ordered
from sam_kernels.profiling.timing import Rounds, Times, ratios, spread

WARMUP, RECORDED = 3, 5  # steps
LEAST, MOST = 3, 40  # rounds
IN_A_ROW, MOST_IN_A_ROW = 0.05, 20  # seconds that an entry should last, and steps in it at most
OPTIMIZER = ("ascend", "descend")
Row = dict[str, Any]


class Cell:
    """``rows``: method -> what is known of it; ``failed`` or ``missing`` say why there is no more. No method is begun after ``deadline``,
    and no round after ``until`` once there are ``LEAST``."""

    def __init__(self, work: Work, kinds: dict[str, type[Trial]], bases: dict[str, str], until: float, deadline: float) -> None:
        self.work, self.kinds, self.bases, self.until, self.deadline = work, kinds, bases, until, deadline
        self.rows: dict[str, Row] = {}

    def measure(self) -> None:
        """Everything; after an exception ``rows`` holds what there is."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            self._each_alone(Matcher(self.work))
            trials: dict[str, Trial] = {}
            for name in self._usable():
                self._try(name, lambda name=name: trials.update({name: warm(self.kinds[name], self.work)}))
            forget()
            self._rounds(trials)

    def _each_alone(self, matcher: Matcher) -> None:
        for name, kind in self.kinds.items():
            if why := kind.missing(self.work.device) or ("left out: the time was over" if perf_counter() > self.deadline else None):
                self.rows[name] = {"missing": why}
            else:
                self._try(name, lambda name=name, kind=kind: {"match": matcher.check(name, kind)} | alone(kind, self.work))
            forget()

    def _usable(self) -> list[str]:
        return [name for name, row in self.rows.items() if not row.keys() & {"failed", "missing"}]

    def _try(self, name: str, what: Callable[[], Any]) -> Any:
        """A method that fails is no reason not to measure the others, whatever a driver or a library raises."""
        row = self.rows.setdefault(name, {})
        try:
            found = what()
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            row["traceback"] = traceback.format_exc(limit=-8)
            print(f"{self.work.case.label}, {name}: {row['failed']}", file=sys.stderr, flush=True)
        else:
            row |= found or {}

    def _rounds(self, trials: dict[str, Trial]) -> None:
        """As many as there is time for. Whoever fails now is not called again."""
        names = self._usable()
        if not names:
            return
        shortest = min(self.rows[name]["step_ms"] for name in names) / 1e3
        times = max(1, min(MOST_IN_A_ROW, round(IN_A_ROW / shortest)))
        rounds = Rounds({name: partial(self._entry, name, trials, times) for name in names})
        try:
            while rounds.count <= LEAST or (rounds.count <= MOST and perf_counter() < self.until):
                rounds.round()
        finally:
            rounds.complete().discard(1)
            self._summed_up(rounds, times)

    def _entry(self, name: str, trials: dict[str, Trial], times: int) -> Times:
        if name not in trials:
            return (math.inf,)
        seconds: list[float] = []
        self._try(name, lambda: seconds.append(in_a_row(trials[name], self.work, times)))
        if not seconds:
            del trials[name]
            forget()
        return (seconds[0] if seconds else math.inf,)

    def _summed_up(self, rounds: Rounds, times: int) -> None:
        for name in self._usable():
            if not (totals := rounds.totals(name)):
                continue
            row = self.rows[name]
            row |= {"ms": spread(totals, 1e3), "rounds": len(totals), "steps_in_a_row": times}
            row["samples_per_s"] = len(self.work.x) * 1e3 / row["ms"]["median"]
            row |= {key: ratios(totals, rounds.totals(base)) for key, base in self.bases.items() if base in self._usable()}


def in_a_row(trial: Trial, work: Work, times: int) -> float:
    """Seconds of a step."""
    start = perf_counter()
    for _ in range(times):
        loss = trial(work.x, work.y)
    finite = bool(torch.isfinite(loss))  # waits for the device
    seconds = perf_counter() - start
    if not finite:
        raise ArithmeticError("the loss is no longer finite, and steps that are skipped are not to be timed")
    return seconds / times


def warm(kind: type[Trial], work: Work) -> Trial:
    trial = kind(work)
    for _ in range(WARMUP):
        trial(work.x, work.y)
    return trial


def alone(kind: type[Trial], work: Work) -> Row:
    cuda, captured = work.device == "cuda", issubclass(kind, Captured)
    forget()  # a graph that was matched is held by itself
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trial, recorder = warm(kind, work), Recorder(work.device)
    if cuda and not captured:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(RECORDED):
        with recorder.step():
            trial(work.x, work.y)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    host = [until_enqueued(trial, work) for _ in range(RECORDED)]
    forget()
    steps = recorder.steps
    phases = {
        "/".join(path): spread([step.phases[path].seconds if path in step.phases else 0.0 for step in steps], 1e3)["median"]
        for path in ordered(steps)
    }
    return {
        "step_ms": spread([step.total.seconds for step in steps], 1e3)["median"],
        "host_ms": spread(host, 1e3),
        "phases_ms": None if captured else phases,
        "optimizer_ms": None if captured else sum(phases.get(name, 0.0) for name in OPTIMIZER),
        "peak_bytes": peak,
        "reserved_bytes": torch.cuda.memory_reserved() if cuda else None,
    }


def until_enqueued(trial: Trial, work: Work) -> float:
    """Seconds that the host needs for a step while the device has nothing else to do."""
    if work.device == "cuda":
        torch.cuda.synchronize()
    start = perf_counter()
    trial(work.x, work.y)
    return perf_counter() - start


def forget() -> None:
    """Give back the device memory that nobody holds any more."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
