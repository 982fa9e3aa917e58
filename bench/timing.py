"""Interleaved timing: every round measures every entry once, in a rotated order, so that noise and drift hit all of them alike."""

from collections.abc import Callable, Sequence
from statistics import median, quantiles

Times = tuple[float, ...]


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
        for _ in range(discard + rounds):
            self.round()
        return self.discard(discard)

    def discard(self, rounds: int) -> "Rounds":
        """Forget the first rounds."""
        for values in self.times.values():
            del values[:rounds]
        return self

    def totals(self, name: str) -> list[float]:
        return [sum(times) for times in self.times[name]]


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, 20th and 80th percentile, and the least."""
    cuts = quantiles(values, n=5, method="inclusive") if len(values) > 1 else [values[0]] * 4
    return {"median": scale * median(values), "p20": scale * cuts[0], "p80": scale * cuts[3], "best": scale * min(values)}


def ratios(values: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio round by round; no "best", which would be a ratio of accidents."""
    result = spread([x / y for x, y in zip(values, to, strict=True)])
    del result["best"]
    return result
