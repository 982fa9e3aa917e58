"""What is said about a profile: where it was made, the tables of all methods, what failed, and how to look closer."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..registry import OPS
from .methods import DTYPES
from .phases import Profile, table
from .stepping import Found
from .subjects import Subject, of_the_user
from .where import where as where_it_runs

OPTIMIZER = (  # phases in which its kernels run; those of the model are in forward and backward
    "ascend", "descend", "norms", "weights", "weighted gradients", "draw", "select", "perturb", "restore", "average", "table",
)  # fmt: skip


def where_of(arguments: argparse.Namespace, subject: Subject, options: dict[str, Any]) -> dict[str, Any]:
    dtype = subject.dtype
    return {
        **where_it_runs(arguments.device),
        "model": arguments.model,
        "label": subject.label,
        "batch_size": subject.batch_size,
        "parameters": sum(p.numel() for p in subject.model.parameters() if p.requires_grad),
        "dtype": next((name for name, known in DTYPES.items() if known == dtype), str(dtype)),
        "autocast": arguments.autocast,
        "backend": arguments.backend or OPS["ascend_"].chosen(arguments.device, dtype),
        "base": arguments.base,
        "options": options,
        "warmup": arguments.warmup,
    }


def caption(where: dict[str, Any]) -> str:
    threads = where["threads"]
    on = where["device"] if "cuda" in where else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    dtype = where["dtype"] + (" under bf16 autocast" if where["autocast"] else "")
    return f"batch {where['batch_size']}, {dtype}, {where['base']}, {where['backend']} on {on}"


def report(profiles: list[Profile], where: dict[str, Any], complete: bool) -> str:
    head = f"{where['label']}, {where['parameters'] / 1e6:.2f}M parameters, {caption(where)}"
    first = profiles[0].ms["median"]
    parts = [head if complete else f"{head}\ninterrupted: what was measured until then"]
    for profile in profiles:
        over = f", {profile.ms['median'] / first:.2f} x {profiles[0].method}" if profile is not profiles[0] else ""
        parts.append(f"{profile.method}, {profile.steps} step{'s' if profile.steps > 1 else ''}{over}\n{table(profile)}")
    return "\n\n".join(parts)


def ncu_command(arguments: argparse.Namespace, method: str) -> str:
    """Nsight Compute on the kernels of the optimizer alone, in one step behind the warm-up."""
    command = ["ncu", "--nvtx"]
    for name in OPTIMIZER:
        command += ["--nvtx-include", f"{name}/"]
    command += ["--set", "full", "-o", f"{method}-ncu", sys.executable, "-m", "sam_kernels", "profile", arguments.model]
    command += ["--method", method, "--device", "cuda", "--nvtx", "--steps", "1", "--warmup", "0", "--base", arguments.base]
    given: Callable[[str, Any], list[str]] = lambda flag, value: [] if value is None else [flag, str(value)]  # noqa: E731
    command += given("--batch-size", arguments.batch_size) + given("--dtype", arguments.dtype) + given("--backend", arguments.backend)
    command += ["--autocast"] if arguments.autocast else []
    return shlex.join(command + [x for option in arguments.option for x in ("--option", option)])


def failed_of(found: Found) -> dict[str, str]:
    """By method, or by what was to be done behind the steps."""
    return {what: f"{type(error).__name__}: {error}" for what, error in (found.failed | found.broken).items()}


def complain(found: Found, model: str) -> None:
    """What failed, behind the traceback where the user's code raised it."""
    for error in (found.failed | found.broken).values():
        if of_the_user(error):
            traceback.print_exception(error)
    for what, why in failed_of(found).items():
        after = f"{what} on {model} ended after {len(found.steps[what])} measured steps" if what in found.failed else what
        print(f"sam-kernels profile: {after}: {why}", file=sys.stderr)


def advice(arguments: argparse.Namespace, method: str) -> str:
    if arguments.device != "cuda" or arguments.nvtx or not shutil.which("ncu"):
        return ""
    return f"\n\nkernels one by one:\n{ncu_command(arguments, method)}"
