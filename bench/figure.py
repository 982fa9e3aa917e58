"""The figure of the benchmark: time of every peer over ours, a group of bars per workload and method.

Above SGD in fp32, below plain SAM with AdamW and in bf16; the tables have the rest."""

from pathlib import Path

from tables import WORKLOAD_NAMES, Cell, is_host, method_name, ours_of, peer_names

from sam_kernels.profiling.tables import number

COLOURS = ("#7fb3d5", "#1b6ca8", "#c9a66b", "#b5651d", "#8d8d8d", "#555555")


def plot(cells: list[Cell], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cells = [cell for cell in cells if not is_host(cell) and "ms" in ours_of(cell)[1]]
    plain = [cell for cell in cells if cell["method"].endswith("sgd-fp32")]
    other = [cell for cell in cells if cell not in plain and cell["method"].startswith("sam-")]
    panels = [some for some in (plain, other) if some]
    names = peer_names(cells)
    widest = max(len(some) for some in panels)
    figure, axes = plt.subplots(len(panels), 1, figsize=(2 + 0.85 * widest, 0.6 + 3.2 * len(panels)), squeeze=False, layout="constrained")
    for axis, some in zip(axes[:, 0], panels, strict=True):
        labels = []
        for group, cell in enumerate(some):
            done = [name for name in names if "ratio_to_ours" in cell["providers"].get(name, {})]
            for k, name in enumerate(done):
                ratio = cell["providers"][name]["ratio_to_ours"]
                x = group + (k - (len(done) - 1) / 2) * 0.2
                error = [[ratio["median"] - ratio["p20"]], [ratio["p80"] - ratio["median"]]]
                axis.bar(x, ratio["median"], 0.18, yerr=error, color=COLOURS[names.index(name) % len(COLOURS)], error_kw={"lw": 0.8})
                axis.annotate(f"{ratio['median']:.1f}", (x, ratio["p80"]), (0, 1), textcoords="offset points", ha="center", fontsize=6)
            step = method_name(cell["method"]).replace(" + ", "\n+ ").replace(", ", "\n")
            workload = WORKLOAD_NAMES.get(cell["workload"], cell["workload"])
            labels.append(f"{workload}\n{step}\n{number(ours_of(cell)[1]['ms']['median'])} ms")
        axis.axhline(1, color="black", lw=0.8)
        axis.set_xticks(range(len(some)), labels, fontsize=7)
        axis.set_xlim(-0.6, widest - 0.4)
        axis.tick_params(axis="x", length=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("time per step over ours")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[k % len(COLOURS)]) for k in range(len(names))]
    legend = [*names, f"1: {ours_of(cells[0])[0]}, ms below"]
    figure.legend(
        [*handles, plt.Line2D([], [], color="black", lw=0.8)], legend, loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
