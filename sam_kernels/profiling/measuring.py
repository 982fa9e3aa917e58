"""One measurement of a benchmark: match with the reference, then time in interleaved rounds, beside a copy of as many bytes."""

import sys
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from .cases import Case
from .device import Phases, copy_phases, entry, launches
from .match import full_precision
from .report import Result
from .timing import Rounds, Times, fill, ratios, spread

COPY, SMALLEST = 1 << 30, 1 << 12  # bytes moved by a copy, at most and at least
SHORT = 1e-4  # seconds; shorter calls are timed several in a row
MOST = 500  # rounds


def copied(case: Case) -> int:
    return min(max(case.moved, SMALLEST), COPY)


def measure(case: Case, backends: Sequence[str], device: str, seconds: float) -> tuple[Result, bool]:
    """What is known of a case after a match and rounds, and whether Ctrl-C ended them. A backend that fails says so under its name, all of
    them where the rounds fail; those that were complete by then are kept."""
    result: Result = {"what": case.what, "on": case.on, "dtype": case.dtype_name, "device": device, "bytes": case.moved, **case.counts}
    info: dict[str, Result] = {backend: {} for backend in backends}
    result |= {"backends": info, "interrupted": False, "copy_allocates": case.allocates}
    good: list[str] = []
    rounds = Rounds({})
    try:
        with full_precision():
            good = _successes(case, info, backends, lambda backend: result.update(matched=case.match(backend, device)))
        calls = case.calls(good, device) if good else {}
        good = _successes(case, info, good, lambda backend: once(calls[backend], device))  # a match looks at a part of what is large
        if good:
            if device == "cuda":
                for backend in good:
                    info[backend] |= _counted(calls[backend])
            calls = {"copy": copy_phases(copied(case), device, case.allocates), **{backend: calls[backend] for backend in good}}
            rounds = Rounds({name: entry(phases, device, in_a_row(phases, device)) for name, phases in calls.items()})
            fill(rounds, seconds, MOST)
    except KeyboardInterrupt:
        result["interrupted"] = True
    except Exception as error:  # of a driver, an allocator, a compiler: other cases go on
        for backend in good or backends:
            info[backend].setdefault("failed", _said(error))
        print(f"{case.name}: {_said(error)}", file=sys.stderr)
    if rounds.complete().times.get("copy"):
        describe(result, rounds, good, copied(case), device)
    return result, result["interrupted"]


def _successes(case: Case, info: dict[str, Result], some: Sequence[str], attempt: Callable[[str], None]) -> list[str]:
    """Those with which it raises nothing: a compiler or a driver may raise anything."""
    for backend in some:
        try:
            attempt(backend)
        except Exception as error:
            info[backend]["failed"] = _said(error)
            print(f"{case.name}, {backend}: {info[backend]['failed']}", file=sys.stderr)
    return [backend for backend in some if "failed" not in info[backend]]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"


def _counted(phases: Phases) -> Result:
    found = launches(phases)
    return {} if found is None else {"launches": found}


def once(phases: Phases, device: str) -> None:
    for load, phase in phases:
        load()
        phase()
    if device == "cuda":
        torch.cuda.synchronize()


def in_a_row(phases: Phases, device: str) -> int:
    """How many calls make a time that the clock can tell; also their warm-up."""
    if device == "cuda":
        return 1
    timed = entry(phases, device)
    timed()
    begun = perf_counter()
    once = sum(timed())
    return max(1, min(1000, int(SHORT / max(once, perf_counter() - begun, 1e-7))))


def describe(result: Result, rounds: Rounds, backends: Sequence[str], nbytes: int, device: str) -> None:
    def column(name: str, third: int) -> list[float]:
        """Totals over phases: on CUDA an entry holds host, wall and device times."""

        def total(times: Times) -> float:
            size = len(times) // 3
            return sum(times[third * size : (third + 1) * size])

        return [total(times) if device == "cuda" else sum(times) for times in rounds.times[name]]

    copy = [nbytes / t for t in column("copy", 2)]
    result |= {"rounds": len(copy), "copy_bytes": nbytes, "copy_gb_per_s": spread(copy, 1e-9)}
    for backend in backends:
        counted, moved = column(backend, 2), result["bytes"]
        result["backends"][backend] |= {
            "ms": spread(column(backend, 1), 1e3),
            **({"device_ms": spread(counted, 1e3), "host_ms": spread(column(backend, 0), 1e3)} if device == "cuda" else {}),
            "gb_per_s": spread([moved / t for t in counted], 1e-9),
            "share_of_copy": ratios([moved / t for t in counted], copy),
            "over_first": ratios(column(backend, 2), column(backends[0], 2)),
        }
