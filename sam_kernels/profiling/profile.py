"""Where the time of a training step goes, phase by phase: a table, and on request a figure, numbers and a trace.

    python -m sam_kernels profile cnn --method sam,rw-exact --plot step.png
    python -m sam_kernels profile my_module:make --method esam --json esam.json --trace esam-trace.json

MODEL is ``mlp``, ``cnn`` or ``vit``, which two cores can train, a network of ``profiling.networks``, meant for a GPU, or
``module:function``, which returns ``(model, x, y)`` or ``(model, losses, batch_size)``: see ``profiling.subjects``. Methods are measured in
turns, one step of each in every round. Ctrl-C ends the measurement and shows what there is.

Times are a phase's own, without those inside of it: medians, with the 20th and 80th percentile. On a CUDA device they are those of events
in the stream; ``host ms`` is how long the host took to ask for the work.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..registry import OPS, check_name
from ..spans import listen
from . import Refused
from .launches import launches_of
from .methods import DTYPES
from .models import MODELS
from .networks import NETWORKS
from .phases import Profile, plot, profile_of, table
from .recorder import Labels, Nvtx, Recorder
from .subjects import Wish, subject_of
from .training import BASES, METHODS, Preset, Step
from .where import where as where_it_runs

STEPS, WARMUP, TRACED = 20, 3, 2
INTERRUPTED = 130  # as of a shell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("model", metavar="MODEL", help=f"{', '.join(MODELS | NETWORKS)}, or module:function that returns (model, x, y)")
    parser.add_argument("--method", default="sam", help=f"one or several, with commas: {', '.join(METHODS)} (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="samples in the batch (default: the model's own)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each method that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="steps of each before that (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="of model and inputs (default: the model's own)")
    parser.add_argument("--autocast", action="store_true", help="forwards in bf16 (torch.autocast), weights as they are")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=here, help="default here: %(default)s")
    parser.add_argument("--backend", help="reference, cpp, triton or cuda (default: the preferred one for the device)")
    parser.add_argument("--base", choices=BASES, default="sgd", help="base optimizer (default: %(default)s)")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the optimizer, e.g. shards=8; repeatable")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of a few further steps, with the phases as labels")
    parser.add_argument("--nvtx", action="store_true", help="phases as NVTX ranges, for Nsight (CUDA)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a stacked bar for every method (matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0, 2 for what cannot be measured, 130 after Ctrl-C."""
    try:
        return _run(arguments)
    except Refused as error:
        print(f"sam-kernels profile: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sam-kernels profile: interrupted before a step was measured", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    presets = _checked(arguments)
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    steps = {method: _step(method, preset, arguments, dtype) for method, preset in presets.items()}
    where = _where(arguments, next(iter(steps.values())))
    recorders, complete = _measure(steps, arguments)
    measured = {method: recorder.steps for method, recorder in recorders.items() if recorder.steps}
    if not measured:
        raise KeyboardInterrupt
    cuda = arguments.device == "cuda"
    counts = {method: launches_of(steps[method]) if cuda and complete else None for method in measured}
    profiles = [profile_of(method, found, cuda, counts[method]) for method, found in measured.items()]
    if arguments.json:
        found = {"where": where, "complete": complete, "profiles": [profile.as_json() for profile in profiles]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(_report(profiles, where, complete))
    if arguments.plot:
        plot(profiles, f"A training step of {where['label']}", _caption(where), arguments.plot)
    if arguments.trace and complete:
        _trace(steps, arguments.trace)
    if shutil.which("ncu"):
        print(f"\nkernels one by one:\n{ncu_command(arguments, next(iter(presets)))}")
    return 0 if complete else INTERRUPTED


# ---- what is asked for


def _checked(arguments: argparse.Namespace) -> dict[str, Preset]:
    """The presets by method, once it is certain that everything that was asked for is possible."""
    names = [name.strip() for name in arguments.method.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise Refused(f"--method is {arguments.method!r}; expected one or several of {', '.join(METHODS)}")
    for flag, value, least in (("--steps", arguments.steps, 1), ("--warmup", arguments.warmup, 0)):
        if value < least:
            raise Refused(f"{flag} is {value}; expected at least {least}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise Refused("--device is cuda, but torch sees no CUDA device here")
    if arguments.nvtx and not torch.cuda.is_available():
        raise Refused("--nvtx needs a torch with CUDA and a device; NVTX ranges are for NVIDIA's profilers")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        raise Refused("--plot needs matplotlib: pip install matplotlib")
    for flag, path in (("--trace", arguments.trace), ("--plot", arguments.plot), ("--json", arguments.json)):
        if path is not None and not path.absolute().parent.is_dir():
            raise Refused(f"{flag} is {path}, in a folder that does not exist")
    if arguments.backend is not None:
        try:
            check_name(arguments.backend)
        except ValueError as error:
            raise Refused(f"--{error}") from None
    _refuse_interpreter(arguments)
    options = dict(map(_option, arguments.option))
    return {name: Preset(METHODS[name].name, {**METHODS[name].options, **options}) for name in names}


def _refuse_interpreter(arguments: argparse.Namespace) -> None:
    """Times of Triton's interpreter say nothing of its kernels."""
    dtype = DTYPES[arguments.dtype or "fp32"]
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton" in {
        arguments.backend or op.chosen(arguments.device, dtype) for op in OPS.values()
    }:
        raise Refused("TRITON_INTERPRET=1 is set; the interpreter is not to be timed: unset it, or choose another --backend")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise Refused(f"--option is {text!r}; expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _step(method: str, preset: Preset, arguments: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    subject = subject_of(arguments.model, Wish(arguments.batch_size, arguments.device, dtype, arguments.autocast))
    try:
        step = Step(subject, preset, arguments.base, backend=arguments.backend)
        step()  # errors of the rule show here
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise error if isinstance(error, Refused) else Refused(f"{method} on {arguments.model}: {error}") from error
    return step


# ---- measuring


def _measure(steps: dict[str, Step], arguments: argparse.Namespace) -> tuple[dict[str, Recorder], bool]:
    """In turns, every round in another order; what there is, and whether it is all."""
    recorders, methods = {method: Recorder(arguments.device) for method in steps}, list(steps)
    others = [Nvtx()] if arguments.nvtx else []
    try:
        for turn in _progress(range(arguments.warmup + arguments.steps)):
            if turn == arguments.warmup:
                for recorder in recorders.values():
                    recorder.steps.clear()
            start = turn % len(methods)
            for method in methods[start:] + methods[:start]:
                with recorders[method].step(*others):
                    steps[method]()
    except KeyboardInterrupt:
        if turn < arguments.warmup:  # nothing was measured yet
            for recorder in recorders.values():
                recorder.steps.clear()
        return recorders, False
    return recorders, True


def _progress(turns: Iterable[int]) -> Iterable[int]:
    if importlib.util.find_spec("tqdm") is None:
        return turns
    bar: Iterable[int] = importlib.import_module("tqdm").tqdm(
        turns, desc="steps", leave=False, disable=None
    )  # None: not where nobody looks
    return bar


def _trace(steps: dict[str, Step], path: Path) -> None:
    with torch.profiler.profile() as profile:
        for method, step in steps.items():
            for _ in range(TRACED):
                with torch.profiler.record_function(method), listen(Labels()):
                    step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))


# ---- what is said


def _where(arguments: argparse.Namespace, step: Step) -> dict[str, Any]:
    dtype = step.subject.dtype
    return {
        **where_it_runs(arguments.device),
        "model": arguments.model,
        "label": step.subject.label,
        "batch_size": step.subject.batch_size,
        "parameters": sum(p.numel() for p in step.subject.model.parameters() if p.requires_grad),
        "dtype": next((name for name, known in DTYPES.items() if known == dtype), str(dtype)),
        "autocast": arguments.autocast,
        "backend": arguments.backend or OPS["ascend_"].chosen(arguments.device, dtype),
        "base": arguments.base,
        "options": dict(map(_option, arguments.option)),
        "warmup": arguments.warmup,
    }


def _caption(where: dict[str, Any]) -> str:
    threads = where["threads"]
    on = where["device"] if "cuda" in where else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    dtype = where["dtype"] + (" under bf16 autocast" if where["autocast"] else "")
    return f"batch {where['batch_size']}, {dtype}, {where['base']}, {where['backend']} on {on}"


def _report(profiles: list[Profile], where: dict[str, Any], complete: bool) -> str:
    head = f"{where['label']}, {where['parameters'] / 1e6:.2f}M parameters, {_caption(where)}"
    first = profiles[0].ms["median"]
    parts = [head if complete else f"{head}\ninterrupted: what was measured until then"]
    for profile in profiles:
        over = f", {profile.ms['median'] / first:.2f} x {profiles[0].method}" if profile is not profiles[0] else ""
        parts.append(f"{profile.method}, {profile.steps} step{'s' if profile.steps > 1 else ''}{over}\n{table(profile)}")
    return "\n\n".join(parts)


def ncu_command(arguments: argparse.Namespace, method: str) -> str:
    """Nsight Compute on the kernels of the optimizer alone, in one step behind the warm-up."""
    command = ["ncu", "--nvtx"]
    for name in ("ascend", "descend", "norms", "weights", "draw"):
        command += ["--nvtx-include", f"{name}/"]
    command += ["--set", "full", "-o", f"{method}-ncu", sys.executable, "-m", "sam_kernels", "profile", arguments.model]
    command += ["--method", method, "--device", "cuda", "--nvtx", "--steps", "1", "--warmup", "0", "--base", arguments.base]
    given: Callable[[str, Any], list[str]] = lambda flag, value: [] if value is None else [flag, str(value)]  # noqa: E731
    command += given("--batch-size", arguments.batch_size) + given("--dtype", arguments.dtype) + given("--backend", arguments.backend)
    command += ["--autocast"] if arguments.autocast else []
    return shlex.join(command + [x for option in arguments.option for x in ("--option", option)])
