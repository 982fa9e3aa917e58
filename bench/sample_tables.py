"""Tables of the per-sample benchmark in Markdown: extra time over forward and backward, what it costs in memory and operations,
Reweighted SAM over SAM, and the design targets."""

from collections.abc import Callable
from statistics import median
from typing import Any

from sample_cases import LAYERS, MODELS
from sample_providers import GHOST, HOOKS, OURS, PEERS, PLAIN, WEIGHTED
from tables import Cell, rows

from sam_kernels.profiling.tables import number

ESTIMATORS = {"exact": "exact", "logits": "at the logits", "finite_difference": "finite difference"}
CAPTION = (
    "Forward, backward and the squared norms of all samples' gradients, over plain forward and backward of the same model in the same "
    "round, less 1; batch and loss are part of both. Weighted: ours without weight gradients, and Opacus with its second backward, until "
    "`.grad` is a weighted sum of the samples' gradients. Peak: bytes beyond weights and batch over those of plain forward and backward. "
    "Operations: calls of torch's dispatcher other than views and allocations. {reasons}"
)


def percent(p: dict[str, Any] | None, key: str) -> str:
    if not p or key not in p:
        return "-"
    s = p[key]
    return f"{_percent(s['median'])} ({_percent(s['p20'])} to {_percent(s['p80'])})"


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def time_table(cells: list[Cell]) -> str:
    """Extra time: a column per provider."""
    columns: list[tuple[str, str, str]] = [(f"**{OURS}**", OURS, "extra"), *((name, name, "extra") for name in PEERS)]
    columns += [
        (f"**{WEIGHTED}**", WEIGHTED, "weighted_extra"),
        *((f"{name}, weighted", name, "weighted_extra") for name in (GHOST, HOOKS)),
    ]
    lines = [["extra time", f"{PLAIN}, ms", *(header for header, _, _ in columns)]]
    for cell in cells:
        p = cell["providers"]
        lines.append([cell["label"], number(p[PLAIN]["ms"]["median"]), *(percent(p.get(name), key) for _, name, key in columns)])
    return rows(lines, 1)


def counts_table(cells: list[Cell]) -> str:
    """Peak over that of plain forward and backward, and operations: ``norms, weighted``."""
    names = (OURS, WEIGHTED, *PEERS)
    lines = [
        ["peak memory, operations", f"{PLAIN}: MB, operations", *(f"**{name}**" if name in (OURS, WEIGHTED) else name for name in names)]
    ]
    for cell in cells:
        p = cell["providers"]
        plain = p[PLAIN]
        figures = [f"{number(plain['peak_bytes'] / 1e6)}, {plain['operations']}"]
        for name in names:
            if "operations" not in p.get(name, {}):
                figures.append("-")
                continue
            peak = (p[name]["weighted_peak_bytes"] if name == WEIGHTED else p[name]["peak_bytes"]) / plain["peak_bytes"]
            figures.append(f"{number(peak)} x, {p[name]['operations']}")
        lines.append([cell["label"], *figures])
    return rows(lines, 1)


def step_table(cells: list[Cell]) -> str:
    lines = [["Reweighted SAM, time over SAM", "SAM, ms per step", *ESTIMATORS.values()]]
    for cell in cells:
        p = cell["providers"]
        over = [_between(p[name]["over_sam"]) for name in ESTIMATORS]
        lines.append([cell["label"], number(p["SAM"]["ms"]["median"]), *over])
    return rows(lines, 1)


def _between(s: dict[str, float]) -> str:
    return f"{s['median']:.2f} ({s['p20']:.2f} to {s['p80']:.2f})"


def less_overhead(cell: Cell, peer: str) -> str:
    """How many times as much time a peer adds."""
    p = cell["providers"]
    if "extra" not in p.get(peer, {}):
        return "-"
    own, other = (p[name]["extra"]["median"] for name in (OURS, peer))
    return number(other / own) if own > 0.005 else f"{_percent(other)}, ours {_percent(own)}"


def target_table(cells: list[Cell], steps: list[Cell]) -> str:
    lines = [["design target", "asked", "reached"]]
    named = {cell["samples"]: cell for cell in cells}
    for cell in (named[name] for name in MODELS if name in named):
        label, p = cell["label"], cell["providers"]
        lines.append([f"{label}: extra time", "≤ 35 %", percent(p[OURS], "extra")])
        lines += [[f"{label}: extra time of {peer} over ours", "≥ 2", less_overhead(cell, peer)] for peer in PEERS if "extra" in p[peer]]
        lines.append([f"{label}: peak memory over plain", "≤ 1.2", number(p[OURS]["peak_bytes"] / p[PLAIN]["peak_bytes"])])
    if found := [named[name] for name in LAYERS if name in named]:
        median_of: Callable[[Callable[[Cell], float]], str] = lambda of: number(median(map(of, found)))  # noqa: E731
        peak = median_of(lambda cell: cell["providers"][OURS]["peak_bytes"] / cell["providers"][PLAIN]["peak_bytes"])
        lines.append([f"{len(found)} layers: peak memory over plain, median", "≤ 1.2", peak])
    for cell in steps:
        lines.append([f"{cell['label']}: exact Reweighted SAM over SAM", "≤ 1.2", _between(cell["providers"]["exact"]["over_sam"])])
    return rows(lines, 1) if len(lines) > 1 else ""


def text(machine: str, cells: list[Cell]) -> str:
    """Everything about the cells of ``bench_samples.py``."""
    norms, steps = [c for c in cells if "samples" in c], [c for c in cells if "reweighted" in c]
    counts = [cell["rounds"] for cell in cells]
    reasons = {f"{name} on {cell['label']}: {p['failed']}" for cell in norms for name, p in cell["providers"].items() if "failed" in p}
    caption = (
        f"{machine} Medians (20th to 80th percentile) over {min(counts)} to {max(counts)} interleaved rounds in fp32, backend "
        f"{cells[0]['backend']}, after a match with autograd in fp64 on one sample at a time. "
        + CAPTION.format(reasons=f"Not measured: {'; '.join(sorted(reasons))}." if reasons else "")
    )
    parts = [time_table(norms), counts_table(norms)] if norms else []
    parts += [step_table(steps)] if steps else []
    return "\n\n".join(filter(None, (*parts, target_table(norms, steps), caption)))
