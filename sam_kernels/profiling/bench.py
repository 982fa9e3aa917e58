"""Time ops and whole steps: match with the reference, then time, several backends in interleaved rounds.

  python -m sam_kernels bench --op ascend_ --workload resnet18
  python -m sam_kernels bench --op inner_products,ascend_,descend_ --workload gpt2,vit_b16 --backend all --json out.json --plot out.png
  python -m sam_kernels bench --step sam,asam --base sgd,adamw --shapes 64x3x7x7,64,1000x512 --dtype fp32,bf16
  python -m sam_kernels bench --op draw --sizes 1000000x250000

GB/s counts the bytes that have to move, each operand once, whoever runs the op; "of copy" is that rate over the rate of a torch copy of as
many bytes in the same rounds. On a CUDA device the rates are of the time on the device, by events.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch

from ..backends import BACKENDS, PREFERENCE
from ..backends.triton import interpreted
from ..registry import OPS
from . import Refused
from .batch_cases import BATCH_OPS, SCHEMES_HELP, BatchCase, sizes_of
from .cases import LIST_OPS, Case, ListCase, StepCase
from .device import Phases, copy_phases, entry, launches, memory
from .match import full_precision
from .methods import BASES, DTYPES, VARIANTS, Method
from .report import Result, progress, text
from .timing import Rounds, Times, fill, ratios, spread
from .where import where
from .workloads import WORKLOADS, Workload, named, own

COPY, SMALLEST = 1 << 30, 1 << 12  # bytes moved by a copy, at most and at least
SHORT = 1e-4  # seconds; shorter calls are timed several in a row
MOST = 500  # rounds
DEFAULT = "resnet18"
SHARE = 0.9  # of the free memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what", "comma-separated lists; every combination is measured")
    what.add_argument("--op", metavar="OPS", help=f"{', '.join((*LIST_OPS, *BATCH_OPS))}; without what follows the colon all of its forms")
    what.add_argument("--step", metavar="STEPS", help=f"whole optimizer steps: {', '.join(VARIANTS)}")
    what.add_argument("--base", metavar="BASES", help=f"of steps and of descend_: {', '.join(BASES)} (steps: sgd)")
    on = parser.add_argument_group("on")
    on.add_argument("--workload", metavar="NAMES", help=f"{', '.join(WORKLOADS)} ({DEFAULT})")
    on.add_argument("--shapes", metavar="SHAPES", help="your own list of tensors: 64x3x7x7,64 or a JSON file with a list of lists of sizes")
    on.add_argument("--sizes", metavar="SIZES", help=f"of ops on batches: {SCHEMES_HELP}")
    on.add_argument("--dtype", metavar="DTYPES", default="fp32", help=f"{', '.join(DTYPES)} (fp32)")
    by = parser.add_argument_group("by")
    by.add_argument(
        "--backend", metavar="NAMES", help=f"{', '.join(BACKENDS)}, or all that are there; the first is compared with (preferred)"
    )
    by.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    by.add_argument("--seconds", type=float, default=2.0, help="time for the rounds of each measurement (2)")
    out = parser.add_argument_group("out")
    out.add_argument("--json", metavar="FILE", type=Path, help="write all results there")
    out.add_argument("--plot", metavar="FILE", type=Path, help="draw GB/s as bars, and the copy as a line")


def run(arguments: argparse.Namespace) -> int:
    """Measure what the command line asks for. 0, or 1 where something did not match, or 130 after Ctrl-C, with what was measured kept."""
    device = device_of(arguments.device)
    refuse_interpreter()
    if not arguments.seconds > 0:
        raise Refused(f"--seconds is {arguments.seconds}; expected a number > 0")
    if arguments.plot and find_spec("matplotlib") is None:
        raise Refused("--plot needs matplotlib, which is not installed: pip install matplotlib")
    cases = list(cases_of(arguments, device))
    plans = [(case, backends_of(arguments.backend, case, device)) for case in cases]
    for case, backends in plans:
        refuse_too_large(case, len(backends), device)
    found: Result = {"where": where(device), "device": device, "interrupted": False, "results": []}
    failed = 0
    with progress(len(plans)) as tick:
        for case, backends in plans:
            tick(case.name)
            result, found["interrupted"] = measure(case, backends, device, arguments.seconds)
            failed += any("failed" in own for own in result["backends"].values())
            if any("ms" in own for own in result["backends"].values()) or not found["interrupted"]:
                found["results"].append(result)
            if found["interrupted"]:
                break
    print(text(found))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot and any("copy_gb_per_s" in result for result in found["results"]):
        from .plots import plot

        plot(found, arguments.plot)
    return 130 if found["interrupted"] else int(failed > 0)


# ---- what is asked for


def names(flag: str, given: str, known: Sequence[str]) -> list[str]:
    """The members of a comma-separated list; ``a`` stands for all of ``a:...`` unless it is one itself."""
    found: list[str] = []
    for name in filter(None, (part.strip() for part in given.split(","))):
        some = [name] if name in known else [k for k in known if k.startswith(f"{name}:")]
        if not some:
            raise Refused(f"{flag} is {name!r}; expected some of {', '.join(known)}")
        found += [k for k in some if k not in found]
    if not found:
        raise Refused(f"{flag} is empty; expected some of {', '.join(known)}")
    return found


def cases_of(arguments: argparse.Namespace, device: str) -> Iterator[Case]:
    if not arguments.op and not arguments.step:
        raise Refused(
            f"nothing to measure: pass --op, some of {', '.join((*LIST_OPS, *BATCH_OPS))}, or --step, some of {', '.join(VARIANTS)}"
        )
    dtypes = names("--dtype", arguments.dtype, list(DTYPES))
    bases = names("--base", arguments.base, list(BASES)) if arguments.base else []
    ops = names("--op", arguments.op, [*LIST_OPS, *BATCH_OPS]) if arguments.op else []
    ops = [op for op in ops if not (bases and op.startswith("descend_:")) or op.split(":")[1] in bases]
    steps = names("--step", arguments.step, VARIANTS) if arguments.step else []
    on_lists = [] if arguments.shapes and not arguments.workload else names("--workload", arguments.workload or DEFAULT, list(WORKLOADS))
    if arguments.sizes and not any(op in BATCH_OPS for op in ops):
        raise Refused(f"--sizes is {arguments.sizes!r}, but none of the ops is one on batches: {', '.join(BATCH_OPS)}; tensors: --shapes")

    def fitting(name: str, make: Callable[[Workload], Case]) -> Case:
        """A case on a workload; the one that adapts to the memory is asked for its size first."""
        whole = make(named(name, 1, 1 << 62))
        each = -(-whole.needed(len(backends_of(arguments.backend, whole, device))) // whole.counts["parameters"])
        return make(named(name, each, int(SHARE * memory(device)[0]) - COPY))

    for dtype in dtypes:
        for op in (op for op in ops if op in LIST_OPS):
            for name in on_lists:
                yield fitting(name, partial(ListCase, op, dtype_name=dtype))
            if arguments.shapes:
                yield ListCase(op, own(arguments.shapes), dtype)
        for variant in steps:
            for base in bases or ["sgd"]:
                method = Method(variant, base, dtype)
                for name in on_lists:
                    yield fitting(name, partial(StepCase, method))
                if arguments.shapes:
                    yield StepCase(method, own(arguments.shapes))
        for op in (op for op in ops if op in BATCH_OPS):
            for label, sizes in sizes_of(op, arguments.sizes, arguments.workload):
                yield BatchCase(op, label, sizes, dtype)


def device_of(asked: str | None) -> str:
    there = torch.cuda.is_available()
    if asked not in (None, "cpu", "cuda"):
        raise Refused(f"--device is {asked!r}; expected cpu or cuda")
    if asked == "cuda" and not there:
        raise Refused("--device is cuda, but torch sees no CUDA device")
    return asked or ("cuda" if there else "cpu")


def refuse_interpreter() -> None:
    if find_spec("triton") is not None and interpreted():
        raise Refused("TRITON_INTERPRET=1 is set; timings of the interpreter say nothing about a kernel: unset it")


def backends_of(asked: str | None, case: Case, device: str) -> list[str]:
    """By name or an error that says why not; by default the preferred one that has everything."""

    def why_not(backend: str) -> str | None:
        for op in case.ops:
            try:
                OPS[op].named(backend, device, case.dtype)
            except RuntimeError as error:
                return str(error)
        return None

    able = [backend for backend in (*PREFERENCE.get(device, ()), *BACKENDS) if why_not(backend) is None]
    able = list(dict.fromkeys(able))
    if asked is None:
        return able[:1]
    if asked == "all":
        return able
    found = names("--backend", asked, BACKENDS)
    for backend in found:
        if why := why_not(backend):
            raise Refused(f"{why.split(' See ')[0]} ({case.name}; here: {', '.join(able)})")
    return found


def refuse_too_large(case: Case, backends: int, device: str) -> None:
    free, total = memory(device)
    needed = case.needed(backends) + copied(case)
    if needed > SHARE * free:
        raise Refused(
            f"{case.name} with {backends} backends needs {needed / 1e9:.3g} GB, but of the {total / 1e9:.3g} GB of this {device} device "
            f"{free / 1e9:.3g} GB are free, and at most {SHARE:.0%} of that is taken: a smaller workload, dtype or fewer backends"
        )


# ---- measuring


def copied(case: Case) -> int:
    return min(max(case.moved, SMALLEST), COPY)


def measure(case: Case, backends: Sequence[str], device: str, seconds: float) -> tuple[Result, bool]:
    """What is known of a case after a match and rounds, and whether Ctrl-C ended them."""
    result: Result = {"what": case.what, "on": case.on, "dtype": case.dtype_name, "device": device, "bytes": case.moved, **case.counts}
    info: dict[str, Result] = {backend: {} for backend in backends}
    result["backends"] = info

    def successes(some: Sequence[str], attempt: Callable[[str], None]) -> list[str]:
        """Those with which it raises nothing: a compiler or a driver may raise anything."""
        for backend in some:
            try:
                attempt(backend)
            except Exception as error:
                info[backend]["failed"] = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"
                print(f"{case.name}, {backend}: {info[backend]['failed']}", file=sys.stderr)
        return [backend for backend in some if "failed" not in info[backend]]

    try:
        with full_precision():
            good = successes(backends, lambda backend: result.update(matched=case.match(backend, device)))
        calls = case.calls(good, device) if good else {}
        good = successes(good, lambda backend: once(calls[backend], device))  # a match looks at a part of what is large
        if not good:
            return result, False
        calls = {"copy": copy_phases(copied(case), device), **{backend: calls[backend] for backend in good}}
        entries = {name: entry(phases, device, in_a_row(phases, device)) for name, phases in calls.items()}
        if device == "cuda":
            for backend in good:
                info[backend]["launches"] = launches(calls[backend])
    except KeyboardInterrupt:
        return result, True
    rounds, interrupted = Rounds(entries), False
    try:
        fill(rounds, seconds, MOST)
    except KeyboardInterrupt:
        interrupted = True
        rounds.complete()
    if rounds.times["copy"]:
        describe(result, rounds, good, copied(case), device)
    return result, interrupted


def once(phases: Phases, device: str) -> None:
    for load, phase in phases:
        load()
        phase()
    if device == "cuda":
        torch.cuda.synchronize()


def in_a_row(phases: Phases, device: str) -> int:
    """How many calls make a time that the clock can tell; also their warm-up."""
    if device == "cuda":
        return 1
    timed = entry(phases, device)
    timed()
    begun = perf_counter()
    once = sum(timed())
    return max(1, min(1000, int(SHORT / max(once, perf_counter() - begun, 1e-7))))


def describe(result: Result, rounds: Rounds, backends: Sequence[str], nbytes: int, device: str) -> None:
    def column(name: str, third: int) -> list[float]:
        """Totals over phases: on CUDA an entry holds host, wall and device times."""

        def total(times: Times) -> float:
            size = len(times) // 3
            return sum(times[third * size : (third + 1) * size])

        return [total(times) if device == "cuda" else sum(times) for times in rounds.times[name]]

    copy = [nbytes / t for t in column("copy", 2)]
    result |= {"rounds": len(copy), "copy_bytes": nbytes, "copy_gb_per_s": spread(copy, 1e-9)}
    for backend in backends:
        counted, moved = column(backend, 2), result["bytes"]
        result["backends"][backend] |= {
            "ms": spread(column(backend, 1), 1e3),
            **({"device_ms": spread(counted, 1e3), "host_ms": spread(column(backend, 0), 1e3)} if device == "cuda" else {}),
            "gb_per_s": spread([moved / t for t in counted], 1e-9),
            "share_of_copy": ratios([moved / t for t in counted], copy),
            "over_first": ratios(column(backend, 2), column(backends[0], 2)),
        }
