"""The compiled backends ``cpp`` and ``cuda``: load the libraries, define their private ops, attach them to the public ones.

A module of this package has ``SCHEMAS`` of private ops, and ``FUNCTIONS``: public op -> function with the op's arguments in order.
``CPU_ONLY`` names those that the CUDA library does not have.
"""

from pathlib import Path

import torch

from ...registry import OPS, implement
from . import draw, layers, losses, products, step

_NATIVE = torch.library.Library("sam_kernels_native", "DEF")
_MODULES = (step, products, layers, losses, draw)
_LIBRARIES = {"cpp": "_cpu", "cuda": "_cuda"}
_DEVICE = {"cpp": "cpu", "cuda": "cuda"}
_HALVES = (torch.bfloat16, torch.float16)
_FLOATS = {"cpp": (torch.float32, torch.float64, *_HALVES), "cuda": (torch.float32, *_HALVES)}


def build_info() -> dict[str, str]:
    """What setup.py built and why not, one line per library."""
    try:
        from ... import _build_info
    except ImportError:
        return {name: "not built (run `make setup` or `pip install .`)" for name in ("cpp", "cuda", "rows", "info")}
    return dict(_build_info.LIBRARIES)


def load() -> None:
    """Attach every compiled library that is there; record the reason for every one that is not."""
    for module in _MODULES:
        for name, schema in module.SCHEMAS.items():
            _NATIVE.define(name + schema)
    for backend, library in _LIBRARIES.items():
        why = _load_library(backend, Path(__file__).parents[2] / f"{library}.so")
        if why is None and backend == "cuda" and not torch.cuda.is_available():
            why = "built, but torch sees no CUDA GPU"
        for module in _MODULES:
            for name, function in module.FUNCTIONS.items():
                if backend == "cuda" and name in getattr(module, "CPU_ONLY", ()):
                    OPS[name].missing[backend] = "has no CUDA C++ kernel; triton serves this op"
                elif why is not None:
                    OPS[name].missing[backend] = why
                else:
                    implement(name, backend, (_DEVICE[backend],), _FLOATS[backend])(function)


def _load_library(backend: str, path: Path) -> str | None:
    if not path.exists():
        said = build_info()[backend]
        return f"{path.name} is missing although it was built: build again" if said.startswith("built") else said
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None
