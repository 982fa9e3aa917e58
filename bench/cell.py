"""One cell of the CPU benchmark: a workload and a method with all providers. Match, count memory, then time in interleaved rounds.

Models so large that not all providers fit into memory side by side are timed in several batches, ours in each of them; ratios are
then taken within a batch.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter
from typing import Any

import torch
from match import assert_match, forget, gradients, parameters
from memory import extra_bytes, most_allowed
from providers import PEERS, Provider

from sam_kernels.profiling.methods import STATE, Method, bytes_per_parameter
from sam_kernels.profiling.timing import Rounds, Times, ratios, spread
from sam_kernels.profiling.workloads import HOST_WORKLOADS, WORKLOADS, elements

SECONDS, LEAST, MOST, WARMUP = 3.0, 7, 300, 2  # per batch: time to spend in rounds, and how many rounds at least and at most
CALIBRATION = 2  # rounds that choose between the variants of a provider
MEMORY = 10e9  # bytes, for the entries that are timed side by side
COPY = 1 << 30  # bytes moved by a copy, at most

Entry = Callable[[], Times]


def entry(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> Entry:
    """A function that takes one timed step of a provider with its own weights, state and gradients. Setting .grad is not timed."""
    step = provider.build(parameters(workload, method, "cpu"), method, variant)
    g, h = gradients(workload, method, 0, "cpu")

    def timed() -> Times:
        step.load(g)
        start = perf_counter()
        step.first()
        first = perf_counter() - start
        step.load(h)
        start = perf_counter()
        step.second()
        return first, perf_counter() - start

    return timed


def copy_entry(nbytes: int) -> Entry:
    source, target = torch.ones(max(nbytes // 8, 1)), torch.empty(max(nbytes // 8, 1))

    def timed() -> Times:
        start = perf_counter()
        target.copy_(source)
        return (perf_counter() - start,)

    return timed


def side_by_side(workload: str, method: Method) -> int:
    """How many entries fit into memory at once: weights, two gradients, stash, state, and as much as a stash for temporaries."""
    return max(2, int(MEMORY / (elements(WORKLOADS[workload]) * 4 * (5 + len(STATE[method.base])))))


def chunks(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """As few and as equal as possible."""
    count = -(-len(items) // most)
    return [items[k::count] for k in range(count)]


@cache
def fastest(provider: Provider, workload: str, method: Method) -> dict[str, Any]:
    """The fastest variant of a provider here, from a few interleaved rounds; for large models, on ResNet-50."""
    if side_by_side(workload, method) < 1 + len(PEERS):
        return fastest(provider, "resnet50", method)
    variants = provider.usable(method, "cpu")
    if len(variants) == 1:
        return variants[0]
    rounds = Rounds({str(k): entry(provider, workload, method, v) for k, v in enumerate(variants)})
    rounds.run(CALIBRATION, discard=1)
    return variants[min(range(len(variants)), key=lambda k: min(rounds.totals(str(k))))]


def timed_rounds(workload: str, method: Method, chosen: dict[Provider, dict[str, Any]], copied: int) -> Rounds:
    rounds = Rounds({"copy": copy_entry(copied), **{p.name: entry(p, workload, method, variant) for p, variant in chosen.items()}})
    start = perf_counter()
    rounds.run(WARMUP)
    count = SECONDS * WARMUP / (perf_counter() - start)
    return rounds.run(int(min(max(count, LEAST), MOST))).discard(WARMUP)


def extra_memory(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> dict[str, int]:
    peak, held = extra_bytes(provider, workload, method, variant)
    allowed = most_allowed(workload, method)
    if provider.is_ours and workload not in HOST_WORKLOADS:
        from sam_kernels.optim.bases import FUSED, NAMES

        most = held if variant["backend"] == "reference" or NAMES[method.base] not in FUSED else peak
        assert most <= allowed, (
            f"{provider.name}, {workload}, {method}: {most} bytes beside weights and gradients, at most {allowed} expected"
        )
    return {"peak_bytes": peak, "held_bytes": held}


def measure(workload: str, method: Method, own: Provider) -> dict[str, Any]:
    """What the report needs to know about a cell."""
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter is not to be timed"
    providers = [own, *(p for p in PEERS if p.takes(method))]
    chosen = {p: fastest(p, workload, method) for p in providers}
    for p, variant in chosen.items():
        assert_match(p, workload, method, variant)
    forget()
    memory = {p: extra_memory(p, workload, method, variant) for p, variant in chosen.items()}
    count = elements(WORKLOADS[workload])
    nbytes = {p: count * bytes_per_parameter(method, p.state_dtype(method).itemsize) for p in providers}
    copied = min(nbytes[own], COPY)
    info: dict[str, Any] = {p.name: {"ours": p.is_ours, "variant": chosen[p], "bytes": nbytes[p], **memory[p]} for p in providers}
    counts, copy_rates, base_times = [], [], []
    for some in chunks(providers[1:], side_by_side(workload, method) - 1):
        rounds = timed_rounds(workload, method, {p: chosen[p] for p in (own, *some)}, copied)
        copy, base = [copied / t for t in rounds.totals("copy")], rounds.totals(own.name)
        for p in some:
            info[p.name] |= times_of(rounds.times[p.name], nbytes[p], copy) | {"ratio_to_ours": ratios(rounds.totals(p.name), base)}
        counts.append(len(base))
        copy_rates += copy
        base_times += rounds.times[own.name]
        del rounds
    info[own.name] |= times_of(base_times, nbytes[own], copy_rates) | {"ratio_to_ours": ratios([1.0], [1.0])}
    return {
        "workload": workload,
        "method": str(method),
        "tensors": len(WORKLOADS[workload]),
        "parameters": count,
        "bytes": nbytes[own],
        "rounds": counts,
        "copy_gb_per_s": spread(copy_rates, 1e-9),
        "providers": info,
    }


def times_of(times: Sequence[Times], nbytes: int, copy_rates: Sequence[float]) -> dict[str, Any]:
    totals = [sum(t) for t in times]
    return {
        "ms": spread(totals, 1e3),
        "first_ms": spread([t[0] for t in times], 1e3),
        "second_ms": spread([t[1] for t in times], 1e3),
        "gb_per_s": nbytes / spread(totals)["median"] / 1e9,
        "share_of_copy": ratios([nbytes / t for t in totals], copy_rates),
    }
