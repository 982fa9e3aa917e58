"""Tables and figures from benchmark results: pytest-benchmark JSON of bench_step.py, or JSON of gpu.py.

python bench/report.py bench/.results/cpu.json [more.json ...] [--readme README.md] [--plot out/bench.png]

``--readme`` rewrites what stands between the two bench markers. One table per file, each with a caption that says where it was run.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
METHOD_NAMES = {"sam": "SAM", "asam": "ASAM", "stable_sam": "Stable SAM"}
COLOURS = ("#1b6ca8", "#7fb3d5", "#8d8d8d", "#c9a66b", "#b5651d", "#555555")

Cell = dict[str, Any]


def load(path: Path) -> tuple[dict[str, Any], list[Cell]]:
    """(where, cells): a cell is one workload and method with its providers."""
    data = json.loads(path.read_text())
    if "cells" in data:
        return data["where"], data["cells"]
    machine, commit = data["machine_info"], data["commit_info"]
    where = {
        "device": machine["cpu"].get("brand_raw", machine["processor"]),
        "cores": machine["cpu"].get("count"),
        "threads": machine["threads"],
        "load": machine["load"],
        "torch": machine["torch"],
        "triton": machine["triton"],
        "date": data["datetime"][:10],
        "commit": commit.get("id", "unknown")[:10] + (", modified" if commit.get("dirty") else ""),
    }
    return where, [benchmark["extra_info"] for benchmark in data["benchmarks"]]


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}" if x else "0"


def between(s: dict[str, float]) -> str:
    return f"{number(s['median'])} ({number(s['p20'])} to {number(s['p80'])})"


COLUMNS = {  # header -> (key that must be there, text of one provider)
    "ms per step": ("ms", lambda p: between(p["ms"])),
    "best": ("ms", lambda p: number(p["ms"]["best"])),
    "on the device": ("device_ms", lambda p: between(p["device_ms"])),
    "host": ("host_ms", lambda p: number(p["host_ms"]["median"])),
    "launches": ("launches", lambda p: str(p["launches"])),
    "GB/s": ("gb_per_s", lambda p: number(p["gb_per_s"])),
    "of copy": ("share_of_copy", lambda p: number(p["share_of_copy"]["median"])),
    "time over ours": ("ratio_to_ours", lambda p: between(p["ratio_to_ours"])),
    "on the device, over ours": ("device_ratio_to_ours", lambda p: between(p["device_ratio_to_ours"])),
    "MB held": ("held_bytes", lambda p: number(p["held_bytes"] / 1e6)),
}


def table(cells: list[Cell]) -> str:
    present = {key for cell in cells for p in cell["providers"].values() for key in p}
    columns = {header: (key, text) for header, (key, text) in COLUMNS.items() if key in present}
    rows = [["workload", "step", "provider", *columns], ["---"] * 3 + ["---:"] * len(columns)]
    for cell in cells:
        label = [f"{cell['workload']}: {cell['tensors']} tensors, {cell['parameters'] / 1e6:.3g} M", METHOD_NAMES[cell["method"]]]
        for name, p in cell["providers"].items():
            values = [p["failed"]] if "failed" in p else [text(p) if key in p else "" for key, text in columns.values()]
            rows.append([*label, f"**{name}**" if p.get("ours") else name, *values, *[""] * (len(columns) - len(values))])
            label = ["", ""]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def caption(where: dict[str, Any], cells: list[Cell]) -> str:
    ours = [(c, p) for c in cells for p in c["providers"].values() if p.get("ours") and "first_ms" in p]
    phases = [
        f"{c['workload']} {METHOD_NAMES[c['method']]} {number(p['first_ms']['median'])} + {number(p['second_ms']['median'])} ms"
        for c, p in ours
    ]
    counts = [c["rounds"] for c in cells]
    rounds = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    device = "On the device: by events behind a spinning kernel; ms per step: each phase waited for; host: ms until enqueued. "
    cores = "" if "load" not in where else f", {where['cores']} cores, {where['threads']} threads, load at the start {where['load']:.1f}"
    return (
        f"{where['device']}{cores}; torch {where['torch']}, Triton {where['triton']}; {where['date']}, commit {where['commit']}. "
        f"Medians (20th to 80th percentile) over {rounds} interleaved rounds, after a match with the fp64 reference; "
        "base SGD with momentum and weight decay; forward and backward are not part of a step. "
        "GB/s counts the 40 bytes per parameter that a step has to move (44 for ASAM and Stable SAM), whoever takes it; "
        "of copy: that rate over a torch copy of as many bytes in the same rounds. MB held: beyond weights and gradients. "
        f"{device if any('device_ms' in p for _, p in ours) else ''}"
        f"First and second phase of ours: {'; '.join(phases)}."
    )


def rewrite(readme: Path, text: str) -> None:
    old = readme.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise SystemExit(f"{readme}: expected {BEGIN} and, after it, {END}, once each")
    head, rest = old.split(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def plot(cells: list[Cell], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    workloads = list(dict.fromkeys(cell["workload"] for cell in cells))
    names = list(dict.fromkeys(name for cell in cells for name in cell["providers"]))
    figure, axes = plt.subplots(1, len(workloads), figsize=(1 + 4.4 * len(workloads), 3.6), squeeze=False, layout="constrained")
    for axis, workload in zip(axes[0], workloads, strict=True):
        here = [cell for cell in cells if cell["workload"] == workload]
        heights = [p["ms"]["median"] for cell in here for p in cell["providers"].values() if "ms" in p]
        log = bool(heights) and max(heights) > 20 * min(heights)
        for group, cell in enumerate(here):
            done = [name for name in names if "ms" in cell["providers"].get(name, {})]
            for k, name in enumerate(done):
                ms = cell["providers"][name]["ms"]
                x, width = group + (k - (len(done) - 1) / 2) * 0.2, 0.18
                error = [[ms["median"] - ms["p20"]], [ms["p80"] - ms["median"]]]
                axis.bar(x, ms["median"], width, yerr=error, color=COLOURS[names.index(name) % len(COLOURS)], error_kw={"lw": 0.8})
                axis.annotate(
                    number(ms["median"]), (x, ms["p80"]), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7
                )
        axis.set_xticks(range(len(here)), [METHOD_NAMES[cell["method"]] for cell in here])
        axis.tick_params(axis="x", length=0)
        axis.set_title(f"{workload}: {here[0]['tensors']} tensors, {here[0]['parameters'] / 1e6:.3g} M parameters", fontsize=9)
        axis.set_yscale("log" if log else "linear")
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("ms per optimizer step")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[k % len(COLOURS)]) for k in range(len(names))]
    figure.legend(handles, names, loc="outside upper center", ncols=2 * len(workloads), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    loaded = [load(path) for path in arguments.results]
    text = "\n\n".join(f"{table(cells)}\n\n{caption(where, cells)}" for where, cells in loaded)
    print(text)
    if arguments.readme:
        rewrite(arguments.readme, text)
    if arguments.plot:
        plot(loaded[0][1], arguments.plot)


if __name__ == "__main__":
    main()
