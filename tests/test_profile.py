"""Spans, what is recorded of the steps of every method, and the command that shows it."""

import argparse
import gc
import json
import shlex
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
from sam_kernels.profiling import phases, profile, recorder
from sam_kernels.profiling.launches import attributed
from sam_kernels.profiling.models import MODELS, Case
from sam_kernels.profiling.recorder import OTHER, Labels, Recorder, ordered
from sam_kernels.profiling.subjects import Wish, of_case, subject_of
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


# ---- the command

USER = """
import torch
import torch.nn.functional as F
from torch import nn
from sam_kernels import ops

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

def batch(n=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)

def make():
    return (net(), *batch())

def sized(batch_size):
    return (net(), *batch(batch_size or 6))

def stubborn(batch_size=None):
    return (net(), *batch(12))

def of_losses(dtype=None):
    model, (x, y) = net().to(dtype), batch()
    x = x.to(dtype)
    def losses(index=None):
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return F.cross_entropy(model(xb), yb, reduction="none")
    return model, losses, 12

def of_pairs():
    model, (x, y) = net(), batch()
    return model, lambda index=None: ops.cross_entropy_sample(model(x if index is None else x[index]), y if index is None else y[index]), 12

calls = 0
def interrupted():
    model, (x, y) = net(), batch()
    def losses(index=None):
        global calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return F.cross_entropy(model(x), y, reduction="none")
    return model, losses, 12

def frozen():
    return (net().requires_grad_(False), *batch())

def reduced():
    model, (x, y) = net(), batch()
    return model, lambda index=None: F.cross_entropy(model(x), y), 12

def soft(): return net(), batch()[0], torch.zeros(12, 3)
def uneven(): return net(), batch()[0], batch(5)[1]
def pair(): return net(), batch()[0]
def nothing(): pass
def function_first(): return (net, *batch())
def list_second(): return net(), [1.0], 12
def size_of_tensor(): return net(), lambda index=None: 0, torch.tensor(12)
def needy(seed): return make()
constant = 3
"""


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    given = [*words, *([] if "--warmup" in words else ["--warmup", "1"]), *([] if "--device" in words else ["--device", "cpu"])]
    return profile.run(parser.parse_args(given))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``theirs.py``, in which the command is called."""
    (tmp_path / "theirs.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("theirs", None)
    return tmp_path


def test_everything_at_once(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {flag: user / f"{flag}.{end}" for flag, end in (("json", "json"), ("plot", "png"), ("trace", "trace"))}
    options = [word for flag, path in files.items() for word in (f"--{flag}", str(path))]
    assert call("theirs:make", "--method", "sam,rw-exact,m-sam", "--steps", "3", "--option", "rho=0.1", *options) == 0
    said = capsys.readouterr().out
    found = json.loads(files["json"].read_text())
    where, profiles = found["where"], {one["method"]: one for one in found["profiles"]}
    assert found["complete"] and list(profiles) == ["sam", "rw-exact", "m-sam"]
    assert (where["model"], where["batch_size"], where["dtype"], where["parameters"]) == ("theirs:make", 12, "fp32", 67)
    assert where["options"] == {"rho": 0.1}
    for name, one in profiles.items():
        assert one["steps"] == 3 and 0 < one["ms"]["p20"] <= one["ms"]["median"] <= one["ms"]["p80"] and one["launches"] is None
        assert sum(row["share"] for row in one["rows"]) == pytest.approx(1)
        assert one["rows"][-1]["path"] == ["other"]
        (ascend,) = [row for row in one["rows"] if row["path"] == ["ascend"]]
        assert ascend["calls"] == (4 if name == "m-sam" else 1)
        block = said.split(f"\n{name}, 3 steps", 1)[1].split("\n\n")[0]
        assert [line.split("  ")[0] for line in block.splitlines() if line.startswith("ascend")] == ["ascend"]
        assert "100.0%" in block.splitlines()[-1]
    assert "12 x sam" not in said and " x sam\n" in said and "batch 12, fp32, sgd" in said
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    labels = {event["name"] for event in json.loads(files["trace"].read_text())["traceEvents"] if event.get("cat") == "user_annotation"}
    assert {"sam", "m-sam", "ascend", "first pass", "weighted gradients", "average"} <= labels


@pytest.mark.parametrize(("function", "words", "expected"), [
    ("make", [], (12, "fp32")), ("make", ["--batch-size", "5", "--dtype", "fp64"], (5, "fp64")),
    ("sized", [], (6, "fp32")), ("sized", ["--batch-size", "40"], (40, "fp32")), ("of_losses", [], (12, "fp32")),
    ("of_losses", ["--dtype", "fp64"], (12, "fp64")), ("of_pairs", ["--method", "sam,rw-logits,esam,ausam"], (12, "fp32")),
])  # fmt: skip
def test_functions_of_users(user: Path, function: str, words: list[str], expected: tuple[int, str]) -> None:
    path = user / "out.json"
    assert call(f"theirs:{function}", *words, "--steps", "1", "--base", "adamw", "--json", str(path)) == 0
    where = json.loads(path.read_text())["where"]
    assert (where["batch_size"], where["dtype"]) == expected


REFUSED = [
    (["resnet"], "MODEL is 'resnet'; expected one of mlp, vit, cnn, resnet18_cifar, wrn28_10, vit_s16, vit_b16, gpt2, or module:function"),
    (["nowhere:make"], "there is no module 'nowhere'"),
    (["theirs:made"], "theirs has no 'made'. Its functions: net, batch, make"),
    (["theirs:constant"], "which is int"),
    (["theirs:pair"], "a tuple of 2; expected (model, x, y) or (model, losses, batch_size)"),
    (["theirs:nothing"], "returned NoneType; expected (model, x, y)"),
    (["theirs:function_first"], "returned function first"),
    (["theirs:list_second"], "returned list second"),
    (["theirs:soft"], "returned (12, 3) torch.float32 third; expected y int64 [B]"),
    (["theirs:uneven"], "expected the same number of samples"),
    (["theirs:frozen"], "without trainable parameters"),
    (["theirs:needy"], "needs an argument 'seed'"),
    (["theirs:size_of_tensor"], "batch_size tensor(12); expected the number of samples"),
    (["theirs:reduced"], "theirs:reduced: losses() returned shape (); expected [12]"),
    (["theirs:make", "--batch-size", "13"], "returned 12 samples with --batch-size 13"),
    (["theirs:make", "--batch-size", "0"], "--batch-size is 0"),
    (["theirs:stubborn", "--batch-size", "5"], "returned 12 samples with --batch-size 5"),
    (["theirs:of_losses", "--batch-size", "5"], "give it a parameter batch_size"),
    (["theirs:of_pairs", "--dtype", "fp64"], "give it a parameter dtype"),
    (["theirs:of_losses", "--autocast"], "theirs:of_losses returned a function with --autocast: enter torch.autocast in it"),
    (["theirs:of_losses", "--method", "rw-logits"], "return ops.cross_entropy_sample"),
    (["theirs:make", "--method", "sam,sgd"], "--method is 'sam,sgd'; expected one or several of sam, asam"),
    (["theirs:make", "--method", ","], "--method is ','"),
    (["theirs:make", "--steps", "0"], "--steps is 0"),
    (["theirs:make", "--warmup", "-1"], "--warmup is -1"),
    (["theirs:make", "--option", "rho"], "--option is 'rho'; expected NAME=VALUE"),
    (["theirs:make", "--option", "rho=-1"], "sam on theirs:make: rho is -1"),
    (["theirs:make", "--option", "shards=3"], "shards"),
    (["theirs:make", "--method", "m-sam", "--batch-size", "2"], "shards is 4 for batch_size 2"),
    (["theirs:make", "--backend", "fast"], "backend is 'fast'"),
    (["theirs:make", "--json", "no/where.json"], "--json is no/where.json, in a folder that does not exist"),
]
if not torch.cuda.is_available():
    REFUSED += [
        (["mlp", "--device", "cuda"], "no CUDA device"),
        (["mlp", "--nvtx"], "--nvtx needs"),
        (["mlp", "--backend", "cuda"], "cuda"),
    ]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_refused(user: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out


def test_what_a_module_lacks_itself_is_not_called_missing(user: Path) -> None:
    (user / "broken_module.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        subject_of("broken_module:make", Wish())


def test_the_interpreter_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert call("mlp", "--backend", "triton") == 2
    assert "the interpreter is not to be timed" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls of losses(): one to try it, two for every step, of which two come before those that are measured."""
    path, plot = user / "out.json", user / "out.png"
    assert call("theirs:interrupted", "--steps", "50", "--json", str(path), "--plot", str(plot)) == 130
    found = json.loads(path.read_text())
    assert not found["complete"] and found["profiles"][0]["steps"] == 3
    assert "interrupted: what was measured" in capsys.readouterr().out and plot.stat().st_size
    sys.modules["theirs"].calls = 10
    assert call("theirs:interrupted", "--steps", "50") == 130
    said = capsys.readouterr()
    assert "before a step was measured" in said.err and not said.out


def test_the_ncu_command(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(user))
    words = ["theirs:make", "--method", "m-sam", "--steps", "1", "--option", "shards=3", "--batch-size", "9", "--autocast"]
    assert call(*words) == 0 and "ncu" not in capsys.readouterr().out
    tool = user / "ncu"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert call(*words) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:2] == ["ncu", "--nvtx"] and "ascend/" in command
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    again = parser.parse_args(command[command.index("profile") + 1 :])
    assert (again.model, again.method, again.batch_size, again.option) == ("theirs:make", "m-sam", 9, ["shards=3"])
    assert again.device == "cuda" and again.nvtx and again.autocast and again.steps == 1


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    subject = subject_of(name, Wish(batch_size=2))
    assert subject.losses().shape == (2,) and subject.losses(torch.tensor([1])).shape == (1,)
    losses, norms = subject.with_norms()
    assert losses.shape == norms.shape == (2,)


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
