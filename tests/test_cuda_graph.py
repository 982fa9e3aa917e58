"""The order of calls around a CUDA graph, on a stand-in for torch.cuda; what graphs compute is in test_capture.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sam_kernels import cuda_graph


class Stream:
    def __init__(self, device: Any = None, name: str = "side") -> None:
        self.device, self.name = torch.device("cuda:0"), name

    def wait_stream(self, other: "Stream") -> None:
        LOG.append(f"{self.name} waits for {other.name}")


LOG: list[str] = []
MAIN = Stream(name="main")


class Graph:
    def replay(self) -> None:
        LOG.append("replay")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> cuda_graph.CudaRecorder:
    LOG.clear()
    mode = ["warn"]

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        LOG.append(f"enter {name}")
        try:
            yield
        finally:
            LOG.append(f"leave {name}")

    @contextmanager
    def graph(graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        LOG.append(f"capture on {stream.name}, {capture_error_mode}")
        failed = True
        try:
            yield
            failed = False
        finally:
            if failed and BROKEN:
                raise RuntimeError("capture_end: operation failed due to a previous error during capture")
            LOG.append("captured")

    def set_mode(value: str) -> None:
        LOG.append(f"waits: {value}")
        mode[0] = value

    BROKEN.clear()
    for name, value in {
        "CUDAGraph": Graph, "Stream": Stream, "current_stream": lambda device=None: MAIN, "graph": graph,
        "stream": lambda s: scope(s.name), "device": lambda d: scope(str(d)), "set_stream": lambda s: LOG.append(f"back to {s.name}"),
        "get_sync_debug_mode": lambda: mode[0], "set_sync_debug_mode": set_mode,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return cuda_graph.CudaRecorder(torch.device("cuda:0"))


BROKEN: list[int] = []


def test_warm_up_and_capture_share_a_stream(recorder: cuda_graph.CudaRecorder) -> None:
    recorder.warm_up(lambda: LOG.append("run"))
    assert LOG == ["side waits for main", "enter side", "run", "leave side", "main waits for side"]
    LOG.clear()
    assert recorder.record(lambda: 3) == 3
    assert LOG == ["enter cuda:0", "capture on side, relaxed", "captured", "leave cuda:0"]
    recorder.replay()
    assert LOG[-1] == "replay"


def test_whoever_restores_after_a_failure_waits_for_what_was_launched(recorder: cuda_graph.CudaRecorder) -> None:
    with pytest.raises(ZeroDivisionError):
        recorder.watch(lambda: 1 / 0)
    assert LOG == ["waits: error", "side waits for main", "enter side", "leave side", "main waits for side", "waits: warn"]


def test_a_broken_capture_is_told_by_what_broke_it(recorder: cuda_graph.CudaRecorder) -> None:
    BROKEN.append(1)

    def waits() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    try:
        raise KeyError("of the caller")
    except KeyError:
        with pytest.raises(RuntimeError, match=r"step cannot be captured \(operation not permitted when stream is capturing\)"):
            recorder.record(waits)
    assert LOG[-3:] == ["enter cuda:0", "back to main", "leave cuda:0"]


def test_errors_of_the_step_itself_pass(recorder: cuda_graph.CudaRecorder) -> None:
    def raises() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        recorder.record(raises)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
