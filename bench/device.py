"""What gpu.py measures of one provider on a CUDA device: host, wall and device time of both phases, launches, peak memory."""

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from match import gradients, parameters
from methods import Method
from providers import Provider, Step

from sam_kernels.profiling.timing import Rounds, Times

CALIBRATION = 5
DEVICE = "cuda"
HOST, WALL, DEVICE_TIME = slice(0, 2), slice(2, 4), slice(4, 6)  # what an entry returns: both phases of each


def cycles(seconds: float) -> int:
    """For a spin of at least that long at up to 2 GHz, at least 200 us and at most 50 ms."""
    return int(2e9 * min(max(seconds, 2e-4), 5e-2))


def event_times(phases: list[Callable[[], None]], loads: list[Callable[[], None]], spin: float) -> list[float]:
    """Seconds on the device per phase."""
    times = []
    for load, phase in zip(loads, phases, strict=True):
        load()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles(spin))
        begin.record()
        phase()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def host_times(phases: list[Callable[[], None]], loads: list[Callable[[], None]]) -> tuple[list[float], list[float]]:
    """Seconds until enqueued and until done, per phase, starting from an idle device."""
    host, wall = [], []
    for load, phase in zip(loads, phases, strict=True):
        load()
        torch.cuda.synchronize()
        start = perf_counter()
        phase()
        host.append(perf_counter() - start)
        torch.cuda.synchronize()
        wall.append(perf_counter() - start)
    return host, wall


def entry(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> tuple[Step, Callable[[], Times]]:
    step = provider.build(parameters(workload, method, DEVICE), method, variant)
    g, h = gradients(workload, method, 0, DEVICE)
    phases, loads = [step.first, step.second], [lambda: step.load(g), lambda: step.load(h)]

    def timed() -> Times:
        host, wall = host_times(phases, loads)
        return (*host, *wall, *event_times(phases, loads, 3 * max(host)))

    return step, timed


def copy_entry(nbytes: int) -> Callable[[], Times]:
    source, target = torch.ones(nbytes // 8, device=DEVICE), torch.empty(nbytes // 8, device=DEVICE)
    return lambda: (0.0, 0.0, 0.0, 0.0, *event_times([lambda: target.copy_(source)], [lambda: None], 0.0), 0.0)


def column(rounds: Rounds, name: str, part: slice) -> list[float]:
    return [sum(times[part]) for times in rounds.times[name]]


def fastest(provider: Provider, workload: str, method: Method) -> dict[str, Any]:
    """The variant with the least wall time."""
    variants = provider.usable(method, DEVICE)
    if len(variants) == 1:
        return variants[0]
    rounds = Rounds({str(k): entry(provider, workload, method, v)[1] for k, v in enumerate(variants)})
    rounds.run(CALIBRATION, discard=3)
    return variants[min(range(len(variants)), key=lambda k: min(column(rounds, str(k), WALL)))]


def launches(step: Step, timed: Callable[[], Times]) -> int:
    """Kernels, copies and fills on the device in one step; ``timed`` has set gradients."""
    timed()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step.first()
        step.second()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)


def peak_bytes(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> int:
    """Peak of allocated memory in a step beyond weights and the two gradients: stash, momentum, temporaries."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    step, timed = entry(provider, workload, method, variant)
    timed()
    torch.cuda.reset_peak_memory_stats()
    timed()
    return torch.cuda.max_memory_allocated() - before - 3 * sum(p.nbytes for p in step.params)
