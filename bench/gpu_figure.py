"""The roofline of memory-bound kernels: achieved GB/s against the bytes that have to move, under what a copy of as many bytes reaches."""

from pathlib import Path
from typing import Any

COLOURS = {"cuda": "#1b6ca8", "triton": "#c9a66b"}
PEER = "#8d8d8d"
LABELLED = ("ascend_", "descend_:sgd", "inner_products")

Point = tuple[float, float, str, str, str]  # bytes, GB/s, colour, marker, label


def points_of(found: dict[str, dict[str, Any]]) -> tuple[list[Point], list[tuple[float, float]]]:
    """Dots of one GPU, and the copies that were measured beside them."""
    dots: list[Point] = []
    copies: list[tuple[float, float]] = []
    for cell in found.get("cells", {}).get("cells", []):
        for name, p in cell["providers"].items():
            if "gb_per_s" in p:
                colour = COLOURS[name.split()[-1]] if p["ours"] else PEER
                dots.append((p["bytes"], p["gb_per_s"], colour, "s", cell["method"] if name == next(iter(cell["providers"])) else ""))
        copies.append((cell["bytes"], cell["copy_gb_per_s"]["median"]))
    for result in found.get("results", {}).get("results", []):
        for name, p in result["backends"].items():
            if "gb_per_s" in p and name in COLOURS:
                label = result["what"] if result["what"] in LABELLED and name == next(iter(result["backends"])) else ""
                dots.append((result["bytes"], p["gb_per_s"]["median"], COLOURS[name], "o", label))
        if "copy_gb_per_s" in result:
            copies.append((result["copy_bytes"], result["copy_gb_per_s"]["median"]))
    return dots, sorted(copies)


def plot(gpus: dict[str, dict[str, dict[str, Any]]], path: Path) -> bool:
    """A panel per GPU; False, and no file, where there is nothing to draw. Needs matplotlib."""
    panels = {name: points_of(found) for name, found in gpus.items()}
    panels = {name: points for name, points in panels.items() if points[0]}
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(7.5, 0.6 + 4.2 * len(panels)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, (dots, copies)) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        for nbytes, rate, colour, marker, label in dots:
            axis.plot(nbytes, rate, marker, color=colour, ms=5 if colour != PEER else 4, alpha=0.85, mec="none")
            if label:
                axis.annotate(label, (nbytes, rate), (4, 2), textcoords="offset points", fontsize=5, color=colour)
        axis.plot(*zip(*copies, strict=True), color="black", lw=1)
        axis.set_xscale("log")
        axis.set_ylim(0)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("bytes that have to move, each operand once")
        axis.set_ylabel("GB/s on the device")
        axis.spines[["top", "right"]].set_visible(False)
    marks = [("s", COLOURS["cuda"], "step, cuda"), ("s", COLOURS["triton"], "step, triton"), ("s", PEER, "step, peers")]
    marks += [("o", COLOURS["cuda"], "op, cuda"), ("o", COLOURS["triton"], "op, triton")]
    handles = [Line2D([], [], ls="", marker=marker, color=colour, mec="none", label=label) for marker, colour, label in marks]
    handles.append(Line2D([], [], color="black", lw=1, label="torch copy, same rounds"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
