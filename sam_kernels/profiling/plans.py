"""What a benchmark is asked for: cases and the backends of each, or an error that says what is expected, before anything is allocated."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec

import torch

from ..backends import BACKENDS, PREFERENCE, requested
from ..backends.triton import interpreted
from ..registry import OPS
from . import Refused
from .batch_cases import BATCH_OPS, BatchCase, sizes_of
from .cases import LIST_OPS, Case, ListCase, StepCase
from .device import memory
from .measuring import COPY, copied
from .methods import BASES, DTYPES, VARIANTS, Method
from .names import names
from .workloads import WORKLOADS, Workload, named, own

Plan = tuple[Case, list[str]]  # and its backends
DEFAULT = "resnet18"
SHARE = 0.9  # of the free memory


def plans_of(arguments: argparse.Namespace, device: str) -> list[Plan]:
    """All of them, once it is certain that each can be measured."""
    plans = [(case, backends_of(arguments.backend, case, device)) for case in cases_of(arguments, device)]
    refuse_interpreter(backend for _, backends in plans for backend in backends)
    for case, backends in plans:
        refuse_too_large(case, len(backends), device)
    return plans


def cases_of(arguments: argparse.Namespace, device: str) -> Iterator[Case]:
    dtypes = names("--dtype", arguments.dtype, list(DTYPES))
    ops, steps, bases = asked_for(arguments)
    left_out: list[str] = []
    on_lists = [] if arguments.shapes is not None and not arguments.workload else _workloads(arguments)

    def fitting(name: str, make: Callable[[Workload], Case]) -> Case:
        """A case on a workload; the one that adapts to the memory is asked for its size first."""
        whole = make(named(name, 1, 1 << 62))
        each = -(-whole.needed(len(backends_of(arguments.backend, whole, device))) // whole.counts["parameters"])
        return make(named(name, each, int(SHARE * memory(device)[0]) - COPY))

    def on_tensors(make: Callable[[Workload], Case]) -> Iterator[Case]:
        for name in on_lists:
            yield fitting(name, make)
        if arguments.shapes is not None:
            yield make(own(arguments.shapes))

    count = 0
    for dtype in dtypes:
        on_batches = [op for op in ops if op in BATCH_OPS]
        makers: list[Callable[[Workload], Case]] = [partial(ListCase, op, dtype_name=dtype) for op in ops if op in LIST_OPS]
        makers += [partial(StepCase, Method(variant, base, dtype)) for variant in steps for base in bases or ["sgd"]]
        for case in (case for make in makers for case in on_tensors(make)):
            count += 1
            yield case
        for op in on_batches:
            for label, sizes in sizes_of(op, arguments.sizes, arguments.workload and _workloads(arguments), left_out):
                count += 1
                yield BatchCase(op, label, sizes, dtype)
    if not count:
        raise Refused("; ".join(left_out))
    for line in dict.fromkeys(left_out):
        print(f"left out: {line}", file=sys.stderr)


def _workloads(arguments: argparse.Namespace) -> list[str]:
    return names("--workload", arguments.workload or DEFAULT, list(WORKLOADS))


def asked_for(arguments: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Ops, steps and bases; what would change nothing is refused."""
    if arguments.op is None and arguments.step is None:
        raise Refused(
            f"nothing to measure: pass --op, some of {', '.join((*LIST_OPS, *BATCH_OPS))}, or --step, some of {', '.join(VARIANTS)}"
        )
    asked = names("--op", arguments.op, [*LIST_OPS, *BATCH_OPS]) if arguments.op is not None else []
    steps = names("--step", arguments.step, VARIANTS) if arguments.step is not None else []
    bases = names("--base", arguments.base, list(BASES)) if arguments.base is not None else []
    ops = [op for op in asked if not (bases and op.startswith("descend_:")) or op.split(":")[1] in bases]
    if bases and not steps and not any(op.startswith("descend_:") for op in ops):
        raise Refused(f"--base is {arguments.base!r}, which none of --op {arguments.op} has; it is of --step and of descend_")
    if arguments.sizes is not None and not any(op in BATCH_OPS for op in ops):
        raise Refused(f"--sizes is {arguments.sizes!r}, but none of the ops is one on batches: {', '.join(BATCH_OPS)}; tensors: --shapes")
    if arguments.shapes is not None and not steps and not any(op in LIST_OPS for op in ops):
        raise Refused(f"--shapes is {arguments.shapes!r}, but none of the ops is one on tensors: {', '.join(LIST_OPS)}; batches: --sizes")
    return ops, steps, bases


def device_of(asked: str | None) -> str:
    there = torch.cuda.is_available()
    if asked not in (None, "cpu", "cuda"):
        raise Refused(f"--device is {asked!r}; expected cpu or cuda")
    if asked == "cuda" and not there:
        raise Refused("--device is cuda, but torch sees no CUDA device")
    return asked or ("cuda" if there else "cpu")


def refuse_interpreter(backends: Iterable[str] = ("triton",)) -> None:
    """Times of Triton's interpreter say nothing of its kernels."""
    if "triton" in backends and find_spec("triton") is not None and interpreted():
        raise Refused("TRITON_INTERPRET=1 is set; the interpreter is not to be timed: unset it, or choose another --backend")


def backends_of(asked: str | None, case: Case, device: str) -> list[str]:
    """By name, or as the environment asks, or an error that says why not; by default the preferred one that has everything."""

    def why_not(backend: str) -> str | None:
        for op in case.ops:
            try:
                OPS[op].named(backend, device, case.dtype)
            except RuntimeError as error:
                return str(error)
        return None

    able = [backend for backend in (*PREFERENCE.get(device, ()), *BACKENDS) if why_not(backend) is None]
    able = list(dict.fromkeys(able))
    if asked == "all":
        return able
    by_environment = requested(device) if asked is None else None
    if asked is None and by_environment is None:
        return able[:1]
    found = names("--backend", asked, BACKENDS) if asked is not None else [by_environment or ""]
    for backend in found:
        if why := why_not(backend):
            source = "; SAM_KERNELS_BACKEND asks for it" if by_environment else ""
            raise Refused(f"{why.split(' See ')[0]} ({case.name}; here: {', '.join(able)}{source})")
    return found


def refuse_too_large(case: Case, backends: int, device: str) -> None:
    free, total = memory(device)
    needed = case.needed(backends) + copied(case)
    if needed > SHARE * free:
        raise Refused(
            f"{case.name} with {backends} backends needs {needed / 1e9:.3g} GB, but of the {total / 1e9:.3g} GB of this {device} device "
            f"{free / 1e9:.3g} GB are free, and at most {SHARE:.0%} of that is taken: a smaller workload, dtype or fewer backends"
        )
