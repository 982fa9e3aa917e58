"""CUDA graphs: run a function for its launches, and launch them again."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

R = TypeVar("R")


class Recorder(Protocol):
    """What ``graphs.capture`` needs of a device."""

    def warm_up(self, run: Callable[[], object]) -> None: ...
    def watch(self, run: Callable[[], object]) -> None:
        """Run it once more, and raise where the host would wait for the device."""

    def record(self, run: Callable[[], R]) -> R: ...
    def replay(self) -> None: ...


class CudaRecorder:
    """A CUDA graph, warmed up and captured on one stream: what libraries set up for a stream is there when the capture begins."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], object]) -> None:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                run()
        finally:
            current.wait_stream(self.stream)

    def watch(self, run: Callable[[], object]) -> None:
        """A capture that breaks can leave torch's generators and allocator in its middle (pytorch pull request 180395), so what torch
        knows to wait is looked for before."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it does not notice everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.warm_up(run)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, run: Callable[[], R]) -> R:
        device, around = self.stream.device, sys.exc_info()[1]
        current = torch.cuda.current_stream(device)
        try:
            # relaxed: the tables of Triton kernels go through pinned memory, whose allocator asks for the state of events
            with torch.cuda.device(device), torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="relaxed"):
                return run()
        except RuntimeError as error:
            with torch.cuda.device(device):  # where ending the capture fails, torch leaves its own stream
                torch.cuda.set_stream(current)
            first = _first(error, around)
            if "captur" not in f"{error}{first}":
                raise
            raise RuntimeError(
                f"step cannot be captured ({str(first).strip().splitlines()[0]}): it waits for the device in a way that torch does not "
                "notice, or the graph of an earlier loss that is still held, or of DistributedDataParallel, belongs to another stream: del "
                "what earlier steps returned. torch may need a new process after this"
            ) from error

    def replay(self) -> None:
        self.graph.replay()


def _first(error: BaseException, around: BaseException | None) -> BaseException:
    """The error that came first inside of what ``around`` came before; ending a broken capture raises another one."""
    while error.__context__ is not None and error.__context__ is not around:
        error = error.__context__
    return error


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
