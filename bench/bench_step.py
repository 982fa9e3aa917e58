"""Time of one optimizer step (both phases, no model) on CPU: ours against the peers, matched first, interleaved in one run.

    python -m pytest bench --benchmark-json=bench/.results/cpu.json && python bench/report.py bench/.results/cpu.json

pytest-benchmark times whole rounds, which only says how long the benchmark took; what counts is in ``extra_info``, per provider.
Setting ``.grad`` is not timed. A step's GB/s is the bytes it *has to* move (workloads.py) over its time, whoever takes it, and its
share is that rate over the rate of one torch copy that moves the same number of bytes in the same round.
"""

import gc
import os
from collections.abc import Callable
from time import perf_counter

import pytest
import torch
from match import assert_match, forget, gradients, parameters
from providers import METHODS, PEERS, Provider, Step, ours
from timing import Rounds, Times, ratios, spread
from workloads import BYTES_PER_PARAMETER, WORKLOADS, elements

OURS = ours("cpp")
SECONDS, LEAST, MOST, WARMUP = 8.0, 12, 300, 3  # per cell: time to spend in rounds, and how many rounds at least and at most
CALIBRATION = 3  # rounds that choose between the variants of a provider


def entry(provider: Provider, workload: str, method: str, variant: dict) -> tuple[Step, Callable[[], Times]]:
    """A provider with its own weights, state and gradients, and the function that takes one timed step of it."""
    step = provider.build(parameters(workload, "cpu"), method, variant)
    g, h = gradients(workload, 0, "cpu")

    def timed() -> Times:
        step.load(g)
        start = perf_counter()
        step.first()
        first = perf_counter() - start
        step.load(h)
        start = perf_counter()
        step.second()
        return first, perf_counter() - start

    return step, timed


def copy_entry(nbytes: int) -> Callable[[], Times]:
    source, target = torch.ones(nbytes // 8), torch.empty(nbytes // 8)

    def timed() -> Times:
        start = perf_counter()
        target.copy_(source)
        return (perf_counter() - start,)

    return timed


def fastest(provider: Provider, workload: str, method: str) -> dict:
    """The fastest variant of a provider here, from a few interleaved rounds."""
    if len(provider.variants) == 1:
        return provider.variants[0]
    rounds = Rounds({str(k): entry(provider, workload, method, v)[1] for k, v in enumerate(provider.variants)})
    rounds.run(CALIBRATION, discard=2)
    return provider.variants[min(range(len(provider.variants)), key=lambda k: min(rounds.totals(str(k))))]


def held_bytes(provider: Provider, workload: str, method: str, variant: dict) -> int:
    """Bytes of tensors that exist between the two phases beyond weights and gradients, in units of distinct storages."""

    def storages() -> dict[int, int]:
        found = [x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type == "cpu"]
        return {storage.data_ptr(): storage.nbytes() for storage in found}

    step, timed = entry(provider, workload, method, variant)
    timed()
    step.first()
    step.load([None] * len(step.params))  # also drops the gradients of the entry, below
    del timed
    gc.collect()
    total = sum(storages().values())
    nbytes = sum(p.nbytes for p in step.params)
    del step
    gc.collect()
    return total - sum(storages().values()) - nbytes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workload", ["resnet18", "tiny300"])
def bench_step(benchmark, workload, method):
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter is not to be timed"
    providers = [p for p in (OURS, *PEERS) if method in p.methods and not p.missing]
    chosen = {p.name: fastest(p, workload, method) for p in providers}
    for p in providers:
        assert_match(p, workload, method, chosen[p.name])
    forget()
    held = {p.name: held_bytes(p, workload, method, chosen[p.name]) for p in providers}
    nbytes = BYTES_PER_PARAMETER[method] * elements(WORKLOADS[workload])
    entries = {p.name: entry(p, workload, method, chosen[p.name])[1] for p in providers}
    rounds = Rounds({"copy": copy_entry(nbytes), **entries})
    start = perf_counter()
    rounds.run(WARMUP)
    count = int(min(max(SECONDS * WARMUP / (perf_counter() - start), LEAST), MOST))
    benchmark.pedantic(rounds.round, rounds=count, iterations=1, warmup_rounds=0)
    rounds.discard(WARMUP)

    copy, base = rounds.totals("copy"), rounds.totals(OURS.name)
    info = {}
    for p in providers:
        times = rounds.totals(p.name)
        info[p.name] = {
            "ms": spread(times, 1e3),
            "first_ms": spread([t[0] for t in rounds.times[p.name]], 1e3),
            "second_ms": spread([t[1] for t in rounds.times[p.name]], 1e3),
            "gb_per_s": nbytes / spread(times)["median"] / 1e9,
            "share_of_copy": ratios(copy, times),
            "ratio_to_ours": ratios(times, base),
            "held_bytes": held[p.name],
            "variant": chosen[p.name],
            "ours": p.is_ours,
        }
    benchmark.extra_info.update(
        workload=workload,
        method=method,
        tensors=len(WORKLOADS[workload]),
        parameters=elements(WORKLOADS[workload]),
        bytes=nbytes,
        rounds=count,
        copy_gb_per_s=spread([nbytes / t / 1e9 for t in copy]),
        providers=info,
    )
