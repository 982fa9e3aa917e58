"""Ops and who can run them: declare an op once, attach implementations to it, choose one.

``declare`` defines ``torch.ops.sam_kernels.<name>`` from one schema string; backends attach themselves with ``implement``. A call
by name gets exactly that backend or an error; a call without a name gets the first backend of ``backends.PREFERENCE`` that is
there and supports the device and dtype, and the reference where none does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .backends import BACKENDS, PREFERENCE, requested

LIBRARY = torch.library.Library("sam_kernels", "DEF")
OPS: dict[str, Op] = {}
_LISTS = (list, tuple)


@dataclass
class Implementation:
    function: Callable[..., Any]
    devices: Sequence[str]
    dtypes: Sequence[torch.dtype] | None  # None: any floating dtype

    def refuses(self, device: str, dtype: torch.dtype) -> str | None:
        if device not in self.devices:
            return f"runs on {' and '.join(self.devices)} tensors, not on {device}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"supports {', '.join(str(d) for d in self.dtypes)}, not {dtype}"
        return None


@dataclass
class Op:
    name: str
    schema: str
    implementations: dict[str, Implementation] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # backend -> why it is not there
    overload: Any = None  # torch.ops.sam_kernels.<name>.default: looked up once, a lookup costs a microsecond

    def named(self, backend: str, device: str, dtype: torch.dtype) -> Callable[..., Any]:
        """The implementation of ``backend``, or the error that says why not."""
        check_name(backend)
        found = self.implementations.get(backend)
        why = self.missing.get(backend, "not built") if found is None else found.refuses(device, dtype)
        if why is None and found is not None:
            return found.function
        raise RuntimeError(f"backend {backend!r} cannot run {self.name}: {why}. See sam_kernels.show_backends(), or omit backend=")

    def chosen(self, device: str, dtype: torch.dtype) -> str:
        """The backend that the environment asks for, else the first preferred one that is available for this device and dtype."""
        if asked := requested(device):
            return asked
        for backend in PREFERENCE.get(device, ()):
            found = self.implementations.get(backend)
            if found is not None and found.refuses(device, dtype) is None:
                return backend
        return "reference"


def check_name(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {BACKENDS}")


def _first_tensor(arguments: Iterable[Any]) -> Tensor | None:
    """The first floating tensor, which says device and dtype; integers (ids, classes) only accompany it."""
    first = None
    for value in arguments:
        if isinstance(value, _LISTS):
            value = value[0] if value else None
        if isinstance(value, Tensor):
            if value.is_floating_point():
                return value
            first = value if first is None else first
    return first


def declare(
    name: str, schema: str, reference: Callable[..., Any], guard: Callable[[dict[str, Any]], None], fake: Callable[..., Any] | None = None
) -> Op:
    """Define ``sam_kernels::name`` with ``schema`` (the part after the name) and a last argument ``str backend``, empty for any.

    One kernel serves every device: it asks the policy, or for the backend that the caller named, so that a call by name is
    differentiable, traceable and opchecked like any other. ``guard`` refuses arguments, by name, that no kernel could survive.
    """
    op = OPS[name] = Op(name, schema)
    op.implementations["reference"] = Implementation(reference, ("cpu", "cuda", "xpu", "mps"), None)
    LIBRARY.define(name + schema.replace(") ->", ", str backend) ->"))
    names = [argument.split()[-1] for argument in schema[1 : schema.index(") ->")].split(", ")]

    def kernel(*packed: Any) -> Any:
        *arguments, backend = packed
        guard(dict(zip(names, arguments, strict=True)))
        first = _first_tensor(arguments)
        if first is None:  # every list is empty: all backends would do the same nothing
            return reference(*arguments)
        device, dtype = first.device.type, first.dtype
        return op.named(backend or op.chosen(device, dtype), device, dtype)(*arguments)

    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    op.overload = getattr(torch.ops.sam_kernels, name).default
    torch.library.register_fake(f"sam_kernels::{name}", fake or (lambda *_: None), lib=LIBRARY)
    return op


def implement(name: str, backend: str, devices: Sequence[str], dtypes: Sequence[torch.dtype] | None) -> Callable[..., Any]:
    """Decorator: attach an implementation with the op's schema order of arguments."""

    def attach(function: Callable[..., Any]) -> Callable[..., Any]:
        OPS[name].implementations[backend] = Implementation(function, devices, dtypes)
        return function

    return attach


def require_backend(op: Op, backend: str | None, like: Tensor) -> None:
    """Raise where ``call`` would find nobody to run ``op`` on such a tensor; for functions that have something to lose before it."""
    device = like.device.type
    if device != "meta" and not torch.compiler.is_compiling():
        op.named(backend if backend is not None else op.chosen(device, like.dtype), device, like.dtype)


def call(op: Op, backend: str | None, *arguments: Any) -> Any:
    """Run ``op`` through the torch dispatcher, on ``backend`` where it is given."""
    if backend is not None:
        check_name(backend)
    return op.overload(*arguments, backend or "")


def show_backends() -> str:
    """Table of op x backend for CPU and CUDA tensors in fp32: ``*`` chosen, ``+`` available, else why not. Printed and returned."""
    table = backends_table()
    print(table)
    return table


def backends_table() -> str:
    """Without printing it."""
    width = max(map(len, OPS)) + 2
    lines = [f"{'op':<{width}}{'device':<8}" + "".join(f"{name:<11}" for name in BACKENDS)]
    reasons: dict[str, dict[str, list[str]]] = {backend: {} for backend in BACKENDS}  # backend -> why -> ops
    for op in OPS.values():
        for device in ("cpu", "cuda"):
            chosen, row = op.chosen(device, torch.float32), f"{op.name:<{width}}{device:<8}"
            for backend in BACKENDS:
                found = op.implementations.get(backend)
                why = op.missing.get(backend, "not built") if found is None else found.refuses(device, torch.float32)
                row += f"{'*' if backend == chosen else '+' if why is None else '-':<11}"
                if why is not None and found is None and device == "cpu":
                    reasons[backend].setdefault(why, []).append(op.name)
            lines.append(row)
    lines += ["", "* chosen   + available by name   - not available"]
    for backend, whys in reasons.items():
        lines += [f"{backend}: {why}" + (f" ({', '.join(ops)})" if len(whys) > 1 else "") for why, ops in whys.items()]
    if importlib.util.find_spec("sam_kernels._info"):
        lines.append(f"cpp: kernels for {importlib.import_module('sam_kernels._info').cpu_isa()}")
    return "\n".join(lines)
