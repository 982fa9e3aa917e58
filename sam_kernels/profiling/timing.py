"""Interleaved timing: every round measures every entry once, in a rotated order, so that noise and drift hit all of them alike."""

from collections.abc import Callable, Collection, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Times = tuple[float, ...]
SECONDS, LEAST, MOST, WARMUP = 4.0, 5, 60, 1
SLOW, FEW = 5.0, 2  # entries that take so many times as long as the first are timed in so many rounds only


class Rounds:
    """Calls every entry once per round. ``times[name][round]`` is what the entry returned: a tuple of seconds."""

    def __init__(self, entries: dict[str, Callable[[], Times]]) -> None:
        self.entries = entries
        self.times: dict[str, list[Times]] = {name: [] for name in entries}
        self.count = 0

    def round(self) -> None:
        names = list(self.entries)
        start = self.count % len(names)
        for name in names[start:] + names[:start]:
            self.times[name].append(self.entries[name]())
        self.count += 1

    def run(self, rounds: int, discard: int = 0) -> "Rounds":
        """Rounds of which the first ``discard`` are never among the times, whatever ends them."""
        kept, self.times = self.times, {name: [] for name in self.times}
        try:
            for _ in range(discard):
                self.round()
        finally:
            self.times = kept
        for _ in range(rounds):
            self.round()
        return self

    def discard(self, rounds: int) -> "Rounds":
        """Forget the first rounds."""
        for values in self.times.values():
            del values[:rounds]
        return self

    def complete(self) -> "Rounds":
        """Forget what was measured of a round that did not come to its end."""
        least = min(map(len, self.times.values()), default=0)
        for values in self.times.values():
            del values[least:]
        return self

    def totals(self, name: str) -> list[float]:
        return [sum(times) for times in self.times[name]]


def timed_rounds(entries: dict[str, Callable[[], Times]], may_stop: Collection[str] = ()) -> Rounds:
    """Slow entries that may stop early do: their rounds are the first ones."""
    return fill(Rounds(entries), SECONDS, MOST, may_stop)


def fill(rounds: Rounds, seconds: float, most: int, may_stop: Collection[str] = ()) -> Rounds:
    """As many rounds as fit into ``seconds``, at least ``LEAST``."""
    entries = rounds.entries
    rounds.run(FEW, discard=WARMUP)
    shortest = {name: min(rounds.totals(name)) for name in entries}
    base = shortest[next(iter(entries))]
    rounds.entries = {name: timed for name, timed in entries.items() if name not in may_stop or shortest[name] < SLOW * base}
    count = seconds / sum(shortest[name] for name in rounds.entries)
    return rounds.run(int(min(max(count, LEAST), most)) - FEW)


def timed(call: Callable[[], Any], times: int = 1) -> Callable[[], Times]:
    """An entry: seconds of one call, the mean of so many in a row."""

    def entry() -> Times:
        start = perf_counter()
        for _ in range(times):
            call()
        return ((perf_counter() - start) / times,)

    return entry


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, 20th and 80th percentile, and the least."""
    cuts = quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return {"median": scale * median(values), "p20": scale * cuts[0], "p80": scale * cuts[3], "best": scale * min(values)}


def ratios(values: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio round by round; no "best", which would be a ratio of accidents."""
    result = spread([x / y for x, y in zip(values, to, strict=True)])
    del result["best"]
    return result
