"""What a result was measured on."""

import os
import platform
import subprocess
from argparse import Namespace
from datetime import date
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .device import memory


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def isa() -> str:
    """Instruction set of the C++ kernels that run here."""
    if find_spec("sam_kernels._info") is None:
        return "no C++ kernels"
    return str(import_module("sam_kernels._info").cpu_isa())


def commit(root: Path) -> str:
    """Of the checkout at ``root``, and whether it was changed since."""
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (", modified" if dirty else "")


def asked(arguments: Namespace) -> dict[str, Any]:
    """The words of a command, as JSON can hold them, and what it is a command of."""
    words = {name: value if isinstance(value, int | float | str | list | None) else str(value) for name, value in vars(arguments).items()}
    return {
        "arguments": {name: value for name, value in words.items() if name != "run"},
        "version": package_version("sam-kernels"),
        "commit": commit(Path(__file__).parents[2]),
    }


def where(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "memory_bytes": memory(device)[1],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of others: taken before anything is timed
        "isa": isa(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
        "date": date.today().isoformat(),
    }
    return found | ({"cuda": torch.version.cuda} if device == "cuda" else {})


def described(found: dict[str, Any]) -> str:
    host = f"{found['cores']} cores, {found['threads']} threads, load {found['load']:.1f}, {found['isa']}"
    return f"{found['device']} ({host}); torch {found['torch']}, Triton {found['triton']}; {found['date']}"
