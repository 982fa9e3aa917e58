"""The command ``python -m sam_kernels``, also ``sam-kernels``: every subcommand is a module of ``sam_kernels.profiling``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from .profiling import COMMANDS, Refused


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sam-kernels", description="Look at, time and profile the kernels of sam_kernels.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f".profiling.{name}", __package__)
        about = (module.__doc__ or "").strip()
        formatter = argparse.RawDescriptionHelpFormatter
        sub = subparsers.add_parser(name, help=about.splitlines()[0], description=about, formatter_class=formatter)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    found = parser.parse_args(arguments)
    try:
        return int(found.run(found) or 0)
    except Refused as error:
        print(f"sam-kernels {found.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
