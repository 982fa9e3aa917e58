"""One cell of the per-sample benchmark: a case with all providers. Match, count, then time in interleaved rounds. A peer that does not
import or does not take a layer is left out with its reason; ours may not fail."""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from sample_cases import CASES
from sample_counts import operations, peak_bytes
from sample_match import assert_match, forget
from sample_providers import PEERS, PLAIN, PROVIDERS, Ours, SampleProvider
from sample_run import Run

from sam_kernels.profiling.timing import Times, spread, timed_rounds


def entry(run: Run) -> Callable[[], Times]:
    """Seconds of forward, backward and norms, and of the weighted gradient."""

    def timed() -> Times:
        run.clear()
        start = perf_counter()
        run.norms()
        middle = end = perf_counter()
        if run.finishes:
            run.finish()
            end = perf_counter()
        run.clear()
        return (middle - start, end - middle) if run.finishes else (middle - start,)

    return timed


def prepared(provider: SampleProvider, name: str, backend: str) -> tuple[Run | None, dict[str, Any]]:
    """A run that matched, and what is counted of it; without a run, why not."""
    info: dict[str, Any] = {"ours": provider.is_ours}
    try:
        run = provider.run(CASES[name])
        if isinstance(run, Ours):
            run.backend = backend
        assert_match(provider.name, name, run)
        peak, peak_weighted = peak_bytes(run)
        info |= {"operations": operations(run), "peak_bytes": peak, "weighted_peak_bytes": peak_weighted}
        run.clear()
    except Exception as error:
        if provider.is_ours or provider.name == PLAIN:
            raise
        info["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{name}, {provider.name}: {info['failed']}", file=sys.stderr)
        return None, info
    return run, info


def measure(name: str, backend: str) -> dict[str, Any]:
    info, runs = {}, {}
    for provider in PROVIDERS:
        run, info[provider.name] = prepared(provider, name, backend)
        if run is not None:
            runs[provider.name] = run
    forget()
    rounds = timed_rounds({label: entry(run) for label, run in runs.items()}, may_stop=PEERS)
    plain = [t[0] for t in rounds.times[PLAIN]]
    for label, run in runs.items():
        info[label] |= times_of([t[0] for t in rounds.times[label]], plain, "")
        if run.finishes:
            info[label] |= times_of(rounds.totals(label), plain, "weighted_")
    return {"samples": name, "label": CASES[name].label, "backend": backend, "rounds": len(plain), "providers": info}


def times_of(times: list[float], plain: list[float], what: str) -> dict[str, Any]:
    extra = spread([t / base - 1 for t, base in zip(times, plain, strict=False)])  # of a slow one there are fewer
    del extra["best"]
    return {f"{what}ms": spread(times, 1e3), f"{what}extra": extra}
