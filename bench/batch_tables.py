"""Tables of the benchmark of batch rules and draws in Markdown: steps over those of SAM, draws and weights against torch, and the design
targets."""

from batch_draws import OURS, SCHEMES, SOFTMAX, WITH, WITHOUT
from batch_steps import AUSAM, DRAWN, ESAM, SHARDED
from tables import Cell, rows
from whole_step import SAM

from sam_kernels.profiling.tables import between, number

LARGE = 1_000_000
TARGETS = {ESAM: 0.9, AUSAM: 0.6}  # of a SAM step
FASTER = 3  # than torch.multinomial, on the large list
CAPTION = (
    "Steps: forwards, backwards and the optimizer, in fp32, after a match of one step in fp64 with plain torch; ESAM with beta = "
    "gamma = 0.5, AUSAM with alpha = 0.5 after its first pass over the data, Reweighted SAM with the norms at the logits. Draws and "
    "weights: a call, Python included, and torch's time over ours; `top_k` against torch.multinomial without replacement, the others "
    "against it with; after a match with the bits of the reference, and of the weights with softmax in fp64."
)


def step_table(cells: list[Cell]) -> str:
    names = (ESAM, AUSAM, SHARDED, DRAWN)
    lines = [["batch rules, time over SAM", "SAM, ms per step", *names]]
    for cell in cells:
        p = cell["providers"]
        lines.append([cell["label"], number(p[SAM]["ms"]["median"]), *(between(p[name]["over_sam"]) for name in names)])
    return rows(lines, 1)


def draw_table(cells: list[Cell]) -> str:
    lines = [["draw, µs", WITH, WITHOUT, *(f"**{name}**" for name in SCHEMES), *(f"{name}, torch over ours" for name in SCHEMES)]]
    for cell in cells:
        p = cell["providers"]
        times = [number(p[name]["us"]["median"]) for name in (WITH, WITHOUT, *SCHEMES)]
        lines.append([cell["label"], *times, *(between(p[name]["peer_over_ours"]) for name in SCHEMES)])
    return rows(lines, 1)


def weight_table(cells: list[Cell]) -> str:
    lines = [["weights, µs", SOFTMAX, f"**{OURS}**", "torch over ours"]]
    for cell in cells:
        p = cell["providers"]
        times = [number(p[name]["us"]["median"]) for name in (SOFTMAX, OURS)]
        lines.append([cell["label"], *times, between(p[OURS]["peer_over_ours"])])
    return rows(lines, 1)


def target_table(steps: list[Cell], draws: list[Cell], weights: list[Cell]) -> str:
    lines = [["design target", "asked", "reached"]]
    for cell in steps:
        p = cell["providers"]
        lines += [[f"{cell['label']}: {name} over SAM", f"≤ {most}", between(p[name]["over_sam"])] for name, most in TARGETS.items()]
    for cell in draws:
        p = cell["providers"]
        if cell["n"] == LARGE:
            lines += [
                [f"draw, {cell['label']}, {name}: torch.multinomial over ours", f"≥ {FASTER}", between(p[name]["peer_over_ours"])]
                for name in SCHEMES
            ]
    for cell in weights:
        lines.append([f"gibbs_weights, {cell['label']}: softmax over ours", "≥ 1", between(cell["providers"][OURS]["peer_over_ours"])])
    return rows(lines, 1)


def text(machine: str, cells: list[Cell]) -> str:
    """Everything about the cells of ``bench_batches.py``."""
    steps, draws, weights = ([cell for cell in cells if cell["batches"] == kind] for kind in ("steps", "draw", "weights"))
    counts = [cell["rounds"] for cell in cells]
    caption = (
        f"{machine} Medians (20th to 80th percentile) over {min(counts)} to {max(counts)} interleaved rounds, backend "
        f"{cells[0]['backend']}. {CAPTION}"
    )
    tables = ((step_table, steps), (draw_table, draws), (weight_table, weights))
    return "\n\n".join([table(some) for table, some in tables if some] + [target_table(steps, draws, weights), caption])
