"""What is timed of calls on a device, and how much memory it has.

On a CUDA device: seconds until enqueued, until done, and on the device by events behind a spinning kernel, so that the queue does not run
dry and the host's pace does not show, as long as the host takes less than ``LONGEST``. Before it the L2 cache is filled with something
else. On CPU a call takes what it takes.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter

import torch

from .timing import Times

LONGEST = 5e-2  # seconds of a spin
Call = Callable[[], object]
Phases = Sequence[tuple[Call, Call]]  # what is not timed, then what is


def nothing() -> None:
    pass


def cycles(seconds: float) -> int:
    """For a spin of at least that long at up to 2 GHz, at least 200 us and at most ``LONGEST``."""
    return int(2e9 * min(max(seconds, 2e-4), LONGEST))


@cache
def _spoiler() -> torch.Tensor:
    """Twice the L2 cache."""
    return torch.empty(2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size, dtype=torch.uint8, device="cuda")


def event_times(phases: Phases, spin: float) -> list[float]:
    """Seconds on the device per phase."""
    times = []
    for load, phase in phases:
        load()
        _spoiler().zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles(spin))
        begin.record()
        phase()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def host_times(phases: Phases) -> tuple[list[float], list[float]]:
    """Seconds until enqueued and until done, per phase, starting from an idle device."""
    host, wall = [], []
    for load, phase in phases:
        load()
        torch.cuda.synchronize()
        start = perf_counter()
        phase()
        host.append(perf_counter() - start)
        torch.cuda.synchronize()
        wall.append(perf_counter() - start)
    return host, wall


def cuda_entry(phases: Phases) -> Callable[[], Times]:
    """Host, wall and device times of all phases, in that order."""

    def timed() -> Times:
        host, wall = host_times(phases)
        return (*host, *wall, *event_times(phases, 3 * max(host)))

    return timed


def cpu_entry(phases: Phases, times: int = 1) -> Callable[[], Times]:
    """Seconds of every phase, the mean of so many calls in a row."""

    def timed() -> Times:
        totals = [0.0] * len(phases)
        for _ in range(times):
            for k, (load, phase) in enumerate(phases):
                load()
                start = perf_counter()
                phase()
                totals[k] += perf_counter() - start
        return tuple(total / times for total in totals)

    return timed


def entry(phases: Phases, device: str, times: int = 1) -> Callable[[], Times]:
    return cuda_entry(phases) if device == "cuda" else cpu_entry(phases, times)


def copy_phases(nbytes: int, device: str, allocates: bool = False) -> Phases:
    """A copy that moves so many bytes, into the same memory or into memory that each call ``allocates``."""
    source = torch.ones(max(nbytes // 8, 1), device=device)
    if allocates:
        return [(nothing, source.clone)]
    target = torch.empty_like(source)
    return [(nothing, lambda: target.copy_(source))]


def launches(phases: Phases) -> int | None:
    """Kernels, copies and fills on the CUDA device; loads are not counted. None where torch's profiler sees no device, as beside Nsight."""
    found = 0
    for load, phase in phases:
        load()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            phase()
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        found += sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)
    return found or None


def memory(device: str) -> tuple[int, int]:
    """Bytes that are free and that there are; page caches count as free where the system says how large they are."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return free, total
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    told = Path("/proc/meminfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        used = int((limit.parent / "memory.current").read_text())
        free, total = min(free, max(int(text) - used, 0)), min(total, int(text))
    return free, total
