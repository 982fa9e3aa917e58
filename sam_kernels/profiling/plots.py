"""The figure of a benchmark: GB/s of every backend as bars, a group per measurement, and what a copy reached as a line over each group."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = {"cpp": "#1b6ca8", "cuda": "#1b6ca8", "triton": "#c9a66b", "reference": "#8d8d8d"}
COPY = "#b5651d"
ROW = 8  # measurements beside each other, with a scale of their own


def plot(found: dict[str, Any], path: Path) -> None:
    """Needs matplotlib. Bars reach the median, whiskers from the 20th to the 80th percentile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    results = [result for result in found["results"] if "copy_gb_per_s" in result]
    rows = [results[k : k + ROW] for k in range(0, len(results), ROW)]
    figure = Figure(figsize=(max(4.5, 1.6 + 1.1 * len(rows[0])), 0.6 + 3.2 * len(rows)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    used: dict[str, None] = {}
    for axis, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        _bars(axis, row, used)
        axis.set_xlim(-0.6, len(rows[0]) - 0.4)
    handles = [Patch(color=COLOURS.get(name, "#555555")) for name in used] + [Line2D([], [], color=COPY, lw=1.4)]
    figure.legend(handles, [*used, "torch copy"], loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path)


def _bars(axis: Any, results: Sequence[dict[str, Any]], used: dict[str, None]) -> None:
    """A group for each measurement; backends are put into ``used``."""
    for group, result in enumerate(results):
        done = [(name, p) for name, p in result["backends"].items() if "gb_per_s" in p]
        width = 0.8 / max(len(done), 1)
        for k, (name, p) in enumerate(done):
            used[name] = None
            rate, x = p["gb_per_s"], group + (k - (len(done) - 1) / 2) * width
            error = [[rate["median"] - rate["p20"]], [rate["p80"] - rate["median"]]]
            axis.bar(x, rate["median"], 0.9 * width, yerr=error, color=COLOURS.get(name, "#555555"), error_kw={"lw": 0.8})
        axis.plot([group - 0.45, group + 0.45], 2 * [result["copy_gb_per_s"]["median"]], color=COPY, lw=1.4)
    labels = [f"{result['what']}\n{result['on'].replace(' (', chr(10) + '(')}\n{result['dtype']}" for result in results]
    axis.set_xticks(range(len(results)), labels, fontsize=7)
    axis.set_ylabel("GB/s of what has to move")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", length=0)
