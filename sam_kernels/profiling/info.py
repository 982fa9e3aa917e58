"""What is there: backends of every op, the build, the machine, and what the CUDA kernels use of a multiprocessor."""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..backends.native import build_info
from ..registry import OPS, backends_table
from . import Refused
from .kernels import ARCHS, Usage, cuobjdump, usages
from .outputs import Outputs
from .tables import plain
from .where import described, where

LIBRARY = Path(__file__).parents[1] / "_cuda.so"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", help=f"compute capability for registers and occupancy: {', '.join(ARCHS)}, or all (the GPU's, or all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there as well")


def run(arguments: argparse.Namespace) -> int:
    outputs = Outputs(json=arguments.json)
    build = build_info()
    width = max(map(len, build))
    places = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    machine = {device: where(device) for device in places}
    used, why_not = kernels(arguments.arch)
    ops = {
        op.name: {"missing": op.missing, "there": {name: list(found.devices) for name, found in op.implementations.items()}}
        for op in OPS.values()
    }
    whole: dict[str, Any] = {"build": build, "machine": machine, "ops": ops}
    whole["kernels"] = [asdict(u) | {"blocks": u.blocks, "occupancy": u.occupancy} for u in used]
    outputs.json(whole)
    said = [backends_table(), "\nbuild", *(f"  {name:<{width}}  {how}" for name, how in build.items()), "\nmachine"]
    said += [f"  {device}: {described(found)}, {found['memory_bytes'] / 1e9:.3g} GB" for device, found in machine.items()]
    outputs.end("\n".join([*said, f"\nCUDA kernels\n{why_not or table(used)}"]))
    return int(bool(outputs.failed))


def kernels(arch: str | None) -> tuple[list[Usage], str]:
    """Those of one architecture, or of all that were built; else why there is nothing to say."""
    if arch not in (None, "all", *ARCHS):
        raise Refused(f"--arch is {arch!r}; expected one of {', '.join(ARCHS)}, or all")
    if not LIBRARY.exists():
        return [], f"  the library is not built: {build_info()['cuda']}"
    tool = cuobjdump()
    if tool is None:
        return [], "  cuobjdump was not found; it comes with the CUDA toolkit and with Triton"
    try:
        found = usages(LIBRARY, tool)
    except (OSError, subprocess.CalledProcessError) as error:
        return [], f"  {tool} failed: {error}"
    there = sorted({usage.arch for usage in found}, key=int)
    if arch is None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        fitting = [name for name in there if divmod(int(name), 10)[0] == major and divmod(int(name), 10)[1] <= minor]
        arch = fitting[-1] if fitting else None
    if arch not in (None, "all", *there):
        raise Refused(f"--arch is {arch!r}, but the library was built for {', '.join(there)}")
    return [usage for usage in found if arch in (None, "all", usage.arch)], ""


def table(used: list[Usage]) -> str:
    """A line per kernel and dtype, a column per architecture."""
    archs = sorted({usage.arch for usage in used}, key=int)
    by_name: dict[tuple[str, str], dict[str, Usage]] = {}
    for usage in used:
        by_name.setdefault((usage.kernel, usage.dtype), {})[usage.arch] = usage
    lines = [["kernel", "dtype", "threads", *(f"sm_{arch}" for arch in archs)]]
    for (kernel, dtype), found in sorted(by_name.items()):
        cells = [f"{u.registers:>3} {u.shared:>5} {u.stack:>3} {u.occupancy:>5.0%}" if u else "" for u in map(found.get, archs)]
        lines.append([kernel, dtype, str(next(iter(found.values())).threads), *cells])
    return plain(lines, 2) + "\n\nper architecture: registers, bytes of shared memory and of stack, share of the warps that fit at once"
