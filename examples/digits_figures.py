"""Figures of the examples: one look for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from digits_tables import quartiles
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from digits_timing import Stopwatch

INK, FAINT = "#22272e", "#d8dde3"


def new_panels(title: str, subtitle: str, right: float, count: int) -> list[Axes]:
    figure, panels = plt.subplots(1, count, figsize=(8, 4.6), dpi=200, squeeze=False)
    figure.subplots_adjust(left=0.085, right=right, top=0.82, bottom=0.125, wspace=0.25)
    figure.text(0.02, 0.935, title, fontsize=13.5, fontweight="bold", color=INK)
    figure.text(0.02, 0.88, subtitle, fontsize=10, color="#57606a")
    for axes in panels[0]:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("#9aa4af")
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=10, colors="#57606a")
    return list(panels[0])


def new_axes(title: str, subtitle: str, right: float) -> Axes:
    return new_panels(title, subtitle, right, 1)[0]


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed for neighbours to be ``gap`` apart; order is kept."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    placed = [heights[k] for k in order]
    for _ in range(200):
        for low in range(len(placed) - 1):
            lack = gap - (placed[low + 1] - placed[low])
            if lack > 0:
                placed[low], placed[low + 1] = placed[low] - lack / 2, placed[low + 1] + lack / 2
    return [placed[order.index(k)] for k in range(len(heights))]


def label_ends(axes: Axes, labels: Sequence[str], colors: Sequence[str], heights: Sequence[float], gap: float = 0.062) -> None:
    """Names of lines at the right border, at the fractions ``heights`` of its height, or as near as they fit."""
    for label, color, height in zip(labels, colors, apart(heights, gap), strict=True):
        axes.annotate(label, (1.02, height), xycoords="axes fraction", color=color, fontsize=11, fontweight="bold", va="center",
                      annotation_clip=False)  # fmt: skip


def plot_accuracy(curves: Sequence[tuple[str, str, np.ndarray]], title: str, path: Path) -> None:
    """``curves``: name, color and test accuracies ``[seeds, epochs]`` of every method."""
    seeds, epochs = curves[0][2].shape
    band = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    axes = new_axes(title, band, right=0.705)
    for _, color, values in curves:
        epoch, middle = np.arange(1, epochs + 1), values.mean(0)
        if seeds > 1:
            deviation = values.std(0, ddof=1)
            axes.fill_between(epoch, middle - deviation, middle + deviation, color=color, alpha=0.16, linewidth=0)
        axes.plot(epoch, middle, color=color, linewidth=2.2, solid_capstyle="round")
    low = min(values.mean(0)[epochs // 4 :].min() for _, _, values in curves)  # the climb of the first epochs may start below the axis
    bottom = max(0.0, 5 * np.floor((low - 3) / 5))
    axes.set(xlim=(1, epochs + 0.001), ylim=(bottom, 100), xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("test accuracy, %", color=INK, fontsize=10.5)
    axes.xaxis.label.set(color=INK, fontsize=10.5)
    ends = [values[:, -1].mean() for _, _, values in curves]
    names = [f"{name}  {end:.1f}" for (name, _, _), end in zip(curves, ends, strict=True)]
    label_ends(axes, names, [color for _, color, _ in curves], [(end - bottom) / (100 - bottom) for end in ends])
    axes.figure.savefig(path)
    plt.close(axes.figure)


def plot_correlations(steps: Sequence[int], values: dict[str, np.ndarray], colors: dict[str, str], path: Path) -> None:
    """``values``: correlations ``[seeds, len(steps)]`` of every estimator."""
    seeds = len(next(iter(values.values())))
    band = f"rank correlation within a batch over one training; {'mean and s.d. of ' + str(seeds) + ' seeds' if seeds > 1 else 'one seed'}"
    axes = new_axes("Estimators of per-sample gradient norms against the exact norms", band, right=0.775)
    for name, runs in values.items():
        middle = runs.mean(0)
        if seeds > 1:
            deviation = runs.std(0, ddof=1)
            axes.fill_between(steps, middle - deviation, middle + deviation, color=colors[name], alpha=0.1, linewidth=0)
        axes.plot(steps, middle, color=colors[name], linewidth=2.2, solid_capstyle="round", marker="o", markersize=3.5, clip_on=False)
    bottom = min(0.0, np.floor(5 * min(runs.mean(0).min() for runs in values.values())) / 5)  # bands may leave
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(0, steps[-1] * 1.02), ylim=(bottom, 1.02), xlabel="training steps (logarithmic from 1 on)")
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:g}")
    axes.set_ylabel("Spearman correlation", color=INK, fontsize=10.5)
    axes.xaxis.label.set(color=INK, fontsize=10.5)
    ends = [runs[:, -1].mean() for runs in values.values()]
    names = [f"{name}  {end:.2f}" for name, end in zip(values, ends, strict=True)]
    label_ends(axes, names, list(colors.values()), [(end - bottom) / (1.02 - bottom) for end in ends])
    axes.figure.savefig(path)
    plt.close(axes.figure)


def plot_shards(sizes: Sequence[int], values: dict[str, np.ndarray], colors: dict[float, str], path: Path) -> None:
    """A panel per measure, ``[seeds, radii, len(sizes) + 1]``: m-SAM by shard size, and Reweighted SAM, a line across, for every radius."""
    seeds = len(next(iter(values.values())))
    band = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    title = "SAM by the number of samples that make one perturbation"
    panels = new_panels(title, f"{band}; dashed: Reweighted SAM, whole batch", 0.97, len(values))
    panels[0].figure.subplots_adjust(top=0.79, wspace=0.2)
    for axes, (name, runs) in zip(panels, values.items(), strict=True):
        middle, deviation = runs.mean(0), runs.std(0, ddof=1) if seeds > 1 else np.zeros(runs.shape[1:])
        for (rho, color), mean, width in zip(colors.items(), middle, deviation, strict=True):
            axes.fill_between(sizes, (mean - width)[:-1], (mean + width)[:-1], color=color, alpha=0.16, linewidth=0)
            axes.plot(sizes, mean[:-1], color=color, linewidth=2.2, marker="o", markersize=4, label=f"rho {rho}")
            axes.axhline(mean[-1], color=color, linewidth=1.6, linestyle=(0, (4, 2)))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("shard size m", color=INK, fontsize=10.5)
        axes.set_title(name, color=INK, fontsize=10.5, loc="left")
    panels[-1].set_yscale("log", base=2)
    panels[-1].yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    panels[0].legend(frameon=False, fontsize=9.5)
    panels[0].figure.savefig(path)
    plt.close(panels[0].figure)


def plot_time(watches: Sequence[Stopwatch], path: Path) -> None:
    """``watches`` that have timed the optimizer alone."""
    title, subtitle = "Time in the optimizer per training step", "median, whiskers at the quartiles; same gradients, measured in turns"
    axes = new_axes(title, subtitle, right=0.97)
    top = 1.15 * max(quartiles(times)[1] for watch in watches for times in (watch.ours_ms, watch.loop_ms) if times)  # whiskers may leave
    for k, watch in enumerate(watches):
        bars = [(watch.ours_ms, watch.method.color, "torch.optim.SGD")]
        if watch.loop_ms:
            bars = [(watch.ours_ms, watch.method.color, "sam_kernels"), (watch.loop_ms, "#b6bec8", "plain loop")]
        for j, (times, color, label) in enumerate(bars):
            low, middle, high = quartiles(times)
            x = k + 0.43 * (j - (len(bars) - 1) / 2)
            axes.bar(x, middle, 0.36, color=color)
            axes.errorbar(x, middle, [[middle - low], [high - middle]], color=INK, linewidth=1, capsize=2.5)
            axes.text(x, min(high, 1.02 * top) + 0.02 * top, f"{middle:.2f}", ha="center", va="bottom", fontsize=10, color=INK)
            axes.text(x, -0.025 * top, label, ha="center", va="top", fontsize=8.5, color="#57606a")
        if watch.loop_ms:
            ratio = quartiles(watch.loop_ms)[1] / quartiles(watch.ours_ms)[1]
            axes.text(k, 1.17 * top, f"{ratio:.1f}x", ha="center", fontsize=15, fontweight="bold", color=watch.method.color)
    axes.set_xticks(range(len(watches)), [watch.method.name for watch in watches], fontsize=11.5, fontweight="bold", color=INK)
    axes.tick_params(axis="x", pad=19)
    axes.set_ylabel("milliseconds", color=INK, fontsize=10.5)
    axes.set(xlim=(-0.55, len(watches) - 0.45), ylim=(0, 1.28 * top))
    axes.figure.savefig(path)
    plt.close(axes.figure)
