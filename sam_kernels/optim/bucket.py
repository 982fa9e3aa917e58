"""A bucket: the parameters of one dtype on one device, with the flat buffers that the library owns for them.

Stash and state are one allocation each; views of it carry each parameter's shape and strides. The stash exists from the first step on
and is reused; it never enters the optimizer's state. All lists are rows: what compiled backends know of them stays valid until a
parameter moves, so that from step to step only the addresses of gradients are new.
"""

import importlib
import importlib.util
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor

from ..ops.lists import Row, accumulator
from .state import StateBuffers

Layout: Any = None  # where it is not built, Python asks every tensor itself
if hasattr(Tensor, "__dlpack_c_exchange_api__") and importlib.util.find_spec("sam_kernels._rows"):
    Layout = importlib.import_module("sam_kernels._rows").Layout

T = TypeVar("T")
_ZERO = (0,)
_ALIGN = 64  # bytes: every view starts on a cache line, and kernels keep their vector path
_PARTS = 8  # subsets remembered; a model with frozen parameters has one


def flat_views(params: Sequence[Tensor], dtype: torch.dtype) -> Row:
    """Uninitialised tensors like ``params`` (shape and strides), cut from one allocation."""
    unit = _ALIGN // dtype.itemsize
    offsets = [0]
    for p in params:
        offsets.append(offsets[-1] + -(-p.numel() // unit) * unit)
    flat = torch.empty(offsets[-1], dtype=dtype, device=params[0].device)
    return Row(flat.as_strided(p.shape, p.stride(), offset) for p, offset in zip(params, offsets, strict=False))


class Bucket:
    def __init__(self, params: list[Tensor], rows: list[int]) -> None:
        self.params, self.rows = Row(params), rows
        self.device, self.dtype = params[0].device, params[0].dtype
        self.accumulator = accumulator(self.dtype)
        self.stash = flat_views(params, self.dtype)
        self.state = StateBuffers(self.params, self.accumulator, flat_views)
        self.sq_norm = torch.zeros(1, dtype=self.accumulator, device=self.device)
        self.gram = torch.zeros(6, dtype=self.accumulator, device=self.device)
        self.loss_scale = torch.ones(2, dtype=torch.float32, device=self.device)
        self.direction = torch.zeros(2, dtype=self.accumulator, device=self.device)
        self.grads: list[Tensor | None] = [None] * len(params)  # first gradients, where the descent reads them
        self.perturbed: Part | None = None
        self.tables: dict[str, Any] = {}  # options of the groups, see options.py
        self._remember()

    def _remember(self) -> None:
        self.addresses = list(map(Tensor.data_ptr, self.params))
        self.strides = list(map(Tensor.stride, self.params))
        self.shapes = [p.shape for p in self.params]
        self.whole = Part(self, None)
        self._parts: dict[tuple[int, ...], Part] = {}

    def part(self, indices: tuple[int, ...]) -> "Part":
        """The parameters with these indices."""
        if len(indices) == len(self.params):
            return self.whole
        if indices not in self._parts:
            if len(self._parts) == _PARTS:
                self._parts.clear()
            self._parts[indices] = Part(self, indices)
        return self._parts[indices]

    def moved(self) -> bool:
        """Whether a parameter has changed its storage, strides, dtype or shape: the cheap questions first."""
        if self.whole.layout is not None and self.whole.layout.unmoved(self.params):
            return False
        return (
            self.addresses != list(map(Tensor.data_ptr, self.params))
            or self.strides != list(map(Tensor.stride, self.params))
            or any(p.dtype is not self.dtype or p.shape != shape for p, shape in zip(self.params, self.shapes, strict=True))
        )

    def fits(self) -> bool:
        """Whether the parameters are of the kind and layout that the buffers were made for."""
        return all(
            p.dtype == self.dtype and p.device == self.device and p.shape == s.shape and p.stride() == s.stride()
            for p, s in zip(self.params, self.stash, strict=True)
        )

    def follow(self) -> None:
        """Take over the new addresses of parameters that have moved but still fit."""
        perturbed = None if self.perturbed is None else tuple(self.perturbed.indices)
        self.params = Row(self.params)
        self._remember()
        self.perturbed = None if perturbed is None else self.part(perturbed)

    def finish(self) -> None:
        """The step is over: nothing is perturbed, no first gradient is needed any more."""
        self.perturbed, self.grads = None, [None] * len(self.params)


class Part:
    """The parameters of a bucket that take part in a phase: all of them, or those that have a gradient."""

    def __init__(self, bucket: Bucket, indices: tuple[int, ...] | None) -> None:
        self._bucket, self.is_whole = ref(bucket), indices is None  # weak: memory goes with the optimizer, not with the next collection
        self.indices: Sequence[int] = range(len(bucket.params)) if indices is None else indices
        self.params, self.stash = self._rows(bucket.params), self._rows(bucket.stash)
        self.rows = self.pick(bucket.rows)
        self.layout = None if Layout is None else Layout(self.params, Tensor)
        self._state: dict[str, tuple[Row, Row]] = {}

    @property
    def bucket(self) -> Bucket:
        bucket = self._bucket()
        assert bucket is not None, "a part does not outlive its bucket"
        return bucket

    @cached_property
    def index(self) -> Tensor | None:
        """The indices on the device, brought there by the first who asks: a copy that the host waits for."""
        return None if self.is_whole else torch.tensor(self.indices, device=self.bucket.device)

    def pick(self, items: list[T]) -> list[T]:
        return items if self.is_whole else [items[i] for i in self.indices]

    def _rows(self, tensors: Row) -> Row:
        return tensors if self.is_whole else Row(tensors[i] for i in self.indices)

    def gradients(self) -> Row | None:
        """The gradients of these parameters, if parameters and gradients are all where and as they should be; None: look closer."""
        if self.layout is None:
            return None
        addresses = array("q", _ZERO) * len(self.params)
        grads = self.layout.gradients(self.params, addresses)
        return None if grads is None else Row(grads, addresses)

    def state(self, name: str) -> Row:
        """The state buffers of this name, empty where the bucket keeps none."""
        buffers = self.bucket.state.buffers.get(name)
        if buffers is None:
            return _NOTHING
        known = self._state.get(name)
        if known is None or known[0] is not buffers:
            known = self._state[name] = (buffers, self._rows(buffers))
        return known[1]

    def kept(self) -> list[Tensor]:
        """The first gradients of these parameters; one that had none then counts as zero."""
        return Row(torch.zeros_like(p) if g is None else g for p, g in zip(self.params, self.pick(self.bucket.grads), strict=True))


_NOTHING = Row(())
