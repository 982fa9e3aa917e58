"""What ``bench`` times is what it says: the same numbers at every call, a copy under the same conditions, no warm-up among the times."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sam_kernels import backends
from sam_kernels.__main__ import main
from sam_kernels.profiling import device, match, measuring
from sam_kernels.profiling.batch_cases import BATCH_OPS, BatchCase
from sam_kernels.profiling.cases import LIST_OPS, ListCase
from sam_kernels.profiling.timing import Rounds, fill
from sam_kernels.profiling.workloads import Workload

QUICK = ["--device", "cpu", "--seconds", "0.01"]
SMALL = Workload("small", ((33, 5), (7,), (), (4, 3, 3, 3)))


def results(path: Path, *arguments: str, status: int = 0) -> list[dict]:
    assert main(["bench", *arguments, *QUICK, "--json", str(path)]) == status
    return json.loads(path.read_text())["results"]


# ---- the numbers that are worked on


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("what", LIST_OPS)
def test_every_call_works_on_the_same_numbers(what: str, dtype: str) -> None:
    """Or, of a descent, on numbers that settle: nothing grows from call to call."""
    ((load, call),) = ListCase(what, SMALL, dtype).calls(["reference"], "cpu")["reference"]
    lists = [x for value in call.keywords.values() if isinstance(value, list) for x in value]
    load()
    first = [x.clone() for x in lists]
    for _ in range(60):
        load()
        call()
    load()
    moved = torch.stack([(x.float() - y.float()).abs().max() for x, y in zip(lists, first, strict=True)])
    assert moved.max() == 0 if not what.startswith("descend_") else moved.max() < 10


def test_a_copy_makes_its_result_anew_where_the_op_does() -> None:
    for what, op in BATCH_OPS.items():
        large = {"cross_entropy_sample_backward": (3, 40), "normalization_grads": (3, 2, 2, 3, 5)}.get(op.op)
        assert BatchCase(what, "small", large or op.defaults[0], "fp32").allocates == (large is not None)
    for allocates in (False, True):
        ((_, call),) = device.copy_phases(800, "cpu", allocates)
        one, other = call(), call()
        assert one.nbytes == 400 and (one.data_ptr() != other.data_ptr()) == allocates


def test_measurements_compare_with_that_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen: list[bool] = []
    original = measuring.copy_phases
    monkeypatch.setattr(measuring, "copy_phases", lambda *given: (seen.append(given[2]), original(*given))[1])
    results(tmp_path / "a.json", "--op", "cross_entropy_sample,cross_entropy_sample_backward", "--sizes", "9x50")
    assert seen == [False, True]
    assert capsys.readouterr().out.count("makes its result anew, and so does the copy") == 1


# ---- the rule


@pytest.mark.parametrize("sizes", [(6, 1000), (256, 300)])
def test_small_gradients_are_stored_as_halves_can(sizes: tuple[int, int]) -> None:
    assert BatchCase("cross_entropy_sample_backward", "small", sizes, "fp16").match("reference", "cpu") == sizes[0]


def test_one_subnormal_is_allowed_and_no_more() -> None:
    least = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    want, nothing = torch.full((4,), 3 * least, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for steps, passes in ((0, True), (1, True), (2, False)):
        got = (want + steps * least).half()
        if passes:
            match.assert_sums("x", got, want, 1, nothing, torch.float32)
        else:
            with pytest.raises(match.Mismatch, match="errs by"):
                match.assert_sums("x", got, want, 1, nothing, torch.float32)


# ---- rounds


def interrupting(after: int) -> Callable[[], tuple[float, ...]]:
    calls = iter(range(after))

    def timed() -> tuple[float, ...]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return (1e-3,)

    return timed


@pytest.mark.parametrize(("after", "kept"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_no_warm_up_is_among_the_times_of_what_was_interrupted(after: int, kept: int) -> None:
    rounds = Rounds({"a": lambda: (1e-3,), "b": interrupting(after)})
    with pytest.raises(KeyboardInterrupt):
        fill(rounds, 1.0, 100)
    assert {name: len(times) for name, times in rounds.complete().times.items()} == {"a": kept, "b": kept}


def test_an_interrupted_warm_up_leaves_nothing() -> None:
    rounds = Rounds({"a": lambda: (1e-3,), "b": interrupting(2)})
    with pytest.raises(KeyboardInterrupt):
        rounds.run(1, discard=3)
    assert rounds.complete().times == {"a": [], "b": []}


# ---- one case that fails


@pytest.mark.parametrize("calls", [4, 12])
def test_a_case_that_fails_leaves_the_others(
    calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Before its first round, at the call beyond the match, or in a later one."""
    count, original = [], LIST_OPS["ascend_:adaptive"].call

    def fails(*arguments: object, **options: object) -> object:
        count.append(1)
        if len(count) >= calls:
            raise MemoryError("no more")
        return original(*arguments, **options)

    monkeypatch.setitem(LIST_OPS, "ascend_:adaptive", replace(LIST_OPS["ascend_:adaptive"], call=fails))
    monkeypatch.setattr(measuring, "in_a_row", lambda phases, device: 1)
    ops = "ascend_,ascend_:adaptive,inner_products:gh"
    found = results(tmp_path / "a.json", "--op", ops, "--shapes", "9x4", "--backend", "reference", status=1)
    assert [r["what"] for r in found] == ["ascend_", "ascend_:adaptive", "inner_products:gh"]
    failed = found[1]["backends"]["reference"]
    assert (
        ("ms" in failed) == (calls > 4)
        and failed["failed"] == "MemoryError: no more"
        and all("ms" in found[k]["backends"]["reference"] for k in (0, 2))
    )
    said = capsys.readouterr()
    assert "MemoryError: no more" in said.err and "ascend_:adaptive, shapes, fp32, reference: MemoryError: no more" in said.out
    assert ("rounds were complete" in said.out) == (calls > 4)


def test_what_was_measured_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that runs out of memory asks nobody."""
    path, seen = tmp_path / "a.json", []
    original = LIST_OPS["inner_products:gh"].call

    def looks(*arguments: object, **options: object) -> object:
        seen.append([r["what"] for r in json.loads(path.read_text())["results"]])
        return original(*arguments, **options)

    monkeypatch.setitem(LIST_OPS, "inner_products:gh", replace(LIST_OPS["inner_products:gh"], call=looks))
    results(path, "--op", "ascend_,inner_products:gh", "--shapes", "9x4", "--backend", "reference")
    assert seen[0] == ["ascend_"]


# ---- on a CUDA device


def test_launches_are_those_of_a_later_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measuring, "once", lambda phases, device: calls.append("once"))
    monkeypatch.setattr(measuring, "launches", lambda phases: calls.append("launches"))
    monkeypatch.setattr(measuring, "in_a_row", lambda phases, device: 1)
    monkeypatch.setattr(measuring, "copy_phases", lambda *_: [(device.nothing, device.nothing)])
    monkeypatch.setattr(measuring, "entry", lambda phases, device, times: lambda: (1e-4, 2e-4, 3e-4))
    case = ListCase("ascend_", SMALL, "fp32")
    monkeypatch.setattr(case, "match", lambda backend, device: 1)
    monkeypatch.setattr(case, "calls", lambda backends, device: {name: [(lambda: None, lambda: None)] for name in backends})
    result, interrupted = measuring.measure(case, ["reference"], "cuda", 0.01)
    assert calls == ["once", "launches"] and not interrupted
    found = result["backends"]["reference"]
    assert "launches" not in found, "a trace without the device says nothing, not 0"
    assert [round(found[key]["median"], 6) for key in ("host_ms", "ms", "device_ms")] == [0.1, 0.2, 0.3]


# ---- who is measured, and on what


def test_the_environment_chooses_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def with_environment(*asked: str) -> None:
        monkeypatch.setattr(backends, "REQUESTED", asked)
        backends.requested.cache_clear()

    words = ["--op", "ascend_", "--shapes", "9x4"]
    try:
        with_environment("reference")
        assert list(results(tmp_path / "a.json", *words)[0]["backends"]) == ["reference"]
        with_environment("cuda")
        monkeypatch.setitem(backends.DEVICES, "cuda", ("cuda", "cpu"))
        assert main(["bench", *words, *QUICK]) == 2
        assert "SAM_KERNELS_BACKEND asks for it" in capsys.readouterr().err
        with_environment("nope")
        for command in (["info"], ["bench", *words, *QUICK], ["profile", "mlp"]):
            assert main(command) == 2
            assert f"{command[0]}: SAM_KERNELS_BACKEND names ['nope']; expected" in capsys.readouterr().err
    finally:
        with_environment()


def test_models_without_a_layer_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = results(tmp_path / "a.json", "--op", "ascend_,draw:top_k", "--workload", "tiny300,resnet18,", "--backend", "reference")
    assert [(r["what"], r["on"].split()[0]) for r in found] == [
        ("ascend_", "tiny300"), ("ascend_", "resnet18"), ("draw:top_k", "resnet18"),
    ]  # fmt: skip
    assert "left out: --workload tiny300 has no layer for draw:top_k; expected one of resnet18" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["--op", "ascend_", "--base", "sgd"], "--base is 'sgd', which none of --op ascend_ has"),
    (["--op", "descend_:adamw", "--base", "sgd"], "--base is 'sgd', which none of --op descend_:adamw has"),
    (["--op", "draw", "--shapes", "9x4"], "--shapes is '9x4', but none of the ops is one on tensors"),
    (["--op", "ascend_", "--shapes", ""], "--shapes is ''; expected sizes such as"),
    (["--op", ""], "--op is '', which names nothing"),
    (["--op", "ascend_", "--workload", ","], "--workload is ',', which names nothing"),
    (["--op", "draw", "--sizes", ""], "--sizes is ''; expected nxk"),
    (["--op", "ascend_", "--seconds", "nan"], "--seconds is nan"),
])  # fmt: skip
def test_what_would_change_nothing_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *words]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out


@pytest.mark.parametrize("text", ['[["64", "32"]]', '["64", "32"]', "[[2.9]]", "[[true]]", "[3]", "[]", "[[]"])
def test_shapes_of_a_file_are_lists_of_integers(text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert main(["bench", "--op", "ascend_", "--shapes", str(path), *QUICK]) == 2
    assert "a JSON file with a list of lists of sizes" in capsys.readouterr().err


def test_calls_with_the_checks_of_many_tensors_say_so(capsys: pytest.CaptureFixture) -> None:
    for shapes, told in ((",".join(["3"] * 1001), True), ("3,3", False)):
        assert main(["bench", "--op", "inner_products", "--shapes", shapes, "--backend", "reference", *QUICK]) == 0
        assert ("which an optimizer does not repeat" in capsys.readouterr().out) == told
