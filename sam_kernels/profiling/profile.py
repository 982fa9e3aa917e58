"""Where the time of a training step goes, phase by phase: a table, and on request a figure, numbers and a trace.

    python -m sam_kernels profile cnn --method sam,rw-exact --plot step.png
    python -m sam_kernels profile my_module:make --method esam --json esam.json --trace esam-trace.json

MODEL is ``mlp``, ``cnn`` or ``vit``, which two cores can train, a network of ``profiling.networks``, meant for a GPU, or
``module:function``, which returns ``(model, x, y)`` or ``(model, losses, batch_size)``: see ``profiling.subjects``. Methods are measured in
turns, one step of each in every round. Ctrl-C ends the measurement and shows what there is.

Times are a phase's own, without those inside of it: medians, with the 20th and 80th percentile. On a CUDA device they are those of events
in the stream; ``host ms`` is how long the host took to ask for the work. Before any of that a step of each method is matched with the same
step on the reference backend.

The JSON file holds where, asked (arguments, version, commit), complete, failed (by method) and profiles, of each: method, steps, ms,
host_ms (median, p20, p80, best), launches, and rows by phase: path, calls, ms, share, host_ms, launches.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path as File
from typing import Any

import torch

from ..registry import OPS, check_name
from . import INTERRUPTED, Refused
from .launches import launches_of
from .match import Mismatch
from .methods import DTYPES
from .models import MODELS
from .networks import NETWORKS
from .outputs import Outputs
from .phases import Profile, plot, profile_of
from .plans import refuse_interpreter
from .profile_text import advice, caption, complain, failed_of, report, where_of
from .recorder import Nvtx, Path
from .step_match import Matcher
from .stepping import Found, in_turns, trace
from .subjects import Wish, of_the_user, subject_of
from .training import BASES, METHODS, Preset, Step
from .where import asked

STEPS, WARMUP = 20, 3
ELSEWHERE = {"backend": "--backend", "model": "MODEL", "params": "MODEL", "base_optimizer": "--base", "batch_size": "--batch-size"}


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
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the optimizers, e.g. rho=0.1, or of one method, e.g. m-sam.shards=8; repeatable",
    )
    parser.add_argument("--trace", type=File, metavar="FILE", help="write a Chrome trace of a few further steps, with the phases as labels")
    parser.add_argument("--nvtx", action="store_true", help="phases as NVTX ranges, for Nsight (CUDA)")
    parser.add_argument("--plot", type=File, metavar="FILE", help="write a stacked bar for every method (matplotlib)")
    parser.add_argument("--json", type=File, metavar="FILE", help="write all numbers")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, print; 0, 1 where something failed, 130 after Ctrl-C, with what was measured kept."""
    presets = _checked(arguments)
    outputs = Outputs(json=arguments.json, plot=arguments.plot, trace=arguments.trace)
    dtype = DTYPES[arguments.dtype] if arguments.dtype else None
    steps = {method: _step(method, preset, arguments, dtype) for method, preset in presets.items()}
    where = where_of(arguments, next(iter(steps.values())).subject, options_of(arguments))
    others = [Nvtx()] if arguments.nvtx else []
    found = in_turns(steps, arguments.device, arguments.warmup, arguments.steps, others)
    profiles = _profiles(steps, found, arguments)
    if profiles:
        numbers = {"where": where, "asked": asked(arguments), "complete": not found.interrupted, "failed": failed_of(found)}
        outputs.json(numbers | {"profiles": [profile.as_json() for profile in profiles]})
        outputs.write("plot", lambda path: plot(profiles, f"A training step of {where['label']}", caption(where), path))
        found.then("--trace", lambda: outputs.write("trace", lambda path: trace(_sound(steps, found), path)))
    complain(found, arguments.model)
    if profiles:
        outputs.end(report(profiles, where, not found.interrupted) + advice(arguments, next(iter(presets))))
    elif found.interrupted:
        print("sam-kernels profile: interrupted before a step was measured", file=sys.stderr)
    return INTERRUPTED if found.interrupted else int(bool(found.failed or found.broken or outputs.failed))


def _sound(steps: dict[str, Step], found: Found) -> dict[str, Step]:
    return {method: step for method, step in steps.items() if method not in found.failed}


def _profiles(steps: dict[str, Step], found: Found, arguments: argparse.Namespace) -> list[Profile]:
    """With the launches of a CUDA device, unless Nsight has its counters."""
    cuda, counts = arguments.device == "cuda", dict[str, dict[Path, int] | None]()
    if cuda and not arguments.nvtx:
        found.then("launches", lambda: counts.update({method: launches_of(step) for method, step in _sound(steps, found).items()}))
    return [profile_of(method, recorded, cuda, counts.get(method)) for method, recorded in found.steps.items() if recorded]


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
    if arguments.backend is not None:
        try:
            check_name(arguments.backend)
        except ValueError as error:
            raise Refused(f"--{error}") from None
    dtype = DTYPES[arguments.dtype or "fp32"]
    refuse_interpreter({arguments.backend or op.chosen(arguments.device, dtype) for op in OPS.values()})
    options = options_of(arguments)
    for key in options:
        if "." in key and key.split(".")[0] not in names:
            raise Refused(f"--option names {key!r}, but --method is {arguments.method!r}; expected one of these before the dot")
    return {name: METHODS[name].but(_options_for(name, options)) for name in names}


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    return dict(map(_option, arguments.option))


def _options_for(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those for all methods, and those for this one, which come before them."""
    own = {key.split(".")[1]: value for key, value in options.items() if key.startswith(f"{method}.")}
    return {key: value for key, value in options.items() if "." not in key} | own


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    _, _, key = name.rpartition(".")
    if not equals or not key.isidentifier() or name.count(".") > 1:
        raise Refused(f"--option is {text!r}; expected NAME=VALUE, or METHOD.NAME=VALUE")
    if key in ELSEWHERE:
        raise Refused(f"--option is {text!r}; pass {ELSEWHERE[key]} instead")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _step(method: str, preset: Preset, arguments: argparse.Namespace, dtype: torch.dtype | None) -> Step:
    subject = subject_of(arguments.model, Wish(arguments.batch_size, arguments.device, dtype, arguments.autocast))

    def build(backend: str | None) -> Step:
        return Step(subject, preset, arguments.base, backend=backend or arguments.backend)

    try:
        step = build(None)
        halves = arguments.autocast or subject.dtype.itemsize == 2
        matcher = Matcher(f"{method} on {arguments.model}", subject.model, build, halves)
        if not matcher.check():
            print(f"{matcher.name}: not matched with the reference, which does not repeat its own step", file=sys.stderr)
    except Refused:
        raise
    except Mismatch as error:
        raise Refused(f"{error}; what is wrong is not timed") from None
    except Exception as error:  # errors of the rule show here, and those of the user's code
        texts = [f"{key}={value!r}" for key, value in preset.options.items() if isinstance(value, str) and isinstance(error, TypeError)]
        hint = f" (with {', '.join(texts)}, which is text)" if texts else ""
        theirs = of_the_user(error) and not hint
        raise Refused(f"{method} on {arguments.model}: {error or type(error).__name__}{hint}") from (error if theirs else None)
    return step
