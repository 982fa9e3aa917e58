"""``bench/end_to_end.py`` from end to end on networks that are scaled down: what does not match is not timed, what was measured is kept."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cpu_graph import CpuRecorder

from sam_kernels import cuda_graph
from sam_kernels.profiling.match import Mismatch
from sam_kernels.profiling.networks import TINY
from sam_kernels.profiling.where import commit

BENCH = Path(__file__).parent.parent / "bench"
sys.path.append(str(BENCH))
try:
    import end_cell
    import end_match
    import end_methods
    import end_tables
    import end_to_end
    import end_trial
    import peers
finally:
    sys.path.remove(str(BENCH))

CAPTURED = {name for name, (_, kind) in end_to_end.METHODS.items() if issubclass(kind, end_methods.Captured)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WARMUP", 1), ("RECORDED", 2), ("LEAST", 2), ("MOST", 2), ("MOST_IN_A_ROW", 2)):
        monkeypatch.setattr(end_cell, name, value)


def run(tmp_path: Path, *words: str, expected: int = 0) -> dict[str, Any]:
    assert end_to_end.main(["--device", "cpu", "--out", str(tmp_path), *words]) == expected
    (path,) = tmp_path.glob("*-steps.json")
    return json.loads(path.read_text())


def test_all_families_and_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, "--models", "tiny")
    said = capsys.readouterr().out
    assert {"device", "torch", "date", "commit"} <= found["where"].keys()
    assert not found["interrupted"] and not found["left_out"] and not found["targets"]
    labels = {label: name for name, (label, _) in end_to_end.METHODS.items()}
    assert [(row["model"], labels[row["method"]]) for row in found["steps"]] == [(m, n) for m in TINY for n in end_to_end.METHODS]
    for row in found["steps"]:
        name, case = labels[row["method"]], TINY[row["model"]]
        assert (row["batch"], row["shape"], row["autocast"]) == (case.samples, list(case.shape), True)
        if name in CAPTURED or (name == "sam-package" and find_spec("pytorch_optimizer") is None):
            assert row["missing"] in ("needs a CUDA GPU", "pytorch_optimizer is not installed") and "ms" not in row
            continue
        assert "failed" not in row, row["failed"]
        assert row["rounds"] == 2 and 0 < row["ms"]["p20"] <= row["ms"]["median"] <= row["ms"]["p80"]
        assert row["samples_per_s"] == pytest.approx(case.samples * 1e3 / row["ms"]["median"])
        assert row["match"] == "baseline" if name == "passes" else float(row["match"].removesuffix(" of the tolerance")) <= 1
        assert (row["optimizer_ms"] > 0) == (name not in ("passes", "norms")) and row["peak_bytes"] is None
        forwards = [path for path in row["phases_ms"] if path.endswith("forward")]
        assert len(forwards) == (2 if name.endswith("eager") else 1), "ours marks its passes"
        assert row["over_passes"]["median"] > 0 and row["over_loop"]["median"] > 0 and row["host_ms"]["median"] > 0
    for name, case in TINY.items():
        assert f"{name}: {case.label.partition(',')[0]}, " in said
    assert "needs a CUDA GPU" in said and "steps.json" in said


def before(step: Callable[..., None], change: Callable[[Any], object]) -> Callable[..., None]:
    def changed(self: Any) -> None:
        change(self)
        step(self)

    return changed


BREAKS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "another radius": ("first", lambda step: setattr(step, "rho", 0.051)),
    "one tensor is not restored": ("second", lambda step: step.stash[0].copy_(step.params[0].detach())),
    "another rate": ("second", lambda step: step.optimizer.param_groups[0].update(lr=1.01e-3)),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_method_that_computes_something_else_is_not_timed(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, change = BREAKS[broken]
    monkeypatch.setattr(peers.ForeachFused, name, before(getattr(peers.ForeachFused, name), change))
    found = run(tmp_path, "--models", "tiny_vit", "--methods", "sam-loop,sam-foreach", expected=1)
    loop, foreach = found["steps"]
    assert "ms" in loop and "ms" not in foreach and "step_ms" not in foreach
    assert foreach["failed"].startswith("Mismatch: SAM, foreach + fused: ") and "in within" in foreach["traceback"]
    assert foreach["failed"] in capsys.readouterr().err


def test_statistics_that_a_second_pass_records_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = end_match.Matcher(end_trial.Work.of(TINY["tiny_wrn"], "cpu"))
    assert "of the tolerance" in matcher.check("ours", end_methods.Ours)
    monkeypatch.setattr(end_methods, "frozen_batchnorm", nullcontext)
    with pytest.raises(Mismatch, match="statistics"):
        matcher.check("loop", end_methods.Loop)


class Here(end_methods.Captured):
    missing = end_methods.Ours.missing


class ReweightedHere(Here):
    preset = "rw-exact"


def captured(monkeypatch: pytest.MonkeyPatch, name: str = "tiny_wrn", kind: type[Here] = Here) -> str:
    """A captured step on the CPU, with what stands there for a graph."""
    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", CpuRecorder)
    return end_match.Matcher(end_trial.Work.of(TINY[name], "cpu")).check("captured", kind)


@pytest.mark.parametrize("kind", [Here, ReweightedHere])
@pytest.mark.parametrize("name", TINY)
def test_a_captured_step_has_the_bits_of_the_eager_one(name: str, kind: type[Here], monkeypatch: pytest.MonkeyPatch) -> None:
    assert captured(monkeypatch, name, kind) == "bits"


def test_a_captured_step_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = CpuRecorder.replay

    def twice(recorder: CpuRecorder) -> None:
        replay(recorder)
        replay(recorder)

    monkeypatch.setattr(CpuRecorder, "replay", twice)
    with pytest.raises(Mismatch, match="captured: losses: result 0 has other bits"):
        captured(monkeypatch)


def test_where_eager_steps_do_not_repeat_their_spread_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed, torch_noise = end_methods.Ours.passed, torch.Generator().manual_seed(0)

    def noisy(trial: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = passed(trial, x, y)
        for p in trial.params:
            p.grad *= 1 + (1.0 if getattr(trial, "wrong", False) else 1e-4) * torch.randn((), generator=torch_noise)
        return loss

    monkeypatch.setattr(end_methods.Ours, "passed", noisy)
    assert "whose bits do not repeat" in captured(monkeypatch)
    monkeypatch.setattr(Here, "wrong", True, raising=False)  # the eager ones are not
    with pytest.raises(Mismatch, match="exceeds"):
        captured(monkeypatch)


def test_a_method_that_fails_while_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fragile(trial: Any, work: Any, times: int) -> float:
        calls.append(type(trial))
        if type(trial) is end_methods.Foreach and calls.count(type(trial)) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        return 1.0

    monkeypatch.setattr(end_cell, "in_a_row", fragile)
    found = run(tmp_path, "--models", "tiny_vit", "--methods", "passes,sam-foreach", expected=1)
    passes, foreach = found["steps"]
    assert passes["rounds"] == 2 and "ms" not in foreach and foreach["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert calls.count(end_methods.Foreach) == 2


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [0]
    measured = end_cell.in_a_row

    def interrupted(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] > 6 + 5:  # in the third round of the second network
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(end_cell, "in_a_row", interrupted)
    found = run(tmp_path, "--models", "tiny_vit,tiny_gpt,tiny_wrn", "--methods", "passes,sam-eager", expected=130)
    assert found["interrupted"] and [(row["model"], row["rounds"]) for row in found["steps"]] == [
        ("tiny_vit", 2), ("tiny_vit", 2), ("tiny_gpt", 1), ("tiny_gpt", 1)
    ]  # fmt: skip
    assert "tiny_gpt" in capsys.readouterr().out


def test_ctrl_c_before_anything_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(kind: type[end_trial.Trial], work: Any) -> Any:
        if kind is end_methods.Sgd:
            raise KeyboardInterrupt
        return {"step_ms": 1.0}

    monkeypatch.setattr(end_cell, "alone", interrupted)
    found = run(tmp_path, "--models", "tiny_vit", "--methods", "passes,sgd,sam-loop", expected=130)
    assert [row["method"] for row in found["steps"]] == ["forward + backward", "SGD"] and not any("ms" in row for row in found["steps"])
    assert "not timed" in capsys.readouterr().out


def test_the_commit_is_that_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    head = commit(BENCH.parent).removesuffix(", modified")
    assert head == "unknown" or (len(head) >= 10 and int(head, 16))


def test_what_fails_outside_of_the_methods_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgets = []

    def forget() -> None:
        forgets.append(1)
        if len(forgets) > 9:  # seven of the first network, two inside of the first method of the second
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(end_cell, "forget", forget)
    found = run(tmp_path, "--models", "tiny_vit,tiny_wrn", "--methods", "passes,sgd", expected=1)
    assert found["died"] == "tiny_wrn: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert [(row["model"], row["method"], "ms" in row) for row in found["steps"]] == [
        ("tiny_vit", "forward + backward", True), ("tiny_vit", "SGD", True), ("tiny_wrn", "forward + backward", False)
    ]  # fmt: skip


def test_a_deadline_leaves_out_what_was_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, alone = [0.0], end_cell.alone

    def clock() -> float:
        now[0] += 1e-3
        return now[0]

    def slow(*arguments: Any) -> Any:
        now[0] += 4
        return alone(*arguments)

    monkeypatch.setattr(end_cell, "alone", slow)
    monkeypatch.setattr(end_cell, "perf_counter", clock)
    monkeypatch.setattr(end_to_end, "perf_counter", clock)
    found = run(tmp_path, "--models", "tiny_vit,tiny_wrn", "--methods", "passes,sgd,sam-loop", "--seconds", "5")
    passes, sgd, loop = found["steps"]
    assert found["left_out"] == ["tiny_wrn"] and passes["rounds"] == sgd["rounds"] == 2 and "ms" not in loop
    assert loop["missing"].startswith("left out")


def test_targets_are_judged_where_both_were_measured() -> None:
    ratio = {"median": 0.7, "p20": 0.69, "p80": 0.71}
    row = {"model": "resnet18_cifar", "method": "ours, captured", "ms": {}, "over_loop": ratio}
    (verdict,) = end_tables.verdicts([row])
    assert verdict["met"] and "met, 1.43 (1.41 to 1.45) times as fast as SAM, plain loop, wanted >= 1.30" in end_tables.verdict_line(
        verdict
    )
    (verdict,) = end_tables.verdicts([row | {"over_loop": ratio | {"median": 0.8}}])
    assert not verdict["met"] and "MISSED" in end_tables.verdict_line(verdict)
    row = {
        "model": "vit_b16",
        "method": "forward + backward + exact norms",
        "ms": {},
        "over_passes": {"median": 1.05, "p20": 1.04, "p80": 1.2},
    }
    (verdict,) = end_tables.verdicts([row])
    assert verdict["met"] and "met, 1.05 (1.04 to 1.20) of forward + backward, wanted <= 1.10" in end_tables.verdict_line(verdict)
    (verdict,) = end_tables.verdicts([{"model": "resnet18_cifar", "method": "ours, captured", "failed": "no"}])
    assert verdict["met"] is None and "not measured" in end_tables.verdict_line(verdict)


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--models", "resnet"], ["--methods", "sam"], ["--methods", ""]):
        with pytest.raises(SystemExit, match=words[1] or "expected one or several"):
            end_to_end.main(["--device", "cpu", *words])
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert end_to_end.main([]) == 0 and "no CUDA GPU" in capsys.readouterr().out
