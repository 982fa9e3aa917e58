"""What is said about the results of a benchmark: a table, and a bar while they are made."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .device import LONGEST
from .tables import between, number, plain
from .where import described

Result = dict[str, Any]
MANY = 1000  # tensors: from there on the checks of a call take as long as the call


@contextmanager
def progress(count: int) -> Iterator[Callable[[str], None]]:
    """A bar where there is somebody to look at it; a function that is told what comes next."""
    if not count or sys.stderr is None or not sys.stderr.isatty() or find_spec("tqdm") is None:
        yield lambda name: None
        return
    from tqdm import tqdm

    with tqdm(total=count, file=sys.stderr, leave=False) as bar:
        begun = False

        def tick(name: str) -> None:
            nonlocal begun
            bar.update(int(begun))
            begun = True
            bar.set_postfix_str(name)

        yield tick


COLUMNS: dict[str, tuple[str, Callable[[Result], str]]] = {  # header -> (key that must be there, text)
    "ms": ("ms", lambda p: between(p["ms"])),
    "ms on the device": ("device_ms", lambda p: between(p["device_ms"])),
    "ms of the host": ("host_ms", lambda p: number(p["host_ms"]["median"])),
    "launches": ("launches", lambda p: str(p["launches"])),
    "GB/s": ("gb_per_s", lambda p: number(p["gb_per_s"]["median"])),
    "of copy": ("share_of_copy", lambda p: number(p["share_of_copy"]["median"])),
    "over the first": ("over_first", lambda p: between(p["over_first"])),
}


def text(found: Result) -> str:
    """A line per backend, and where and how."""
    results = found["results"]
    several = any(len(result["backends"]) > 1 for result in results)
    present = {key for result in results for p in result["backends"].values() for key in p} - (set() if several else {"over_first"})
    columns = {header: column for header, column in COLUMNS.items() if column[0] in present}
    lines = [["what", "on", "dtype", "backend", "MB", *columns]]
    for result in results:
        label = [result["what"], result["on"], result["dtype"]]
        for backend, p in result["backends"].items():
            values = [show(p) if key in p else "failed" if "failed" in p else "" for key, show in columns.values()]
            lines.append([*label, backend, number(result["bytes"] / 1e6), *values])
            label = [""] * len(label)
    copies = [result["copy_gb_per_s"]["median"] for result in results if "copy_gb_per_s" in result]
    said = [plain(lines, 4) if results else "nothing was measured", "", described(found["where"])]
    if copies:
        span = number(min(copies)) if min(copies) == max(copies) else f"{number(min(copies))} to {number(max(copies))}"
        counts = sorted({result["rounds"] for result in results if "rounds" in result})
        rounds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        said.append(
            f"copy: {span} GB/s; medians (20th to 80th percentile) of {rounds} interleaved rounds, after a match with the reference"
        )
        for result in results:
            unit = "parameters" if "parameters" in result else "samples"
            count = result[unit]
            if result.get("matched", count) < count:
                said.append(f"{result['what']}, {result['on']}: matched on {result['matched']:,} of {count:,} {unit}")
    for result in results:
        name = f"{result['what']}, {result['on']}, {result['dtype']}"
        if result.get("copy_allocates"):
            said.append(f"{name}: every call makes its result anew, and so does the copy")
        if result["device"] == "cpu" and result.get("tensors", 0) > MANY and not result["what"].startswith("step"):
            said.append(f"{name}: the checks of {result['tensors']:,} tensors included, which an optimizer does not repeat: see --step")
        for backend, p in result["backends"].items():
            if "failed" in p:
                said.append(f"{name}, {backend}: {p['failed']}" + (f"; {result['rounds']} rounds were complete" if "ms" in p else ""))
            if "host_ms" in p and p["host_ms"]["median"] > 1e3 * LONGEST:
                said.append(f"{name}, {backend}: the host takes longer than the device can be kept waiting, and shows in its time")
    if found["interrupted"]:
        said.append("interrupted: the rest was not measured")
    return "\n".join(said)
