"""Tables and the figure from benchmark results: pytest-benchmark JSON of the bench_*.py, or JSON of gpu.py.

python bench/report.py bench/.results/cpu.json [more.json ...] [--long] [--readme README.md] [--plot out/bench.png]

``--readme`` rewrites what stands between the markers of what the results hold. ``--long`` prints a line per provider and not one per cell.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import batch_tables
import sample_tables
from figure import plot
from tables import CPU_TARGETS, GPU_TARGETS, Cell, compact_table, host_table, is_host, long_table, target_table

BLOCKS = STEPS, SAMPLES, BATCHES = "bench", "samples", "batches"  # of the README
STEP = (
    "base SGD with momentum and weight decay, or AdamW; forward and backward are not part of a step. "
    "GB/s counts the bytes that a step has to move, each operand once, whoever takes it and however often it does: per parameter "
    "40 for SAM + SGD, 48 with AdamW, 4 more for ASAM and Stable SAM; in bf16 half for weights and gradients. "
    "Of copy: that rate over the rate of a torch copy in the same rounds. "
)
NARROW = (
    "In bf16 ours computes in fp32 and keeps the base's state in fp32; the peers keep theirs in bf16, move fewer bytes for it, and "
    "compute in bf16 where torch does; torch's fused SGD is no base there, since on CPU it leaves most elements as they were "
    "(pytorch issue 191763), and foreach takes its place. "
)
PEERS = (
    "Per-tensor loop: the operations of the usual single-file SAM; add, subtract: the perturbation is kept, added and subtracted, so "
    "that the restore is not exact. Every peer with the fastest of its foreach and fused forms. "
)


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
    return where, [b["extra_info"] for b in data["benchmarks"] if b["extra_info"]]


def machine(where: dict[str, Any]) -> str:
    cores = "" if "load" not in where else f", {where['cores']} cores, {where['threads']} threads, load at the start {where['load']:.1f}"
    return f"{where['device']}{cores}; torch {where['torch']}, Triton {where['triton']}; {where['date']}, commit {where['commit']}."


def caption(where: dict[str, Any], cells: list[Cell]) -> str:
    counts = [n for cell in cells for n in (cell["rounds"] if isinstance(cell["rounds"], list) else [cell["rounds"]])]
    rounds = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    device = any("device_ms" in p for cell in cells for p in cell["providers"].values())
    return (
        f"{machine(where)} "
        f"Medians (20th to 80th percentile) over {rounds} interleaved rounds, after a match with the fp64 reference; {STEP}"
        f"{NARROW if any(cell['method'].endswith('bf16') for cell in cells) else ''}{PEERS}"
        + (
            "On the device: by events behind a spinning kernel; ms per step: each phase waited for; host: ms until enqueued. "
            if device
            else ""
        )
        + "MB: what a step of ours needs at its peak beyond weights and gradients, the base's state included."
    )


def text(where: dict[str, Any], cells: list[Cell], long: bool = False) -> str:
    """Everything about one file."""
    if long or any("device_ms" in p for cell in cells for p in cell["providers"].values()):
        return "\n\n".join(filter(None, (long_table(cells), target_table(cells, GPU_TARGETS), caption(where, cells))))
    steps, host = [cell for cell in cells if not is_host(cell)], [cell for cell in cells if is_host(cell)]
    plain = [cell for cell in steps if cell["method"].endswith("sgd-fp32")]
    other = [cell for cell in steps if cell not in plain]
    parts = [compact_table(some) for some in (plain, other) if some]
    parts += [host_table(host) + "\n\nThe last columns: µs per tensor of the others." if host else ""]
    return "\n\n".join(filter(None, (*parts, target_table(cells, CPU_TARGETS), caption(where, cells))))


def blocks(where: dict[str, Any], cells: list[Cell], long: bool = False) -> dict[str, str]:
    """The texts of one file, by the block of the README where they belong."""
    sorted_cells: dict[str, list[Cell]] = {block: [] for block in BLOCKS}
    for cell in cells:
        sorted_cells[STEPS if "workload" in cell else BATCHES if "batches" in cell else SAMPLES].append(cell)
    make = {
        STEPS: lambda some: text(where, some, long),
        SAMPLES: lambda some: sample_tables.text(machine(where), some),
        BATCHES: lambda some: batch_tables.text(machine(where), some),
    }
    return {block: make[block](some) for block, some in sorted_cells.items() if some}


def rewrite(readme: Path, block: str, inner: str) -> None:
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    old = readme.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise SystemExit(f"{readme}: expected {begin} and, after it, {end}, once each")
    head, rest = old.split(begin)
    readme.write_text(f"{head}{begin}\n\n{inner}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    loaded = [load(path) for path in arguments.results]
    print("\n\n".join("\n\n".join(blocks(*each, arguments.long).values()) for each in loaded))
    if arguments.readme:
        parts = [blocks(*each) for each in loaded]
        for block in BLOCKS:
            if inner := "\n\n".join(part[block] for part in parts if block in part):
                rewrite(arguments.readme, block, inner)
    steps = [cell for cell in loaded[0][1] if "workload" in cell]
    if arguments.plot and steps:
        plot(steps, arguments.plot)


if __name__ == "__main__":
    main()
