"""Time of one optimizer step on a CUDA GPU: ours by backend against the peers, matched first, interleaved in one run.

    python bench/gpu.py [--seconds 240] [--out bench/results]

Per provider: wall time of the two phases, each waited for; host time, until everything is enqueued; device time by events behind a
spinning kernel, so that the queue never runs dry and the host's pace does not show (where a provider waits for the device, it
does); launches; peak memory. Writes <gpu>-<date>.json after every cell. A provider that fails or whose package is missing is not timed
and says why.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from device import DEVICE, DEVICE_TIME, HOST, WALL, column, copy_entry, entry, fastest, launches, peak_bytes
from match import assert_match, forget
from providers import PEERS, ours
from report import text

from sam_kernels.profiling import timing
from sam_kernels.profiling.methods import Method, bytes_per_parameter
from sam_kernels.profiling.tables import number
from sam_kernels.profiling.timing import Rounds, Times, ratios, spread
from sam_kernels.profiling.where import commit
from sam_kernels.profiling.where import where as where_it_runs
from sam_kernels.profiling.workloads import WORKLOADS, elements

ROOT = Path(__file__).resolve().parents[1]
WORKLOAD_NAMES = ("resnet50", "gpt2")
METHODS = (Method("sam", "sgd"), Method("stable_sam", "sgd"), Method("sam", "adamw"), Method("sam", "adamw", "bf16"))
ROUNDS = 60  # at most
LEAST = 4.0  # seconds for a cell
SHARE = 0.4  # of them, for its rounds, as their times add up: spins and loads come on top, and the match before


def line(cell: dict[str, Any]) -> str:
    """What the log says of a cell as soon as it is there."""

    def told(p: dict[str, Any]) -> str:
        times = "" if "ms" not in p else f"{number(p['ms']['median'])} ms, {number(p['device_ms']['median'])} on the device"
        return times or str(p.get("failed") or p.get("absent"))

    providers = "; ".join(f"{name}: {told(p)}" for name, p in cell["providers"].items())
    return f"{cell['workload']}, {cell['method']}, {cell['rounds']} rounds: {providers}"


def cell(workload: str, method: Method, seconds: float, end: float) -> dict[str, Any]:
    """Match, calibrate, then time all providers in the same rounds. A provider that fails, or whose turn comes after ``end``, is not timed
    and says why."""
    count = elements(WORKLOADS[workload])
    nbytes = count * bytes_per_parameter(method)
    info: dict[str, dict[str, Any]] = {}
    entries: dict[str, Callable[[], Times]] = {}
    for p in (ours("cuda"), ours("triton"), *PEERS):
        if not p.takes(method):
            if method.variant in p.methods:
                info[p.name] = {"ours": p.is_ours, "absent": f"{p.package} is not installed"}
            continue
        info[p.name] = {"ours": p.is_ours, "bytes": count * bytes_per_parameter(method, p.state_dtype(method).itemsize)}
        try:
            if perf_counter() > end:
                raise TimeoutError("the time was over")
            variant = fastest(p, workload, method)
            assert_match(p, workload, method, variant, DEVICE)
            peak = peak_bytes(p, workload, method, variant)
            step, timed = entry(p, workload, method, variant)
            info[p.name] |= {"variant": variant, "launches": launches(step, timed), "peak_bytes": peak}
            entries[p.name] = timed
        except Exception as error:
            info[p.name]["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{workload}, {method}, {p.name}: {info[p.name]['failed']}", file=sys.stderr)
    forget()
    rounds = timing.fill(Rounds({"copy": copy_entry(nbytes), **entries}), SHARE * seconds, ROUNDS)
    copy = [nbytes / t for t in column(rounds, "copy", DEVICE_TIME)]
    base = next((name for name in entries if info[name]["ours"]), None)
    for name in entries:
        wall, host, device = (column(rounds, name, part) for part in (WALL, HOST, DEVICE_TIME))
        info[name] |= {
            "ms": spread(wall, 1e3),
            "host_ms": spread(host, 1e3),
            "device_ms": spread(device, 1e3),
            "first_ms": spread([t[4] for t in rounds.times[name]], 1e3),
            "second_ms": spread([t[5] for t in rounds.times[name]], 1e3),
            "gb_per_s": info[name]["bytes"] / spread(device)["median"] / 1e9,
            "share_of_copy": ratios([info[name]["bytes"] / t for t in device], copy),
        }
        if base is not None:
            info[name] |= {
                "ratio_to_ours": ratios(wall, column(rounds, base, WALL)),
                "device_ratio_to_ours": ratios(device, column(rounds, base, DEVICE_TIME)),
            }
    return {
        "workload": workload,
        "method": str(method),
        "tensors": len(WORKLOADS[workload]),
        "parameters": count,
        "bytes": nbytes,
        "rounds": len(copy),
        "copy_gb_per_s": spread(copy, 1e-9),
        "providers": info,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240.0, help="for all cells together")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch sees no CUDA GPU here; nothing is timed")
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("bench/gpu.py: TRITON_INTERPRET=1 is set; the interpreter is not to be timed", file=sys.stderr)
        return 1
    begun = perf_counter()
    where = {**where_it_runs("cuda"), "commit": commit(ROOT)}
    cells: list[dict[str, Any]] = []
    path = arguments.out / f"{where['device'].lower().replace(' ', '-')}-{where['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    every = [(workload, method) for method in METHODS for workload in WORKLOAD_NAMES]  # those with targets come first
    for k, (workload, method) in enumerate(every):
        left = arguments.seconds - (perf_counter() - begun)
        if left < LEAST:
            print(f"found: {workload}, {method}: left out, {arguments.seconds:.0f} s are over", flush=True)
            continue
        cells.append(cell(workload, method, max(LEAST, left / (len(every) - k)), begun + arguments.seconds))
        torch.cuda.empty_cache()
        path.write_text(json.dumps({"where": where, "cells": cells}, indent=1) + "\n")
        print(line(cells[-1]), flush=True)
    print(f"{text(where, cells)}\n\nfound: {len(cells)} of {len(every)} cells, {path}")
    return int(any("failed" in p for c in cells for p in c["providers"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
