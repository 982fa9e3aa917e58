"""CUDA graphs: run a function for its launches, and launch them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

R = TypeVar("R")


class Recorder(Protocol):
    """What ``graphs.capture`` needs of a device."""

    def warm_up(self, run: Callable[[], object]) -> None: ...
    def record(self, run: Callable[[], R]) -> R: ...
    def replay(self) -> None: ...


class CudaRecorder:
    """A CUDA graph, warmed up and captured on one stream: what libraries set up for a stream is there when the capture begins."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], object]) -> None:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            run()
        current.wait_stream(self.stream)

    def record(self, run: Callable[[], R]) -> R:
        current = torch.cuda.current_stream(self.stream.device)
        try:
            # relaxed: the tables of Triton kernels go through pinned memory, whose allocator asks for the state of events
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="relaxed"):
                return run()
        except RuntimeError as error:
            first = _first(error)
            if "captur" not in f"{error}{first}":
                raise
            said = str(first).strip().splitlines()[0]
            raise RuntimeError(
                f"step cannot be captured ({said}); most likely it waits for the device (.item(), printing a tensor, a copy from the "
                "host) or allocates by itself: find the line with torch.cuda.set_sync_debug_mode('error')"
            ) from error
        finally:
            torch.cuda.set_stream(current)  # where ending the capture fails, torch leaves its own

    def replay(self) -> None:
        self.graph.replay()


def _first(error: BaseException) -> BaseException:
    """The error that came first; ending a broken capture raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
