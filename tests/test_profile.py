"""Spans, what is recorded of the steps of every method, and the command that shows it."""

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_kernels import spans
from sam_kernels.optim import SAM
from sam_kernels.profiling import phases, recorder
from sam_kernels.profiling.launches import attributed
from sam_kernels.profiling.models import Case
from sam_kernels.profiling.recorder import OTHER, Labels, Recorder, ordered
from sam_kernels.profiling.subjects import Wish, of_case
from sam_kernels.profiling.training import METHODS, Preset
from sam_kernels.profiling.training import Step as Training
from sam_kernels.spans import carried, listen, span, spanned

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def enter(self, name: str) -> None:
        self.said.append(name)

    def leave(self, name: str) -> None:
        self.said.append(f"/{name}")


# ---- spans


def test_spans_nest_and_survive_exceptions() -> None:
    log, other = Log(), Log()
    with pytest.raises(KeyError), listen(log, other), span("a"):
        with span("b"):
            pass
        with span("c"):
            raise KeyError
    assert log.said == other.said == ["a", "b", "/b", "c", "/c", "/a"]
    with span("d"):
        pass
    assert log.said[-1] == "/a", "nobody listens any more"


def test_an_inner_listener_takes_the_place_of_an_outer_one() -> None:
    outer, inner = Log(), Log()
    with listen(outer), span("a"), listen(inner), span("b"):
        pass
    assert (outer.said, inner.said) == (["a", "/a"], ["b", "/b"])


def test_a_span_ends_with_the_listener_that_it_began_with() -> None:
    log = Log()
    listening = listen(log)
    listening.__enter__()
    with span("a"):
        listening.__exit__(None, None, None)
    assert log.said == ["a", "/a"]


def test_decorated_functions_are_what_they_were() -> None:
    @spanned("f")
    def f(x: int, *, y: int = 1) -> int:
        """What it says."""
        return x + y

    log = Log()
    assert f(1, y=2) == 3 and f.__doc__ == "What it says."
    with listen(log):
        assert f(1) == 2
    assert log.said == ["f", "/f"]


def calls_in(function: Callable[[], object]) -> list[str]:
    """Names of all functions that are called, of C too."""
    names: list[str] = []

    def hear(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            names.append(argument.__name__ if event == "c_call" else frame.f_code.co_name)

    sys.setprofile(hear)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def spanning() -> None:
    with span("a"):
        pass


def test_without_a_listener_a_span_is_four_calls_and_no_object() -> None:
    assert calls_in(spanning)[1:5] == ["span", "is_dynamo_compiling", "__enter__", "__exit__"]
    assert span("a") is span("b")
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            before = sys.getallocatedblocks()
            for _ in range(1000):
                spanning()
            grown = sys.getallocatedblocks() - before
        assert grown < 20
    finally:
        gc.enable()


def test_threads_do_not_hear_each_other() -> None:
    logs = {name: Log() for name in "xyz"}
    barrier = threading.Barrier(3)

    def work(name: str) -> None:
        with listen(logs[name]) if name != "z" else spans._NOTHING:
            for _ in range(50):
                barrier.wait()
                with span(name):
                    barrier.wait()

    threads = [threading.Thread(target=work, args=name) for name in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs["x"].said == ["x", "/x"] * 50 and logs["y"].said == ["y", "/y"] * 50 and not logs["z"].said
    assert spans._listening == 0


def test_a_listener_can_be_carried_to_a_thread() -> None:
    log = Log()

    def work(listener: spans.Listener | None) -> None:
        with carried(listener), span("a"):
            pass

    with listen(log):
        thread = threading.Thread(target=work, args=[spans.listener()])
        thread.start()
        thread.join()
        work(spans.listener())
    work(None)
    assert log.said == ["a", "/a"] * 2


def test_spans_cut_no_graph_of_torch_compile() -> None:
    torch._dynamo.reset()

    @spanned("g")
    def g(x: Tensor) -> Tensor:
        return x + 1

    def f(x: Tensor) -> Tensor:
        with span("f"):
            return g(2 * x)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]
    log, uncut = Log(), torch.compile(f, backend="eager")
    with listen(log):
        assert uncut(torch.ones(3)).tolist() == [3, 3, 3]
    assert log.said == ["f", "g", "/g", "/f"]
    torch._dynamo.reset()


# ---- what is recorded


def test_times_are_a_phase_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 8.0, 9.0, 15.0, 16.0, 18.0, 20.0])
    monkeypatch.setattr(recorder, "perf_counter", lambda: next(now))
    found = Recorder("cpu")
    with found.step():
        with span("a"), span("b"):  # 1 to 8, 3 to 7
            pass
        with span("b"):  # 9 to 15
            pass
        with pytest.raises(KeyError), span("a"):  # 16 to 18
            raise KeyError
    (step,) = found.steps
    assert step.total.seconds == 20
    assert {path: (phase.seconds, phase.calls) for path, phase in step.phases.items()} == {
        ("a",): (3 + 2, 2), ("a", "b"): (4, 1), ("b",): (6, 1), OTHER: (1 + 1 + 1 + 2, 1),
    }  # fmt: skip


def test_a_step_that_fails_is_not_recorded_and_the_next_one_is() -> None:
    found = Recorder("cpu")
    with pytest.raises(KeyError), found.step(), span("a"):
        raise KeyError
    assert not found.steps
    with found.step(), span("b"):
        pass
    assert list(found.steps[0].phases) == [("b",), OTHER]


def test_events_are_read_once_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.number, Event.made = Event.made, Event.made + 1

        def record(self) -> None:
            self.before = len(waits)

        def elapsed_time(self, end: "Event") -> float:
            assert len(waits) == 2 and end.before == self.before == 1, "waited for before the step, and at its end"
            return 1000.0 * (end.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    found = Recorder("cuda")
    with found.step(), span("a"), span("b"):
        pass
    (step,) = found.steps
    assert {path: phase.seconds for path, phase in step.phases.items()} == {("a",): 2, ("a", "b"): 1, OTHER: 2}
    assert step.total.seconds == 5 and 0 < step.total.host < 1
    made = phases.profile_of("one", found.steps, cuda=True)
    assert made.rows[0].host_ms is not None and "host ms" in phases.table(made)


def test_phases_come_behind_those_that_they_lie_in() -> None:
    steps = []
    for names in (["a", "c"], ["a", "b", "c"]):
        found = Recorder("cpu")
        with found.step():
            for name in names:
                with span(name), span(f"in {name}"):
                    pass
        steps += found.steps
    order = ordered(steps)
    assert order[-1] == OTHER and [path for path in order if len(path) == 1] == [("a",), ("c",), ("b",), OTHER]
    assert all(order[order.index(path) - 1] == path[:1] for path in order if len(path) == 2)


TINY = Case("tiny", lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 10)), (12, 3, 4), classes=10)
TWO_PASSES = {
    "first pass": 1, "first pass/forward": 1, "first pass/backward": 1, "ascend": 1,
    "second pass": 1, "second pass/forward": 1, "second pass/backward": 1, "descend": 1, "other": 1,
}  # fmt: skip
CALLS: dict[str, dict[str, int]] = {
    "sam": TWO_PASSES,
    "asam": TWO_PASSES,
    "stable_sam": TWO_PASSES,
    "rw-exact": {**TWO_PASSES, "first pass/backward/norms": 3, "first pass/weights": 1, "first pass/weighted gradients": 1},
    "rw-logits": {**TWO_PASSES, "first pass/weights": 1},
    "rw-fd": {
        **TWO_PASSES, "first pass/norms": 1, "first pass/norms/perturb": 1, "first pass/norms/forward": 1, "first pass/norms/restore": 1,
        "first pass/weights": 1,
    },
    "m-sam": {name: 3 for name in TWO_PASSES} | {"average": 7, "restore": 2, "descend": 1, "other": 1},
    "esam": {**TWO_PASSES, "second pass/select": 1, "second pass/select/forward": 1, "first pass/draw": 1},
    "ausam": {**TWO_PASSES, "first pass/weights": 1, "first pass/draw": 1, "table": 1},
}  # fmt: skip
CHANGED: dict[str, dict[str, Any]] = {"m-sam": {"shards": 3}}


def training(method: str, device: str = "cpu") -> Training:
    preset = METHODS[method]
    return Training(of_case(TINY, Wish(device=device)), Preset(preset.name, {**preset.options, **CHANGED.get(method, {})}))


def test_every_method_is_tested() -> None:
    assert CALLS.keys() == METHODS.keys()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_phases_of_every_method(method: str, device: str) -> None:
    step, found = training(method, device), Recorder(device)
    for _ in range(3):
        with found.step():
            step()
    last = found.steps[-1]
    assert {"/".join(path): phase.calls for path, phase in last.phases.items()} == CALLS[method]
    slack = 1e-9 if device == "cpu" else 1e-4  # events count in half microseconds
    assert sum(phase.seconds for phase in last.phases.values()) == pytest.approx(last.total.seconds, rel=1e-6, abs=1e-9)
    assert all(phase.seconds >= -slack for phase in last.phases.values())
    assert sum(phase.seconds for path, phase in last.phases.items() if path != OTHER) <= last.total.seconds + slack


@pytest.mark.parametrize("method", METHODS)
def test_listening_changes_no_bit(method: str) -> None:
    results = []
    for listens in (False, True):
        torch.manual_seed(0)
        step, found = training(method), Recorder("cpu")
        losses = []
        for _ in range(4):
            if listens:
                with found.step(Labels()):
                    losses.append(step())
            else:
                losses.append(step())
        results.append([*losses, *(p.detach() for p in step.subject.model.parameters())])
    assert len(found.steps) == 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_failing_pass_ends_its_spans_and_the_next_step_is_whole() -> None:
    net, fails, log = nn.Linear(3, 2), [False, True], Log()
    optimizer = SAM(net.parameters(), "sgd", lr=0.1)

    def closure() -> Tensor:
        if fails and fails.pop(0):
            raise KeyError
        loss = net(torch.ones(4, 3)).sum()
        loss.backward()
        return loss

    with listen(log):
        with pytest.raises(KeyError):
            optimizer.step(closure)
        assert log.said == ["first pass", "/first pass", "ascend", "/ascend", "second pass", "/second pass", "restore", "/restore"]
        log.said.clear()
        optimizer.step(closure)
    assert log.said == ["first pass", "/first pass", "ascend", "/ascend", "second pass", "/second pass", "descend", "/descend"]


def test_launches_belong_to_the_innermost_phase_at_the_time_of_asking() -> None:
    def label(name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"cat": "user_annotation", "name": name, "ts": ts, "dur": dur}

    def kernel(number: int, asked: float, kind: str = "kernel") -> list[dict[str, Any]]:
        call = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": asked, "args": {"correlation": number}}
        return [call, {"cat": kind, "name": "k", "ts": asked + 50, "args": {"correlation": number}}]

    events = [
        label("first pass", 0, 10), label("forward", 1, 2), label("backward", 4, 4), label("norms", 5, 1), label("ascend", 11, 2),
        label("Optimizer.step#SAM.step", -1, 40), {"cat": "gpu_user_annotation", "name": "ascend", "ts": 60, "dur": 2},
        *kernel(1, 2), *kernel(2, 5.5), *kernel(3, 7, "gpu_memcpy"), *kernel(4, 9), *kernel(5, 12), *kernel(6, 12.5), *kernel(7, 20),
        {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 2, "args": {"correlation": 99}},
    ]  # fmt: skip
    assert attributed(events) == {
        ("first pass", "forward"): 1, ("first pass", "backward", "norms"): 1, ("first pass", "backward"): 1, ("first pass",): 1,
        ("ascend",): 2, OTHER: 1,
    }  # fmt: skip
    assert attributed([]) == {}


# ---- numbers for people


def some_profile() -> phases.Profile:
    found = Recorder("cpu")
    for _ in range(2):
        with found.step():
            for outer in ("first pass", "second pass"):
                with span(outer), span("forward"):
                    pass
            with span("first pass"), span("norms"), span("forward"):
                pass
            with span("nobody knows"):
                pass
    return phases.profile_of("made up", found.steps, cuda=False, launches={("first pass", "forward"): 4, OTHER: 1})


def test_bars_are_as_long_as_the_step() -> None:
    made = some_profile()
    parts = phases.segments(made)
    assert sum(ms for *_, ms in parts) == pytest.approx(made.ms["median"])
    assert [part[:2] for part in parts] == [("forward", False), ("norms", False), ("forward", True), ("other", False)]


def test_a_table_with_launches_adds_up() -> None:
    made = some_profile()
    lines = phases.table(made).splitlines()
    assert len({len(line) for line in lines}) == 1 and made.launches == 5
    assert lines[0].split()[-1] == "launches" and lines[-1].split()[-1] == "5"
    forward = next(line for line in lines if line.startswith("  forward"))
    assert forward.split()[1] == "1" and forward.split()[-1] == "4"


def test_a_figure_of_one_tiny_step(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    phases.plot([some_profile()], "title", "subtitle", tmp_path / "bar.png")
    assert (tmp_path / "bar.png").stat().st_size > 1000
