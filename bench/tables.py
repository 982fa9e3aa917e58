"""Tables of benchmark cells in Markdown: compact (a line per cell), long (a line per provider), overhead, and design targets."""

from typing import Any

from sam_kernels.profiling.tables import between, number

Cell = dict[str, Any]
WORKLOAD_NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_b16": "ViT-B/16", "gpt2": "GPT-2"}
VARIANT_NAMES = {"sam": "SAM", "asam": "ASAM", "stable_sam": "Stable SAM"}
BASE_NAMES = {"sgd": "SGD", "adamw": "AdamW"}
LOOP, PACKAGE, FOREACH = "per-tensor loop", "pytorch_optimizer 4.1.0", "_foreach_ + fused base"

CPU_TARGETS = [  # workload, method, what, provider (None: ours), target
    ("resnet18", "sam-sgd-fp32", "share_of_copy", None, "≥ 0.8"),
    ("resnet18", "sam-sgd-fp32", "ratio_to_ours", LOOP, "≥ 3"),
    ("resnet18", "sam-sgd-fp32", "ratio_to_ours", PACKAGE, "≥ 3"),
    ("resnet18", "sam-sgd-fp32", "ratio_to_ours", FOREACH, "≥ 1.4"),
    ("tiny300", "sam-sgd-fp32", "ratio_to_ours", LOOP, "≥ 15"),
    ("tiny300", "sam-sgd-fp32", "ratio_to_ours", PACKAGE, "≥ 12"),
    ("tiny300", "sam-sgd-fp32", "ratio_to_ours", FOREACH, "≥ 6"),
]
GPU_TARGETS = [
    ("gpt2", "sam-sgd-fp32", "share_of_copy", None, "≥ 0.92"),
    ("resnet50", "sam-sgd-fp32", "ratio_to_ours", LOOP, "≥ 10"),
    ("resnet50", "sam-sgd-fp32", "ratio_to_ours", FOREACH, "≥ 2.5"),
    ("resnet50", "sam-sgd-fp32", "device_ratio_to_ours", FOREACH, "≥ 1.4"),
    ("resnet50", "sam-sgd-fp32", "host_ms", None, "≤ 0.1"),
]
MEASURES = {
    "share_of_copy": "rate over that of a copy",
    "ratio_to_ours": "time over ours",
    "device_ratio_to_ours": "time on the device over ours",
    "host_ms": "ms until enqueued",
}


def rows(lines: list[list[str]], left: int) -> str:
    """Markdown of a header and its lines, the first ``left`` columns aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def is_host(cell: Cell) -> bool:
    return cell["parameters"] == cell["tensors"]


def workload_name(cell: Cell) -> str:
    name = WORKLOAD_NAMES.get(cell["workload"], cell["workload"])
    return f"{name}: {cell['tensors']} tensors, {cell['parameters'] / 1e6:.3g} M"


def method_name(method: str) -> str:
    variant, base, dtype = method.split("-")
    return f"{VARIANT_NAMES[variant]} + {BASE_NAMES[base]}" + ("" if dtype == "fp32" else f", {dtype}")


def ours_of(cell: Cell) -> tuple[str, dict[str, Any]]:
    """The first of ours that did not fail."""
    own = [(name, p) for name, p in cell["providers"].items() if p["ours"]]
    return next(((name, p) for name, p in own if "ms" in p), own[0])


def peer_names(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name, p in cell["providers"].items() if not p["ours"]))


def compact_table(cells: list[Cell]) -> str:
    """Ours in full, and what every peer takes over ours."""
    peers = peer_names(cells)
    lines = [["workload", "step", f"**{ours_of(cells[0])[0]}**, ms", "GB/s", "of copy", "MB", *(f"{name}, over ours" for name in peers)]]
    label = ""
    for cell in cells:
        own = ours_of(cell)[1]
        label, previous = workload_name(cell), label
        ratios = [between(cell["providers"][name]["ratio_to_ours"]) if name in cell["providers"] else "" for name in peers]
        share, memory = own["share_of_copy"]["median"], own["peak_bytes"] / 1e6
        figures = [between(own["ms"]), number(own["gb_per_s"]), number(share), number(memory)]
        lines.append([label if label != previous else "", method_name(cell["method"]), *figures, *ratios])
    return rows(lines, 2)


def host_table(cells: list[Cell]) -> str:
    """Microseconds per tensor."""
    peers = peer_names(cells)
    lines = [["tensors of one element", "step", f"**{ours_of(cells[0])[0]}**, µs per step", "µs per tensor", *peers]]
    for cell in cells:
        scale = 1e3 / cell["tensors"]
        own = ours_of(cell)[1]["ms"]
        figures = [number(1e3 * own["median"]), number(scale * own["median"])]
        figures += [number(scale * cell["providers"][name]["ms"]["median"]) if name in cell["providers"] else "" for name in peers]
        lines.append([str(cell["tensors"]), method_name(cell["method"]), *figures])
    return rows(lines, 2)


def target_table(cells: list[Cell], targets: list[tuple[str, str, str, str | None, str]]) -> str:
    """What the design asks for and what was reached; empty where no cell has a target."""
    lines = [["design target", "asked", "reached"]]
    for workload, method, measure, provider, asked in targets:
        for cell in cells:
            if (cell["workload"], cell["method"]) != (workload, method):
                continue
            entry = cell["providers"].get(provider) if provider else ours_of(cell)[1]
            if entry and measure in entry:
                what = f"{MEASURES[measure]}{': ' + provider if provider else ''}"
                label = f"{WORKLOAD_NAMES.get(workload, workload)}, {method_name(method)}: {what}"
                lines.append([label, asked, between(entry[measure])])
    return rows(lines, 1) if len(lines) > 1 else ""


COLUMNS = {  # header -> (key that must be there, text of one provider)
    "ms per step": ("ms", lambda p: between(p["ms"])),
    "best": ("ms", lambda p: number(p["ms"]["best"])),
    "first + second": ("first_ms", lambda p: f"{number(p['first_ms']['median'])} + {number(p['second_ms']['median'])}"),
    "on the device": ("device_ms", lambda p: between(p["device_ms"])),
    "host": ("host_ms", lambda p: number(p["host_ms"]["median"])),
    "launches": ("launches", lambda p: str(p["launches"])),
    "MB to move": ("bytes", lambda p: number(p["bytes"] / 1e6)),
    "GB/s": ("gb_per_s", lambda p: number(p["gb_per_s"])),
    "of copy": ("share_of_copy", lambda p: number(p["share_of_copy"]["median"])),
    "time over ours": ("ratio_to_ours", lambda p: between(p["ratio_to_ours"])),
    "on the device, over ours": ("device_ratio_to_ours", lambda p: between(p["device_ratio_to_ours"])),
    "MB held": ("held_bytes", lambda p: number(p["held_bytes"] / 1e6)),
    "MB at the peak": ("peak_bytes", lambda p: number(p["peak_bytes"] / 1e6)),
}


def long_table(cells: list[Cell]) -> str:
    present = {key for cell in cells for p in cell["providers"].values() for key in p}
    columns = {header: (key, text) for header, (key, text) in COLUMNS.items() if key in present}
    lines = [["workload", "step", "provider", *columns]]
    for cell in cells:
        label = [workload_name(cell), method_name(cell["method"])]
        for name, p in cell["providers"].items():
            why = p.get("failed") or p.get("absent")
            values = [why] if why else [text(p) if key in p else "" for key, text in columns.values()]
            lines.append([*label, f"**{name}**" if p["ours"] else name, *values, *[""] * (len(columns) - len(values))])
            label = ["", ""]
    return rows(lines, 3)
