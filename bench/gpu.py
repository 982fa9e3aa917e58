"""Time of one optimizer step on a CUDA GPU: ours by backend against the peers, matched first, interleaved in one run.

    python bench/gpu.py [--out bench/results]

Per provider: wall time of the two phases, each waited for; host time, until everything is enqueued; device time by events behind a
spinning kernel, so that the queue never runs dry and the host's pace does not show (where a provider waits for the device, it
does); launches; peak memory. Writes <gpu>-<date>.json after every workload.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from match import ROOT, assert_match, forget, gradients, parameters
from providers import PEERS, Provider, Step, ours
from report import caption, table
from timing import Rounds, Times, ratios, spread
from workloads import BYTES_PER_PARAMETER, WORKLOADS, elements

WORKLOAD_NAMES, METHODS = ("resnet50", "gpt2"), ("sam", "stable_sam")
ROUNDS, WARMUP, CALIBRATION = 60, 10, 5
DEADLINE = 150.0  # seconds after which no further cell is begun
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


def entry(provider: Provider, workload: str, method: str, variant: dict[str, Any]) -> tuple[Step, Callable[[], Times]]:
    step = provider.build(parameters(workload, DEVICE), method, variant)
    g, h = gradients(workload, 0, DEVICE)
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


def fastest(provider: Provider, workload: str, method: str) -> dict[str, Any]:
    """The variant with the least wall time."""
    if len(provider.variants) == 1:
        return provider.variants[0]
    rounds = Rounds({str(k): entry(provider, workload, method, v)[1] for k, v in enumerate(provider.variants)})
    rounds.run(CALIBRATION, discard=3)
    return provider.variants[min(range(len(provider.variants)), key=lambda k: min(column(rounds, str(k), WALL)))]


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


def peak_bytes(provider: Provider, workload: str, method: str, variant: dict[str, Any]) -> int:
    """Peak of allocated memory in a step beyond weights and the two gradients: stash, momentum, temporaries."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    step, timed = entry(provider, workload, method, variant)
    timed()
    torch.cuda.reset_peak_memory_stats()
    timed()
    return torch.cuda.max_memory_allocated() - before - 3 * sum(p.nbytes for p in step.params)


def cell(workload: str, method: str) -> dict[str, Any]:
    """Match, calibrate, then time all providers in the same rounds. A provider that fails is not timed and says why."""
    nbytes = BYTES_PER_PARAMETER[method] * elements(WORKLOADS[workload])
    info: dict[str, dict[str, Any]] = {}
    entries: dict[str, Callable[[], Times]] = {}
    for p in (ours("cuda"), ours("triton"), *PEERS):
        if method not in p.methods or p.missing:
            continue
        info[p.name] = {"ours": p.is_ours}
        try:
            variant = fastest(p, workload, method)
            assert_match(p, workload, method, variant, DEVICE)
            peak = peak_bytes(p, workload, method, variant)
            step, timed = entry(p, workload, method, variant)
            info[p.name] |= {"variant": variant, "launches": launches(step, timed), "held_bytes": peak}
            entries[p.name] = timed
        except Exception as error:
            info[p.name]["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{workload}, {method}, {p.name}: {info[p.name]['failed']}", file=sys.stderr)
    forget()
    rounds = Rounds({"copy": copy_entry(nbytes), **entries}).run(ROUNDS, discard=WARMUP)
    copy = column(rounds, "copy", DEVICE_TIME)
    base = next((name for name in entries if info[name]["ours"]), None)
    for name in entries:
        wall, host, device = (column(rounds, name, part) for part in (WALL, HOST, DEVICE_TIME))
        info[name] |= {
            "ms": spread(wall, 1e3),
            "host_ms": spread(host, 1e3),
            "device_ms": spread(device, 1e3),
            "first_ms": spread([t[4] for t in rounds.times[name]], 1e3),
            "second_ms": spread([t[5] for t in rounds.times[name]], 1e3),
            "gb_per_s": nbytes / spread(device)["median"] / 1e9,
            "share_of_copy": ratios(copy, device),
        }
        if base is not None:
            info[name] |= {
                "ratio_to_ours": ratios(wall, column(rounds, base, WALL)),
                "device_ratio_to_ours": ratios(device, column(rounds, base, DEVICE_TIME)),
            }
    return {
        "workload": workload,
        "method": method,
        "tensors": len(WORKLOADS[workload]),
        "parameters": elements(WORKLOADS[workload]),
        "bytes": nbytes,
        "rounds": ROUNDS,
        "copy_gb_per_s": spread([nbytes / t / 1e9 for t in copy]),
        "providers": info,
    }


def commit() -> str:
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (", modified" if dirty else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch sees no CUDA GPU here; nothing is timed")
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("bench/gpu.py: TRITON_INTERPRET=1 is set; the interpreter is not to be timed", file=sys.stderr)
        return 1
    begun = perf_counter()
    where = {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version("triton"),
        "date": date.today().isoformat(),
        "commit": commit(),
    }
    cells: list[dict[str, Any]] = []
    path = arguments.out / f"{where['device'].lower().replace(' ', '-')}-{where['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for workload in WORKLOAD_NAMES:
        for method in METHODS:
            if perf_counter() - begun > DEADLINE:
                print(f"{workload}, {method}: left out, {DEADLINE:.0f} s are over", file=sys.stderr)
                continue
            cells.append(cell(workload, method))
            torch.cuda.empty_cache()
            path.write_text(json.dumps({"where": where, "cells": cells}, indent=1) + "\n")
    print(f"{table(cells)}\n\n{caption(where, cells)}\n\n{path}")
    return int(any("failed" in p for c in cells for p in c["providers"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
