"""What is there: backends of every op, the build, the device, and what the CUDA kernels use of a multiprocessor."""

import argparse

from ..backends.native import build_info
from ..registry import show_backends
from .where import described, where


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    show_backends()
    print("\nbuild")
    for name, said in build_info().items():
        print(f"  {name:<6}{said}")
    print(f"\nmachine\n  {described(where('cpu'))}")
    return 0
