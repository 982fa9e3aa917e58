"""What can be measured: a case is an op, or a whole step, on inputs of given sizes in one dtype."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.lists import accumulator
from .device import Call, Phases, nothing
from .match import assert_elementwise, assert_reduction
from .methods import DTYPES, STATE, Method, bytes_per_parameter
from .steps import Ours, Step, gradients, parameters, results_of, trajectory
from .workloads import Shape, Workload, elements, tensors

MATCHED = 1 << 22  # elements that a match looks at, at most: the reference in fp64 takes a second for 4 million
STEP_OPS = ("inner_products", "ascend_", "descend_")


class Case(ABC):
    """``moved``: bytes that have to move, an operand as often as it must be read. ``ops``: what a backend must have. ``allocates``: a call
    makes its result anew, as large as an operand; then so does the copy that it is compared with, since a system takes time to hand out
    memory."""

    what: str  # as it is asked for
    on: str  # workload or sizes
    dtype_name: str
    moved: int
    ops: tuple[str, ...]
    counts: dict[str, int]  # of what it works on: tensors, parameters, ...
    allocates: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def name(self) -> str:
        return f"{self.what}, {self.on}, {self.dtype_name}"

    @abstractmethod
    def needed(self, backends: int) -> int:
        """Bytes that are allocated for so many backends side by side."""

    @abstractmethod
    def match(self, backend: str, device: str) -> int:
        """Compare with the reference by the rule of match.py, and say how many elements were looked at."""

    @abstractmethod
    def calls(self, backends: Sequence[str], device: str) -> dict[str, Phases]:
        """What is timed, by backend."""


def part(shapes: Sequence[Shape]) -> list[Shape]:
    """The tensors of a list, in their order, that a match can afford; at least one, of which all elements but its first size are kept."""
    kept, left = [], MATCHED
    for shape in shapes:
        if math.prod(shape) <= left:
            kept.append(shape)
            left -= math.prod(shape)
    if not kept:
        shape = min(shapes, key=math.prod)
        kept = [(max(1, MATCHED // max(1, math.prod(shape[1:]))), *shape[1:])] if len(shape) > 1 else [(MATCHED,)]
    return kept


def temporaries(workload: Workload) -> int:
    """Of the reference, which goes through a list tensor by tensor, in fp32."""
    return 4 * 4 * max(map(math.prod, workload.shapes))


@dataclass(frozen=True)
class ListOp:
    """An op over lists of tensors. ``lists``: name -> (scale of its values, whether it is kept in the accumulation dtype);
    ``reads`` and ``writes`` say which have to move, a list as often as it must be read. ``undone``: a list that every call moves on, and
    the one that it leaves its values in: without putting them back, the hundredth call would work on other numbers than the first."""

    op: str
    call: Callable[..., Any]
    lists: Mapping[str, tuple[float, bool]]
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    undone: tuple[str, str] | None = None


def _momentum(keys: str) -> dict[str, tuple[float, bool]]:
    return {key: (0.2, True) for key in keys}


_STEP_LISTS = {"params": (0.05, False), "stash": (0.05, False), "h": (0.2, False)}
RADIUS = 0.02  # over the root of the number of elements
LIST_OPS = {
    "inner_products": ListOp("inner_products", ops.inner_products, {"g": (0.1, False)}, ("g",)),
    "inner_products:gh": ListOp("inner_products", ops.inner_products, {"g": (0.1, False), "h": (0.2, False)}, ("g", "h")),
    "ascend_": ListOp(
        "ascend_", ops.ascend_, {"params": (0.05, False), "grads": (0.1, False), "stash": (0.0, False)}, ("grads", "grads", "params"),
        ("params", "stash"), undone=("params", "stash"),
    ),
    "ascend_:adaptive": ListOp(
        "ascend_", ops.ascend_, {"params": (0.05, False), "grads": (0.1, False), "stash": (0.0, False)},
        ("grads", "params", "grads", "params"), ("params", "stash"), {"adaptive": True}, ("params", "stash"),
    ),
    "descend_:none": ListOp(
        "descend_", ops.descend_, {"params": (0.05, False), "stash": (0.05, False)}, ("stash",), ("params",), {"base": "none"}
    ),
    "descend_:sgd": ListOp(
        "descend_", ops.descend_, _STEP_LISTS | _momentum("m"), ("stash", "h", "m"), ("params", "m"),
        {"base": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    ),
    "descend_:adamw": ListOp(
        "descend_", ops.descend_, _STEP_LISTS | _momentum("mv"), ("stash", "h", "m", "v"), ("params", "m", "v"),
        {"base": "adam", "lr": 1e-2, "weight_decay": 1e-2, "decoupled": True},
    ),
    "descend_:lion": ListOp(
        "descend_", ops.descend_, _STEP_LISTS | _momentum("m"), ("stash", "h", "m"), ("params", "m"),
        {"base": "lion", "lr": 1e-3, "weight_decay": 1e-2},
    ),
}  # fmt: skip


class ListCase(Case):
    def __init__(self, what: str, workload: Workload, dtype_name: str) -> None:
        self.what, self.workload, self.on, self.dtype_name = what, workload, workload.label, dtype_name
        self.op = LIST_OPS[what]
        self.ops = (self.op.op,)
        self.counts = {"tensors": len(workload.shapes), "parameters": elements(workload.shapes)}
        self.moved = self.counts["parameters"] * sum(map(self._size, (*self.op.reads, *self.op.writes)))

    def _size(self, name: str) -> int:
        return self._dtype_of(name, self.dtype).itemsize

    def _dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        return accumulator(dtype) if self.op.lists[name][1] else dtype

    def needed(self, backends: int) -> int:
        timed = self.counts["parameters"] * sum(map(self._size, self.op.lists)) + temporaries(self.workload)
        return max(timed, elements(part(self.workload.shapes)) * len(self.op.lists) * (self.dtype.itemsize + 4 + 8))

    def _inputs(self, shapes: Sequence[Shape], dtype: torch.dtype, device: str) -> dict[str, Any]:
        """Arguments with the same values in every dtype. State has the sign of h, so that no rounding decides about a sign of Lion's;
        the counts say that it has been written."""
        made: dict[str, Any] = dict(self.op.options or {})
        for k, (name, (scale, kept)) in enumerate(self.op.lists.items()):
            seed = 2 if name in ("h", "m", "v") else k
            via = accumulator(self.dtype) if kept and self.dtype.itemsize > 2 else self.dtype
            made[name] = tensors(shapes, seed, scale, device, via, self._dtype_of(name, dtype))
        for v in made.get("v", ()):
            v.square_()
        if self.op.op == "ascend_":
            made["rho"] = RADIUS * elements(shapes) ** 0.5
        if made.get("base") in ("sgd", "adam", "lion"):
            made["steps"] = torch.full((len(shapes),), 5.0, device=device)
        return made

    def match(self, backend: str, device: str) -> int:
        shapes = part(self.workload.shapes)
        count = elements(shapes)
        runs, outs = [], []
        for name, dtype in ((backend, self.dtype), ("reference", torch.float32), ("reference", torch.float64)):
            runs.append(inputs := self._inputs(shapes, dtype, device))
            outs.append(self.op.call(**inputs, backend=name))
        if outs[0] is not None:  # norms and products
            wide = accumulator(self.dtype)
            truth = outs[2].reshape(-1)
            sizes = truth if len(truth) == 1 else (truth[0] * truth[2]).sqrt().expand(6)  # |x.y| <= |x| |y|
            for k, (x, want) in enumerate(zip(outs[0].reshape(-1), truth, strict=True)):
                assert_reduction(f"{self.name}: result {k}", x, want, count, max(sizes[k].item(), want.abs().item()), wide)
        for name in self.op.writes:
            got, plain, want = (run[name] for run in runs)
            assert_elementwise(f"{self.name}: {name}", got, plain, want, self._dtype_of(name, self.dtype))
        return count

    def calls(self, backends: Sequence[str], device: str) -> dict[str, Phases]:
        inputs = self._inputs(self.workload.shapes, self.dtype, device)
        restore: Call = nothing
        if self.op.undone:
            moved, kept = (inputs[name] for name in self.op.undone)
            torch._foreach_copy_(kept, moved)
            restore = partial(torch._foreach_copy_, moved, kept)
        return {backend: [(restore, partial(self.op.call, **inputs, backend=backend))] for backend in backends}


class StepCase(Case):
    """Both phases of an optimizer's step; setting ``.grad`` between them is not timed."""

    def __init__(self, method: Method, workload: Workload) -> None:
        self.method, self.workload, self.on, self.dtype_name = method, workload, workload.label, method.dtype_name
        self.what = f"step {method.variant} {method.base}"
        self.ops = STEP_OPS
        self.counts = {"tensors": len(workload.shapes), "parameters": elements(workload.shapes)}
        self.state_size = accumulator(method.dtype).itemsize
        self.moved = self.counts["parameters"] * bytes_per_parameter(method, self.state_size)

    def needed(self, backends: int) -> int:
        """Two gradients for all; weights, their clean copy and state for each."""
        size = self.dtype.itemsize
        each = 2 * size + self.state_size * len(STATE[self.method.base])
        timed = self.counts["parameters"] * (2 * size + backends * each) + temporaries(self.workload)
        return max(timed, elements(part(self.workload.shapes)) * 8 * (5 + len(STATE[self.method.base])))

    def match(self, backend: str, device: str) -> int:
        shapes, stored = part(self.workload.shapes), self.dtype if self.dtype.itemsize == 2 else None

        def run(name: str, dtype: torch.dtype | None, stored: torch.dtype | None) -> Any:
            build: Callable[..., Step] = partial(Ours, method=self.method, backend=name)
            return trajectory(build, shapes, self.method, device, dtype, stored)

        runs = (run(backend, None, None), *(run("reference", dtype, stored) for dtype in (torch.float32, torch.float64)))
        for name, got, plain, want in zip(results_of(self.method), *runs, strict=True):
            assert_elementwise(f"{self.name}: {name}", got, plain, want, got[0].dtype)
        return elements(shapes)

    def calls(self, backends: Sequence[str], device: str) -> dict[str, Phases]:
        g, h = gradients(self.workload.shapes, self.method, 0, device)
        return {backend: self._phases(backend, g, h, device) for backend in backends}

    def _phases(self, backend: str, g: list[Tensor], h: list[Tensor], device: str) -> Phases:
        step = Ours(parameters(self.workload.shapes, self.method, device), self.method, backend)
        return [(partial(step.load, g), step.first), (partial(step.load, h), step.second)]
