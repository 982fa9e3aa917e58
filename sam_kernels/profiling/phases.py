"""What was recorded of a method, as numbers, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any

from .recorder import OTHER, Path, Phase, Step, ordered
from .tables import number
from .timing import spread

Spread = dict[str, float]  # median, p20, p80, best


@dataclass(frozen=True)
class Row:
    """One phase. ``ms`` per step, its own; ``share`` of all steps together, so that shares add up to 1."""

    path: Path
    calls: float
    ms: Spread
    share: float
    host_ms: Spread | None = None
    launches: int | None = None


@dataclass(frozen=True)
class Profile:
    """All phases of one method."""

    method: str
    steps: int
    ms: Spread
    rows: list[Row]
    host_ms: Spread | None = None
    launches: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def profile_of(method: str, steps: Sequence[Step], cuda: bool, launches: dict[Path, int] | None = None) -> Profile:
    none, total = Phase(), sum(step.total.seconds for step in steps)

    def row(path: Path) -> Row:
        found = [step.phases.get(path, none) for step in steps]
        return Row(
            path,
            calls=sum(phase.calls for phase in found) / len(found),
            ms=spread([phase.seconds for phase in found], 1e3),
            share=sum(phase.seconds for phase in found) / total,
            host_ms=spread([phase.host for phase in found], 1e3) if cuda else None,
            launches=None if launches is None else launches.get(path, 0),
        )

    return Profile(
        method,
        len(steps),
        spread([step.total.seconds for step in steps], 1e3),
        [row(path) for path in ordered(steps)],
        spread([step.total.host for step in steps], 1e3) if cuda else None,
        None if launches is None else sum(launches.values()),
    )


# ---- table


def table(profile: Profile) -> str:
    """Phases, indented as they nest; every time is a phase's own, without those inside of it."""
    head = ["phase", "calls", "ms", "p20 - p80", "share"]
    head += ["host ms"] if profile.host_ms else []
    head += ["launches"] if profile.launches is not None else []
    lines = [head]
    for row in profile.rows:
        name = "  " * (len(row.path) - 1) + row.path[-1]
        calls = "" if row.path == OTHER else f"{row.calls:g}" if row.calls == int(row.calls) else f"{row.calls:.1f}"
        lines.append([name, calls, *_cells(row.ms, row.share, row.host_ms, row.launches)])
    lines.append(["step", "1", *_cells(profile.ms, 1.0, profile.host_ms, profile.launches)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) for line in lines]
    rule = "-" * len(text[0])
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def _cells(ms: Spread, share: float, host: Spread | None, launches: int | None) -> list[str]:
    cells = [number(ms["median"]), f"{number(ms['p20'])} - {number(ms['p80'])}", f"{100 * share:.1f}%"]
    cells += [number(host["median"])] if host else []
    return cells + ([str(launches)] if launches is not None else [])


# ---- figure

INK, FAINT, GREY = "#22272e", "#d8dde3", "#c3cad2"
WHOLE = ("norms", "select")  # with all that lies inside of them, forwards too
COLOURS = {
    "forward": "#7fb3d5",
    "backward": "#1b6ca8",
    "norms": "#c9a66b",
    "weights": "#8c6bb1",
    "draw": "#c994c7",
    "weighted gradients": "#b5651d",
    "select": "#5fb0c9",
    "ascend": "#d1495b",
    "restore": "#9bc9a0",
    "average": "#66a7a1",
    "descend": "#2a9d6f",
    "table": "#6b7785",
}
BELOW = 0.39  # of the distance of two bars: where a whisker crosses no number
LEAST, VISIBLE = 0.04, 0.001  # of the width: from the one on a bar carries its number, from the other it is in the legend


def segments(profile: Profile) -> list[tuple[str, bool, float]]:
    """Name, whether it belongs to the second pass, and ms of what the bar of a method is made of; phases without a colour are ``other``."""
    found: dict[tuple[str, bool], float] = {}
    for row in profile.rows:
        named = next((name for name in (*filter(row.path.__contains__, WHOLE), *reversed(row.path)) if name in COLOURS), "other")
        key = (named, row.path[0] == "second pass") if named != "other" else ("other", False)
        found[key] = found.get(key, 0.0) + row.share * profile.ms["median"]
    rest = found.pop(("other", False), 0.0)
    return [(*key, ms) for key, ms in found.items()] + [("other", False, rest)]


def plot(profiles: Sequence[Profile], title: str, subtitle: str, path: File) -> None:
    """One bar for every method, as long as its median step, of which a segment takes its share of all steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 1.9 + 0.7 * len(profiles)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    widest = max(profile.ms["median"] for profile in profiles)
    used: list[str] = []
    for y, profile in enumerate(profiles):
        left = 0.0
        for name, second, ms in segments(profile):
            red, green, blue = (1 - (0.6 if second else 1.0) * (1 - x) for x in to_rgb(COLOURS.get(name, GREY)))
            axes.barh(y, ms, 0.62, left, color=(red, green, blue), edgecolor="white", linewidth=0.6 if ms > LEAST * widest else 0)
            if ms > LEAST * widest:
                light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
                share = f"{100 * ms / profile.ms['median']:.0f}%"
                axes.text(left + ms / 2, y, share, ha="center", va="center", fontsize=8, color=INK if light else "white")
            used += [name] if name not in used and ms > VISIBLE * widest else []
            left += ms
        low, high = profile.ms["p20"], profile.ms["p80"]
        axes.errorbar(left, y + BELOW, xerr=[[max(left - low, 0)], [max(high - left, 0)]], color=INK, linewidth=0.9, capsize=2.5)
        axes.annotate(f"{number(left)} ms", (max(left, high), y), (6, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(profiles)), [profile.method for profile in profiles], fontsize=10.5, color=INK)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.14 * max(max(profile.ms["p80"] for profile in profiles), widest)))
    axes.set_xlabel("milliseconds per step", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    axes.set_title(
        f"{subtitle}; median step, below it p20 to p80; shares of all steps; lighter: second pass",
        loc="left",
        fontsize=8.5,
        color="#57606a",
    )
    names = [name for name in (*COLOURS, "other") if name in used]
    handles = [Patch(color=COLOURS.get(name, GREY)) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=-(-len(names) // -(-len(names) // 8)), frameon=False, fontsize=8.5)
    figure.savefig(path)
