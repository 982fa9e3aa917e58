"""The figure of a benchmark: GB/s of every backend as bars, a group per measurement, and what a copy reached as a line over each group."""

from pathlib import Path
from typing import Any

COLOURS = {"cpp": "#1b6ca8", "cuda": "#1b6ca8", "triton": "#c9a66b", "reference": "#8d8d8d"}
COPY = "#b5651d"


def plot(found: dict[str, Any], path: Path) -> None:
    """Needs matplotlib. Bars reach the median, whiskers from the 20th to the 80th percentile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    results = [result for result in found["results"] if "copy_gb_per_s" in result]
    figure = Figure(figsize=(max(4.5, 1.6 + 1.1 * len(results)), 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    used: dict[str, None] = {}
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
    axis.set_xticks(range(len(results)), labels, fontsize=7, rotation=0 if len(results) < 7 else 30)
    axis.set_ylabel("GB/s of what has to move")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", length=0)
    handles = [Patch(color=COLOURS.get(name, "#555555")) for name in used] + [Line2D([], [], color=COPY, lw=1.4)]
    figure.legend(handles, [*used, "torch copy"], loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
