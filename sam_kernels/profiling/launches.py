"""Launches of every phase, out of a trace of torch's profiler: what the host does on behalf of the device while a phase is open."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Any

import torch

from ..spans import listen
from .recorder import OTHER, Labels, Path

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_CALLS = ("cuda_runtime", "cuda_driver")


def launches_of(step: Callable[[], object]) -> dict[Path, int] | None:
    """Kernels, copies and fills that a step on a CUDA device gives rise to, by the innermost phase that is open when the host asks. None
    where torch's profiler saw none, since another one, such as Nsight's, has the device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile, listen(Labels()):
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = File(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return attributed(json.loads(path.read_text())["traceEvents"]) or None


def attributed(events: Sequence[dict[str, Any]]) -> dict[Path, int]:
    """Events of a Chrome trace -> launches. By time alone: a backward asks from a thread of its own, while the step waits for it."""
    asked = {e["args"]["correlation"]: e["ts"] for e in events if e.get("cat") in HOST_CALLS and "correlation" in e.get("args", {})}
    launched = sorted(asked[e["args"]["correlation"]] for e in events if e.get("cat") in ON_DEVICE and e["args"]["correlation"] in asked)
    labels = [e for e in events if e.get("cat") == "user_annotation" and "dur" in e and not e["name"].startswith("Optimizer.")]
    labels.sort(key=lambda e: (e["ts"], -e["dur"]))
    found: dict[Path, int] = {}
    stack: list[tuple[str, float]] = []  # name and end of what is open
    for ts in launched:
        while True:
            while stack and stack[-1][1] < min(ts, labels[0]["ts"] if labels else ts):
                stack.pop()
            if not labels or labels[0]["ts"] > ts:
                break
            label = labels.pop(0)
            stack.append((label["name"], label["ts"] + label["dur"]))
        path = tuple(name for name, _ in stack) or OTHER
        found[path] = found.get(path, 0) + 1
    return found
