"""The command ``python -m sam_kernels``, also ``sam-kernels``: every subcommand is a module of ``sam_kernels.profiling``."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .backends import requested
from .profiling import CLOSED, COMMANDS, INTERRUPTED, REFUSED, Refused
from .profiling.outputs import Unprinted


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="sam-kernels", description="Look at, time and profile the kernels of sam_kernels.")
    subparsers = whole.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f".profiling.{name}", __package__)
        about = (module.__doc__ or "").strip()
        formatter = argparse.RawDescriptionHelpFormatter
        sub = subparsers.add_parser(name, help=about.splitlines()[0], description=about, formatter_class=formatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where something failed; 2 for what cannot be measured; as of a shell after Ctrl-C and for a closed pipe."""
    name = "sam-kernels"
    try:
        found = parser().parse_args(arguments)
        name = f"{name} {found.command}"
        _check_environment()
        with _as_it_was():
            return int(found.run(found) or 0)
    except Refused as error:
        if error.__cause__ is not None:  # of the user's own code
            traceback.print_exception(error.__cause__)
        print(f"{name}: {error}", file=sys.stderr)
        return REFUSED
    except Unprinted as error:
        if not error.closed:
            print(f"{name}: {error}", file=sys.stderr)
        return CLOSED if error.closed else 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Random numbers and the search path of whoever calls ``main`` are left to them."""
    path = [*sys.path]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        sys.path[:] = path


def _check_environment() -> None:
    try:
        requested("cpu")
    except ValueError as error:
        raise Refused(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
