"""The compiled backends ``cpp`` and ``cuda``: load the libraries, define their private ops, attach them to the public ones.

A native op takes the lists of a call as one table of sizes and addresses, made here and kept with the lists that an optimizer passes
again and again (``ops.lists.Row``): from step to step only the addresses of new gradients are written into it. The CUDA stream is
looked up here, never in C++, so that one CUDA-enabled build also loads beside CPU-only torch.
"""

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from ..ops.guards import KEPT
from ..ops.lists import Row, accumulator
from ..registry import OPS, implement

_NATIVE = torch.library.Library("sam_kernels_native", "DEF")
_TAIL = "Tensor(z!) workspace, int device, int stream) -> ()"
_SCHEMAS = {  # a table instead of the lists; numbers that grow with the groups as tensors
    "inner_products": "(Tensor table, float eta, Tensor(a!) gram, " + _TAIL,
    "ascend_": "(Tensor table, Tensor(a!) sq_norm, Tensor(b!)? gram, Tensor(c!)? q_steps, Tensor? rho, Tensor? direction_device, "
    "Tensor hyper, float[] direction, float[] ema, float eps, bool normalize, str phase, " + _TAIL,
    "descend_": "(Tensor table, Tensor(a!)? steps, Tensor(b!)? gram, Tensor? sq_norm, Tensor? found_inf, Tensor? loss_scale, Tensor? lr, "
    "Tensor hyper, str base, Tensor coefficients, bool write_q, bool match_norm, float max_norm, bool decay_at_perturbed, int needed, "
    "int given, " + _TAIL,
}
_OPERANDS = ("params", "stash", "h", "g", "q", "m", "v", "v_max")  # csrc/core/tensor_table.h
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FLOATS = {"cpp": _DTYPES, "cuda": (torch.float32, torch.bfloat16, torch.float16)}
_DEVICE = {"cpp": "cpu", "cuda": "cuda"}
_WORKSPACES: dict[tuple[int, int], list[Tensor]] = {}
_NO_WORKSPACE = torch.empty(0, dtype=torch.uint8)


def build_info() -> dict[str, str]:
    """What setup.py built and why not, one line per library."""
    try:
        from .. import _build_info
    except ImportError:
        return {name: "not built (run `make setup` or `pip install .`)" for name in ("cpp", "cuda", "rows", "info")}
    return dict(_build_info.LIBRARIES)


def load() -> None:
    """Attach every compiled library that is there; record the reason for every one that is not."""
    for name, schema in _SCHEMAS.items():
        _NATIVE.define(name + schema)
    for backend, library in (("cpp", "_cpu"), ("cuda", "_cuda")):
        why = _load_library(backend, Path(__file__).parent.parent / f"{library}.so")
        if why is None and backend == "cuda" and not torch.cuda.is_available():
            why = "built, but torch sees no CUDA GPU"
        for op in OPS.values():
            if why is not None:
                op.missing[backend] = why
        if why is None:
            for name, function in (("inner_products", _inner_products), ("ascend_", _ascend), ("descend_", _descend)):
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


# ---- tables


class Table:
    """The words of one call's lists: [count, place of the dtype, place of every list or -1, sizes, groups, addresses list by list]."""

    def __init__(self, lists: Sequence[Sequence[Tensor]], group: Sequence[int] | None) -> None:
        first = next(x for x in lists if x)
        self.count, self.group = len(first), group
        self.rows = [ref(x) if isinstance(x, Row) else None for x in lists]  # weak: a table must not keep gradients alive
        places = [-1] * len(lists)
        for place, k in enumerate(k for k, x in enumerate(lists) if x):
            places[k] = place
        dtype = next((x[0].dtype for x, name in zip(lists, _OPERANDS, strict=True) if x and name not in KEPT), first[0].dtype)
        self.words = array("q", [self.count, _DTYPES.index(dtype), *places, *map(Tensor.numel, first), *(group or [0] * self.count)])
        self.begin = [len(self.words) + place * self.count for place in places]
        for x in lists:
            if x:
                self.words.extend(_addresses(x))
        self.tensor = torch.frombuffer(self.words, dtype=torch.int64)

    def follow(self, lists: Sequence[Sequence[Tensor]]) -> Tensor:
        """The table for these rows, which are where those were that it was made of, or new."""
        for k, row in enumerate(lists):
            known = self.rows[k]
            if isinstance(row, Row) and row and (known is None or known() is not row):
                self.words[self.begin[k] : self.begin[k] + self.count] = row.addresses
                self.rows[k] = ref(row)
        return self.tensor


def _addresses(tensors: Sequence[Tensor]) -> Sequence[int]:
    return tensors.addresses if isinstance(tensors, Row) else array("q", list(map(Tensor.data_ptr, tensors)))


def _table(op: str, lists: Sequence[Sequence[Tensor]], group: Sequence[int] | None) -> Tensor:
    owner = next(x for x in lists if x)
    if not (isinstance(owner, Row) and all(isinstance(x, Row) for x in lists if x)):
        return Table(lists, group).tensor
    key = (op, *map(bool, lists))
    known = owner.tables.get(key)
    if known is None or known.group is not group:
        known = owner.tables[key] = Table(lists, group)
    return known.follow(lists)


@lru_cache(maxsize=256)
def _numbers(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- the ops


def _native(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.sam_kernels_native, name).default


def _inner_products(g: list[Tensor], h: list[Tensor], q: list[Tensor], weights: list[Tensor], eta: float) -> Tensor:
    like = next(x[0] for x in (g, h, q) if x)
    gram = like.new_empty(6, dtype=accumulator(like.dtype))
    table = _table("inner_products", (weights, (), h, g, q, (), (), ()), None)
    _native("inner_products")(table, eta, gram, *_tail(like, max(len(g), len(h), len(q))))
    return gram


def _ascend(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str,
) -> None:  # fmt: skip
    if not params:
        return (
            OPS["ascend_"]
            .implementations["reference"]
            .function(
                params, grads, stash, q, sq_norm, gram, q_steps, rho, direction_device, group, hyper, direction, ema, eps, normalize, phase
            )
        )
    table = _table("ascend_", (params, stash, (), grads, q, (), (), ()), group)
    _native("ascend_")(table, sq_norm, gram, q_steps, rho, direction_device, _numbers(tuple(hyper)), direction, ema, eps, normalize, phase,
                       *_tail(sq_norm, len(params)))  # fmt: skip
    return None


def _descend(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], m: list[Tensor], v: list[Tensor],
    v_max: list[Tensor], steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None,
    loss_scale: Tensor | None, lr: Tensor | None, group: list[int], hyper: list[float], base: str, coefficients: list[float],
    write_q: bool, match_norm: bool, max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    if params:
        table = _table("descend_", (params, stash, h, g, q, m, v, v_max), group)
        _native("descend_")(table, steps, gram, sq_norm, found_inf, loss_scale, lr, _numbers(tuple(hyper)), base,
                            _numbers(tuple(coefficients)), write_q, match_norm, max_norm, decay_at_perturbed, needed, given,
                            *_tail(params[0], len(params)))  # fmt: skip


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
