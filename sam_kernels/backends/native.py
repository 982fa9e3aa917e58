"""The compiled backends ``cpp`` and ``cuda``: load the libraries, define their private ops, attach them to the public ones.

The native ops live in the namespace ``sam_kernels_native`` with the public schema plus what only native code needs: an output
instead of a return value, a persistent workspace, the device index and the CUDA stream. The stream is looked up here, never in
C++, so that one CUDA-enabled build also loads beside CPU-only torch.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.lists import accumulator
from ..registry import OPS, implement

_NATIVE = torch.library.Library("sam_kernels_native", "DEF")
_TAIL = ", Tensor(z!) workspace, int device, int stream) -> ()"
_FLOATS = {"cpp": (torch.float32, torch.float64), "cuda": (torch.float32,)}
_DEVICE = {"cpp": "cpu", "cuda": "cuda"}
_WORKSPACES: dict[tuple[int, int], list[Tensor]] = {}
_NO_WORKSPACE = torch.empty(0, dtype=torch.uint8)


def build_info() -> dict[str, str]:
    """What setup.py built and why not, one line per library."""
    try:
        from .. import _build_info
    except ImportError:
        return {name: "not built (run `make setup` or `pip install .`)" for name in ("cpp", "cuda", "info")}
    return dict(_build_info.LIBRARIES)


def load() -> None:
    """Attach every compiled library that is there; record the reason for every one that is not."""
    for name in ("inner_products", "ascend_", "descend_"):
        schema = OPS[name].schema.replace(") -> Tensor", ", Tensor(a!) gram) -> ()")
        _NATIVE.define(name + schema.replace(") -> ()", _TAIL))
    for backend, library in (("cpp", "_cpu"), ("cuda", "_cuda")):
        why = _load_library(backend, Path(__file__).parent.parent / f"{library}.so")
        if why is None and backend == "cuda" and not torch.cuda.is_available():
            why = "built, but torch sees no CUDA GPU"
        for op in OPS.values():
            if why is not None:
                op.missing[backend] = why
            else:
                _attach(op.name, backend)


def _load_library(backend: str, path: Path) -> str | None:
    if not path.exists():
        said = build_info()[backend]
        return f"{path.name} is missing although it was built: build again" if said.startswith("built") else said
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def _attach(name: str, backend: str) -> None:
    native = getattr(torch.ops.sam_kernels_native, name).default

    def in_place(*arguments: Any) -> None:
        params = arguments[0]
        if params or name == "ascend_":  # an empty ascent still writes its norm
            native(*arguments, *_tail(params[0] if params else arguments[4], len(params)))

    def inner_products(*arguments: Any) -> Tensor:
        like = next(x[0] for x in arguments[:4] if x)
        gram = like.new_empty(6, dtype=accumulator(like.dtype))
        native(*arguments, gram, *_tail(like, max(map(len, arguments[:4]))))
        return gram

    implement(name, backend, (_DEVICE[backend],), _FLOATS[backend])(inner_products if name == "inner_products" else in_place)


def _tail(like: Tensor, tensors: int) -> tuple[Tensor, int, int]:
    if not like.is_cuda:
        return _NO_WORKSPACE, 0, 0
    device = like.get_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    return _workspace(device, stream, tensors), device, stream


def _workspace(device: int, stream: int, tensors: int) -> Tensor:
    """Device memory that is zero before its first use; kernels leave their counters at zero. C++ refuses one that is too small.

    Eager calls share one per device and stream. Under graph capture every call gets its own, zeroed by the graph itself, so that
    graphs may be replayed side by side. Nothing is ever freed: a graph may still point to it.
    """
    needed = (1 << 19) + 256 * tensors
    capturing = torch.cuda.is_current_stream_capturing()
    kept = _WORKSPACES.setdefault((device, -1 if capturing else stream), [])
    if capturing or not kept or kept[-1].numel() < needed:
        kept.append(torch.zeros(2 * needed, dtype=torch.uint8, device=f"cuda:{device}"))
    return kept[-1]
