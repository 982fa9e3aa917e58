"""The multi-tensor table on the host: addresses, sizes and hyperparameters of one call as device tensors, uploaded once.

A call's table holds one record of twelve int64 per tensor (RECORD) and the tensor that each chunk of CHUNK elements belongs to. Both,
and the numbers that a kernel reads, are kept on the device under their content: a call that repeats an earlier one uploads nothing.
A new table goes through pinned memory without waiting. Under CUDA graph capture that copy becomes a node of the graph, so what a
graph reads is never evicted, and what only a graph has written is never handed to a call outside it.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

OPERANDS = ("w", "stash", "h", "g", "q", "m", "v", "v_max")
RECORD = (*OPERANDS, "numel", "first_chunk", "group", "aligned")
CHUNK = 4096  # elements per program of an update; divides evenly into tiles
TILE = 1024  # elements that a program holds in registers at a time: two 16-byte vectors per thread and operand
PARTIALS = 1024  # most programs of a reduction, whatever the GPU: equal inputs give equal bits on every one
LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}  # fused multiply-adds stand in the formulas, nowhere else
ENTRIES = 128  # tables kept


@dataclass(eq=False)
class _Resident:
    tensor: Tensor
    source: Tensor | None = None  # pinned; alive as long as a graph may copy from it again
    stream: torch.cuda.Stream | None = None
    ready: torch.cuda.Event | None = None


_RESIDENT: OrderedDict[Hashable, _Resident] = OrderedDict()
_CAPTURED: set[_Resident] = set()
_LOCK = Lock()


class Table(NamedTuple):
    records: Tensor  # int64 [tensors][len(RECORD)]
    tensor_of: Tensor  # int32 [chunks]
    chunks: int


def resident(device: torch.device, key: Hashable, build: Callable[[], Tensor]) -> Tensor:
    """The device copy of ``build()``, made on the first call with this key."""
    with _LOCK:
        found = _RESIDENT.get((device, key))
        if found is None:
            return _upload(device, (device, key), build())
        _RESIDENT.move_to_end((device, key))
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        if torch.cuda.is_current_stream_capturing():
            _CAPTURED.add(found)  # its upload is done: a capture begins after a synchronize
        elif found.ready is not None and stream != found.stream:
            stream.wait_event(found.ready)
            found.tensor.record_stream(stream)
    return found.tensor


def _upload(device: torch.device, key: Hashable, values: Tensor) -> Tensor:
    if device.type != "cuda":
        entry = _Resident(values)
    else:
        source, stream = values.pin_memory(), torch.cuda.current_stream(device)
        entry = _Resident(source.to(device, non_blocking=True), source, stream)
        if torch.cuda.is_current_stream_capturing():
            _CAPTURED.add(entry)
            return entry.tensor
        entry.source, entry.ready = None, torch.cuda.Event()
        entry.ready.record(stream)
    _RESIDENT[key] = entry
    if len(_RESIDENT) > ENTRIES:
        _RESIDENT.popitem(last=False)
    return entry.tensor


def numbers(device: torch.device, values: Sequence[float]) -> Tensor:
    """``values`` as fp32 on the device, rounded once; beyond its range they become infinite."""
    content = tuple(values)
    return resident(device, ("numbers", content), lambda: torch.tensor(content, dtype=torch.float64).float())


def table(group: Sequence[int] | None = None, **lists: Sequence[Tensor]) -> Table:
    """The table of parallel ``lists`` of at least one element, named as in OPERANDS; lists without tensors are absent."""
    present = {name: tensors for name, tensors in lists.items() if tensors}
    first = next(iter(present.values()))
    device, sizes = first[0].device, tuple(x.numel() for x in first)
    addresses = tuple(tuple(x.data_ptr() for x in present.get(name, ())) for name in OPERANDS)
    rows = tuple(group) if group is not None else (0,) * len(sizes)

    def records() -> Tensor:
        columns = [list(column) or [0] * len(sizes) for column in addresses]
        first_chunk, chunk = [], 0
        for size in sizes:
            first_chunk.append(chunk)
            chunk += -(-size // CHUNK)
        aligned = [int(all(address % 16 == 0 for address in record)) for record in zip(*columns, strict=True)]
        return torch.tensor([*columns, sizes, first_chunk, rows, aligned], dtype=torch.int64).t().contiguous()

    def tensor_of() -> Tensor:
        chunks_of = torch.tensor([-(-size // CHUNK) for size in sizes])
        return torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), chunks_of)

    chunks = sum(-(-size // CHUNK) for size in sizes)
    return Table(resident(device, (addresses, sizes, rows), records), resident(device, ("chunks", sizes), tensor_of), chunks)
