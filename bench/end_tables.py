"""What is said about whole training steps: a table for every network, and how they stand to the targets."""

from typing import Any

from sam_kernels.profiling.networks import NETWORKS
from sam_kernels.profiling.tables import between, number, plain

Row = dict[str, Any]
LOOP, EAGER, CAPTURED, PASSES = "SAM, plain loop", "ours, eager", "ours, captured", "forward + backward"
NORMS, RW_EAGER, RW_CAPTURED = "forward + backward + exact norms", "Reweighted SAM exact, eager", "Reweighted SAM exact, captured"
BASES = {"over_passes": PASSES, "over_loop": LOOP, "over_eager": EAGER, "over_captured": CAPTURED}  # ratios in every row -> to what

TARGETS = (  # networks, method, ratio, bound of the ratio, what it says
    (("resnet18_cifar",), CAPTURED, "over_loop", 1 / 1.3, "captured SAM at least 1.3 times as fast as the plain loop"),
    (("wrn28_10", "vit_b16"), RW_EAGER, "over_eager", 1.08, "exact Reweighted SAM at most 1.08 SAM steps, eager"),
    (("wrn28_10", "vit_b16"), RW_CAPTURED, "over_captured", 1.08, "exact Reweighted SAM at most 1.08 SAM steps, captured"),
    (tuple(NETWORKS), NORMS, "over_passes", 1.1, "exact norms at most 10 % beyond forward and backward"),
)


def table(rows: list[Row]) -> str:
    """A line for every method of one network."""
    first = rows[0]
    shape = "x".join(map(str, first["shape"]))
    precision = "bf16 autocast" if first["autocast"] else "fp32"
    lines = [["method", "ms a step", "samples/s", "over the passes", "over the loop", "optimizer ms", "peak GB", "match"]]
    for row in rows:
        if "ms" not in row:
            why = f"failed: {row['failed']}" if "failed" in row else row.get("missing", "not timed")
            lines.append([row["method"], why if len(why) <= 60 else f"{why[:57]}...", *[""] * 5, row.get("match", "")])
            continue
        ratios = [between(row[key]) if key in row else "" for key in ("over_passes", "over_loop")]
        optimizer, peak = row["optimizer_ms"], row["peak_bytes"]
        cells = ["" if optimizer is None else number(optimizer), "" if peak is None else number(peak / 1e9), row["match"]]
        lines.append([row["method"], between(row["ms"]), number(row["samples_per_s"]), *ratios, *cells])
    head = f"{first['model']}: {first['label']}, inputs {shape}, {first['parameters'] / 1e6:.3g}M parameters, {precision}"
    head += ", channels last" if first["channels_last"] else ""
    return f"{head}\n{plain(lines, 1)}"


def verdicts(rows: list[Row]) -> list[Row]:
    """The targets that hold for one network, and what was measured; null where it was not."""
    model, by_name = rows[0]["model"] if rows else "", {row["method"]: row for row in rows}
    found = []
    for models, method, ratio, bound, what in TARGETS:
        if model not in models or method not in by_name:
            continue
        value = by_name[method].get(ratio) if "ms" in by_name[method] else None
        met = None if value is None else value["median"] <= bound
        found.append({"model": model, "target": what, "method": method, "to": BASES[ratio], "ratio": value, "bound": bound, "met": met})
    return found


def verdict_line(verdict: Row) -> str:
    head, ratio, bound = f"{verdict['model']}: {verdict['target']}", verdict["ratio"], verdict["bound"]
    if ratio is None:
        return f"{head}: not measured"
    said = f"{between(ratio)} of {verdict['to']}, wanted <= {number(bound)}"
    if bound < 1:
        faster = {"median": 1 / ratio["median"], "p20": 1 / ratio["p80"], "p80": 1 / ratio["p20"]}
        said = f"{between(faster)} times as fast as {verdict['to']}, wanted >= {number(1 / bound)}"
    return f"{head}: {'met' if verdict['met'] else 'MISSED'}, {said}"
