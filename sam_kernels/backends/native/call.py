"""What every native op takes besides its own arguments: workspace, device and stream, looked up here and never in C++, so that one
CUDA-enabled build also loads beside CPU-only torch."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

TAIL = "Tensor(z!) workspace, int device, int stream) -> ()"  # the end of every schema
_WORKSPACES: dict[tuple[int, int], list[Tensor]] = {}
_NO_WORKSPACE = torch.empty(0, dtype=torch.uint8)


@cache
def native(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.sam_kernels_native, name).default


def tail(like: Tensor, tensors: int) -> tuple[Tensor, int, int]:
    """Workspace, device and stream for a call on the device of ``like`` over ``tensors`` tensors."""
    if not like.is_cuda:
        return _NO_WORKSPACE, 0, 0
    device = like.get_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    return _workspace(device, stream, tensors), device, stream


def place(like: Tensor) -> tuple[Tensor, int, int]:
    """The same for a kernel that needs no workspace."""
    if not like.is_cuda:
        return _NO_WORKSPACE, 0, 0
    device = like.get_device()
    return _NO_WORKSPACE, device, torch.cuda.current_stream(device).cuda_stream


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
