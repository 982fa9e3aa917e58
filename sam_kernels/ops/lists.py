"""Argument checks shared by all ops, run before anything is written: every error names the argument and the way out."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PerGroup = float | Sequence[float]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Norms, coefficients and step scalars are fp32, and fp64 when the tensors are."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Row(list[Tensor]):
    """A list that is not edited once made, with the addresses of its tensors: what an optimizer passes again and again. Compiled
    backends remember in ``tables`` what they have made of it, and take its tensors as checked."""

    __slots__ = ("__weakref__", "addresses", "tables")

    def __init__(self, tensors: Iterable[Tensor], addresses: "array[int] | None" = None) -> None:
        super().__init__(tensors)
        self.addresses = array("q", list(map(Tensor.data_ptr, self))) if addresses is None else addresses
        self.tables: dict[Any, Any] = {}


def check_lists(anchor: str, lists: Mapping[str, Sequence[Tensor] | None], kept: Sequence[str] = ()) -> None:
    """All lists must match ``lists[anchor]`` tensor by tensor: length, dtype, device, shape and strides, dense and real. The lists
    named in ``kept`` live from step to step and have the accumulation dtype: fp32 where the others are bf16 or fp16."""
    anchors = lists[anchor]
    for name, tensors in lists.items():
        if isinstance(tensors, Tensor):
            raise TypeError(f"{name} is a single tensor; expected a list of tensors: pass [{name}]")
        if tensors is None or anchors is None:
            continue
        if len(tensors) != len(anchors):
            raise ValueError(f"{name} has {len(tensors)} tensors but {anchor} has {len(anchors)}; the lists run in parallel")
        for i, (x, like) in enumerate(zip(tensors, anchors, strict=True)):
            _check_tensor(f"{name}[{i}]", x)
            dtype = accumulator(anchors[0].dtype) if name in kept else anchors[0].dtype
            if x.dtype != dtype or x.device != anchors[0].device:
                raise ValueError(
                    f"{name}[{i}] is {x.dtype} on {x.device} but {anchor}[0] is {anchors[0].dtype} on {anchors[0].device}; "
                    f"expected {dtype}: "
                    "a call takes one dtype and one device, and keeps state in fp32 at least: split or convert the lists"
                )
            if x.shape != like.shape:
                raise ValueError(f"{name}[{i}] has shape {tuple(x.shape)} but {anchor}[{i}] has {tuple(like.shape)}")
            if not same_layout(x, like):
                raise ValueError(
                    f"{name}[{i}] has strides {x.stride()} but {anchor}[{i}] has {like.stride()}; "
                    f"copy it into the same layout: torch.empty_like({anchor}[{i}]).copy_({name}[{i}])"
                )


def _check_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; expected a torch.Tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name} has layout {x.layout}; expected a strided tensor: call .to_dense()")
    if x.is_complex():
        raise TypeError(f"{name} is {x.dtype}; complex tensors are not supported: pass torch.view_as_real of it")
    if not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}; expected a floating-point tensor")
    if not is_dense(x):
        raise ValueError(
            f"{name} has strides {x.stride()} for shape {tuple(x.shape)}; expected non-overlapping and dense: use .contiguous()"
        )


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one gapless range of memory, in any order of dimensions."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(x: Tensor, like: Tensor) -> bool:
    """Whether elements sit at equal offsets: equal strides, those of dimensions of size 1 aside."""
    if x.stride() == like.stride() or x.numel() < 2:
        return True
    return all(a == b or n == 1 for a, b, n in zip(x.stride(), like.stride(), x.shape, strict=True))


def check_aliasing(written: Mapping[str, Iterable[Tensor] | None], read: Mapping[str, Iterable[Tensor] | None]) -> None:
    """No written tensor may share memory with any other tensor of the call."""
    spans = []
    for lists, is_written in ((written, True), (read, False)):
        for name, tensors in lists.items():
            for i, x in enumerate(tensors or ()):
                if x.numel():
                    spans.append(
                        (x.device.index or 0, x.data_ptr(), x.data_ptr() + x.numel() * x.element_size(), is_written, f"{name}[{i}]")
                    )
    spans.sort(key=lambda span: span[:3])
    end: dict[bool, tuple[int, int, str]] = {}  # furthest end so far, of written and of read spans
    for device, begin, stop, is_written, name in spans:
        for kind, (on, furthest, other) in end.items():
            if (kind or is_written) and on == device and begin < furthest:
                raise ValueError(
                    f"{other} and {name} share memory; tensors that the call writes must not alias any other: clone one of them"
                )
        if is_written not in end or end[is_written][0] != device or stop > end[is_written][1]:
            end[is_written] = (device, stop, name)


def check_scalar(name: str, x: Tensor | None, like: Tensor | None, numel: int, dtype: torch.dtype) -> None:
    """An optional device-resident argument: ``numel`` contiguous elements of ``dtype`` beside ``like``."""
    if x is None:
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; expected a torch.Tensor")
    if like is None:  # empty lists: nothing to match
        return
    if x.dtype != dtype or x.shape != (numel,) or not x.is_contiguous() or x.device != like.device:
        raise ValueError(
            f"{name} is {tuple(x.shape)} {x.dtype} on {x.device}; expected {numel} contiguous elements of {dtype} on {like.device}"
        )


def check_group(group: Sequence[int] | None, tensors: int, hyper: Mapping[str, object]) -> tuple[list[int], int]:
    """The group of every tensor and the number of groups, from ``group`` and the longest per-group argument."""
    lengths = {name: len(value) for name, value in hyper.items() if isinstance(value, Sequence)}
    rows = [0] * tensors if group is None else [int(x) for x in group]
    groups = max([max(rows, default=0) + 1, *lengths.values()])
    if len(rows) != tensors:
        raise ValueError(f"group has {len(rows)} entries for {tensors} tensors; expected one group index per tensor")
    if rows and min(rows) < 0:
        raise ValueError(f"group holds {min(rows)}; expected indices >= 0")
    if group is None and groups > 1:
        raise ValueError(
            f"{max(lengths, key=lambda k: lengths[k])} has {groups} entries but group is not given; pass the group of every tensor"
        )
    for name, length in lengths.items():
        if length != groups:
            raise ValueError(f"{name} has {length} entries for {groups} groups; expected one number, or one per group")
    return rows, groups


def hyper_table(groups: int, columns: Mapping[str, PerGroup], nonnegative: Sequence[str] = ()) -> list[float]:
    """The flat [groups][columns] table of hyperparameters; finite everywhere, and not negative in the columns named."""
    values = {name: list(value) if isinstance(value, Sequence) else [value] * groups for name, value in columns.items()}
    for name, column in values.items():
        for x in column:
            if not _is_finite_number(x):
                raise ValueError(f"{name} is {x!r}; expected a finite number")
            if name in nonnegative and x < 0:
                raise ValueError(f"{name} is {x}; expected a number >= 0")
    return [float(values[name][g]) for g in range(groups) for name in columns]


def _is_finite_number(x: object) -> bool:
    try:
        return math.isfinite(x)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
