"""The GPU part of the README and its figure, from the JSON under bench/results/: the newest file of each kind for every GPU.

    python bench/gpu_report.py [--results bench/results] [--readme README.md] [--plot docs/gpu.png]

<gpu>-<date>.json is written by gpu.py (optimizer steps against the peers), -ops.json by gpu_ops.py, -steps.json by end_to_end.py (whole
training steps). What was not measured is said to be so, target by target.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_figure import plot
from report import caption, machine, rewrite
from tables import GPU_TARGETS, MEASURES, WORKLOAD_NAMES, long_table, method_name, ours_of, rows

from sam_kernels.profiling.tables import between, number

ROOT = Path(__file__).resolve().parents[1]
BLOCK = "gpu"
STEPS, OPS, WHOLE = "cells", "results", "steps"  # what a file of each kind holds
Found = dict[str, dict[str, Any]]  # kind -> content of its file
OPEN = "not yet measured"
LOOP, PASSES = "over_loop", "over_passes"
WHOLE_TARGETS = [  # network, method of end_to_end.py, its ratio, what it says, asked
    ("resnet18_cifar", "ours, captured", LOOP, "ResNet-18 at CIFAR shapes: a plain-loop SAM step over a captured one of ours", "≥ 1.3"),
    ("resnet18_cifar", "ours, captured", "host_ms", "ResNet-18 at CIFAR shapes, a whole captured step: ms until enqueued", "0"),
    *((model, f"Reweighted SAM exact, {how}", f"over_{how}", f"{name}: exact Reweighted SAM over SAM, {how}", "≤ 1.08")
      for model, name in (("vit_b16", "ViT-B/16"), ("wrn28_10", "WRN-28-10")) for how in ("eager", "captured")),
    *((model, "forward + backward + exact norms", PASSES, f"{name}: exact per-sample norms over forward and backward", "≤ 1.1")
      for model, name in (("vit_b16", "ViT-B/16"), ("wrn28_10", "WRN-28-10"))),
]  # fmt: skip
ORDER = ("cuda", "triton", "torch")  # backends in the table of ops; those of the reference are left out


def newest(folder: Path) -> dict[str, Found]:
    """GPU -> kind -> content; of several files by the date inside, then by name."""
    found: dict[str, Found] = {}
    read = []
    for path in folder.glob("*.json"):
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise SystemExit(f"{path}: no JSON ({error}); was it cut short? Delete it, or measure again") from None
        kind = next((kind for kind in (STEPS, OPS, WHOLE) if kind in data), None)
        if kind is None or not {"device", "date"} <= data.get("where", {}).keys():
            raise SystemExit(f"{path}: expected 'where' with device and date, and one of {STEPS!r}, {OPS!r}, {WHOLE!r}")
        if data["where"].get("cuda") is None:
            print(f"{path}: of {data['where']['device']}, which is no GPU: left out")
            continue
        read.append((data["where"]["date"], path.name, kind, data))
    for _, _, kind, data in sorted(read, key=lambda each: each[:2]):
        found.setdefault(data["where"]["device"], {})[kind] = data
    return found


# ---- tables


def inverted(ratio: dict[str, float]) -> dict[str, float]:
    return {"median": 1 / ratio["median"], "p20": 1 / ratio["p80"], "p80": 1 / ratio["p20"]}


def target_lines(found: Found) -> list[list[str]]:
    """Every figure that is asked for on a GPU, with what was reached."""
    cells, whole = found.get(STEPS, {}).get("cells", []), found.get(WHOLE, {}).get("steps", [])
    lines = []
    for workload, method, measure, provider, asked in GPU_TARGETS:
        label = f"{WORKLOAD_NAMES[workload]}, {method_name(method)}: {MEASURES[measure]}{': ' + provider if provider else ''}"
        cell = next((c for c in cells if (c["workload"], c["method"]) == (workload, method)), None)
        p = {} if cell is None else cell["providers"].get(provider, {}) if provider else ours_of(cell)[1]
        lines.append([label, asked, between(p[measure]) if measure in p else p.get("failed") or p.get("absent") or OPEN])
    for model, method, ratio, label, asked in WHOLE_TARGETS:
        row = next((r for r in whole if (r["model"], r["method"]) == (model, method)), {})
        value = inverted(row[ratio]) if ratio in row and ratio == LOOP else row.get(ratio)  # a ratio to another method, or a time
        lines.append([label, asked, between(value) if value else why_not(row) or OPEN])
    return lines


def target_table(found: Found) -> str:
    return rows([["target", "asked", "reached"], *target_lines(found)], 1)


def why_not(entry: dict[str, Any]) -> str:
    return f"failed: {entry['failed']}" if "failed" in entry else str(entry.get("missing", ""))


def op_table(results: list[dict[str, Any]]) -> str:
    """Microseconds on the device."""
    there = {name for result in results for name in result["backends"]}
    names = [name for name in ORDER if name in there]
    lines = [["op", "on", "dtype", *(f"{name}, µs" for name in names), "fastest of ours", "GB/s", "of copy", "launches"]]
    for result in results:
        backends = result["backends"]
        times = [op_time(backends.get(name)) for name in names]
        ours = {name: p for name, p in backends.items() if name in ("cuda", "triton") and "device_ms" in p}
        best = min(ours, key=lambda name: ours[name]["device_ms"]["median"], default=None)
        last = ["", "", "", ""]
        if best is not None:
            p = ours[best]
            last = [best, number(p["gb_per_s"]["median"]), number(p["share_of_copy"]["median"]), str(p.get("launches", ""))]
        lines.append([result["what"], result["on"], result["dtype"], *times, *last])
    return rows(lines, 3)


def op_time(p: dict[str, Any] | None) -> str:
    if p is None:
        return "-"
    return number(1e3 * p["device_ms"]["median"]) if "device_ms" in p else "failed" if "failed" in p else "not timed"


def whole_table(steps: list[dict[str, Any]]) -> str:
    lines = [["network", "method", "ms per step", "over forward + backward", "over the plain loop", "optimizer, ms", "peak, GB"]]
    label = ""
    for row in steps:
        label, previous = row["label"], label
        values = [why_not(row) or OPEN, "", "", "", ""]
        if "ms" in row:
            ratios = [between(row[key]) if key in row else "" for key in (PASSES, LOOP)]
            optimizer, peak = row.get("optimizer_ms"), row.get("peak_bytes")
            values = [between(row["ms"]), *ratios, number(optimizer) if optimizer else "", number(peak / 1e9) if peak else ""]
        lines.append([label if label != previous else "", row["method"], *values])
    return rows(lines, 2)


# ---- the block


def text(found: Found) -> str:
    """Of one GPU."""
    where = next(iter(found.values()))["where"]
    parts = [f"**{where['device']}**", target_table(found)]
    missing = [name for kind, name in ((STEPS, "optimizer steps"), (OPS, "ops"), (WHOLE, "whole training steps")) if kind not in found]
    if missing:
        parts.append(f"Not yet measured at all: {', '.join(missing)}.")
    about: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {
        STEPS: lambda data: (long_table(data["cells"]), caption(data["where"], data["cells"])),
        OPS: lambda data: (op_table(data["results"]), op_caption(data)),
        WHOLE: lambda data: (whole_table(data["steps"]), f"Whole training steps: {machine(data['where'])}{left_out(data)}"),
    }
    for kind, data in found.items():
        parts += about[kind](data)
    return "\n\n".join(filter(None, parts))


def op_caption(data: dict[str, Any]) -> str:
    return (
        f"Ops: {machine(data['where'])} Medians of interleaved rounds, µs on the device by events behind a spinning kernel, after a match "
        "with the reference; GB/s of the fastest of ours counts every operand once, of copy is that rate over the rate of a torch copy of "
        "as many bytes in the same rounds. torch: its own counterpart, which does less: a weight gradient without norms, a loss without "
        f"the norm at the logits, torch.multinomial without counts and inclusion weights.{left_out(data)}"
    )


def left_out(data: dict[str, Any]) -> str:
    return f" Left out for want of time: {', '.join(data['left_out'])}." if data.get("left_out") else ""


def block(gpus: dict[str, Found], figure: str | None) -> str:
    if not gpus:
        return (
            "Nothing in this repository has been measured on a GPU yet. `make gpu` on a CUDA machine runs the tests there and writes "
            "`bench/results/`, from which this part of the page and a roofline figure are made. Until then these figures are open:\n\n"
            f"{target_table({})}\n\nOpen as well: the times of all ops on `cuda` and `triton`, which decide the preference table, and "
            "every experiment of [bench/TUNING.md](bench/TUNING.md)."
        )
    image = [f"![Achieved bandwidth on the GPU against the bytes that have to move]({figure})"] if figure else []
    return "\n\n".join([*(text(found) for found in gpus.values()), *image])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(words)
    if arguments.results != parser.get_default("results") and not arguments.results.is_dir():
        parser.error(f"--results is {str(arguments.results)!r}, which is no folder")
    gpus = newest(arguments.results)
    drawn = arguments.plot is not None and plot(gpus, arguments.plot)
    inner = block(gpus, arguments.plot.as_posix() if drawn and arguments.plot else None)
    print(inner)
    if arguments.readme:
        rewrite(arguments.readme, BLOCK, inner)
    kinds = sum(len(found) for found in gpus.values())
    print(f"\nfound: {kinds} newest files of {len(gpus)} GPUs" if gpus else "\nfound: no results of a GPU; the README says so")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
