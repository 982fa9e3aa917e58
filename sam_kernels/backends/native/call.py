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
_COUNTER = 256  # bytes: kTicketBytes of csrc/cuda/payload.cuh


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


def _capturing(device: int) -> bool:
    if device == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _workspace(device: int, stream: int, tensors: int) -> Tensor:
    """Device memory whose counter, the first bytes, is zero before its first use; kernels leave it at zero. C++ refuses what is too small.

    Eager calls share one per device and stream, and nothing of it is ever freed. Under graph capture every call gets its own out of the
    memory of the graph, with the counter zeroed by the graph itself, so that graphs may be replayed side by side.
    """
    needed = (1 << 17) + 256 * tensors
    if _capturing(device):
        fresh = torch.empty(needed, dtype=torch.uint8, device=f"cuda:{device}")
        fresh[:_COUNTER].zero_()
        return fresh
    kept = _WORKSPACES.setdefault((device, stream), [])
    if not kept or kept[-1].numel() < needed:
        kept.append(torch.zeros(2 * needed, dtype=torch.uint8, device=f"cuda:{device}"))
    return kept[-1]
