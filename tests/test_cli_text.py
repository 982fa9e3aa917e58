"""What is shown: figures and tables of the same numbers, reasons of every op, words about what a number holds, and nothing left behind."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from user_models import call, user_folder  # noqa: F401

from sam_kernels import registry
from sam_kernels.__main__ import main, parser
from sam_kernels.profiling import device, phases, plots, report
from sam_kernels.profiling.batch_cases import BATCH_OPS
from sam_kernels.profiling.cases import LIST_OPS
from sam_kernels.profiling.plans import asked_for
from sam_kernels.profiling.recorder import OTHER

SMALL = ["--shapes", "9x4", "--backend", "reference", "--device", "cpu", "--seconds", "0.01"]


# ---- figures


def spread(x: float) -> dict[str, float]:
    return {"median": x, "p20": 0.9 * x, "p80": 1.3 * x, "best": 0.8 * x}


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, draw: Any) -> Any:
    """The matplotlib figure that ``draw`` saves."""
    figure = pytest.importorskip("matplotlib.figure")
    seen: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, to: seen.append(self))
    draw(path)
    return seen[0]


def test_a_bar_shows_the_shares_of_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Medians of phases do not add up to that of the step; shares do."""
    parts = ((("forward",), 2.0, 0.25), (("backward",), 5.5, 0.75), (OTHER, 0, 0))
    rows = [phases.Row(path, 1, spread(ms), share) for path, ms, share in parts]
    made = phases.Profile("one", 3, spread(8.0), rows)
    axes = drawn(monkeypatch, tmp_path, lambda path: phases.plot([made], "a", "b", path)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["25%", "75%", "8.00 ms"]
    assert sorted(patch.get_width() for patch in axes.patches) == [0.0, 2.0, 6.0]
    low, high = sorted(line.get_ydata()[0] for line in axes.lines)[0], max(patch.get_y() + patch.get_height() for patch in axes.patches)
    assert low > high, "the whisker crosses no number"


def test_many_measurements_stand_in_several_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = [
        {"what": "op", "on": f"n{k}", "dtype": "fp32", "copy_gb_per_s": spread(9.0), "backends": {"cpp": {"gb_per_s": spread(10.0**-k)}}}
        for k in range(20)
    ]
    figure = drawn(monkeypatch, tmp_path, lambda path: plots.plot({"results": results}, path))
    assert [len(axes.patches) for axes in figure.axes] == [8, 8, 4]
    assert figure.get_size_inches()[0] < 12
    one = drawn(monkeypatch, tmp_path, lambda path: plots.plot({"results": results[:1]}, path))
    assert len(one.axes) == 1


# ---- words


def test_help_names_those_forms_that_one_name_stands_for(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    bases = told.split("all forms at once: ")[1].split(" --")[0].split(", ")
    assert bases[:2] == ["descend_", "draw"]
    for base in bases:
        forms = [op for op in (*LIST_OPS, *BATCH_OPS) if op.startswith(f"{base}:")]
        assert asked_for(parser().parse_args(["bench", "--op", base]))[0] == forms and len(forms) > 1
    assert asked_for(parser().parse_args(["bench", "--op", "ascend_"]))[0] == ["ascend_"]


def test_every_reason_is_told_of_those_that_it_holds_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"a": "no GPU", "b": "no GPU", "c": "no kernel"}
    ops = {name: registry.Op(name, "", {}, {"cuda": why, "cpp": "not built"}) for name, why in reasons.items()}
    monkeypatch.setattr(registry, "OPS", ops)
    monkeypatch.setattr(registry.Op, "chosen", lambda self, device, dtype: "reference")
    lines = registry.backends_table().splitlines()
    assert "cuda: no GPU (a, b)" in lines and "cuda: no kernel (c)" in lines and "cpp: not built" in lines


def test_a_host_that_is_too_slow_for_a_spin_is_told() -> None:
    result = {
        "what": "ascend_", "on": "tiny", "dtype": "fp32", "device": "cuda", "bytes": 10, "backends": {
            "triton": {"ms": spread(90), "host_ms": spread(60)}, "cuda": {"ms": spread(9), "host_ms": spread(6)},
        },
    }  # fmt: skip
    where = {"cores": 1, "threads": 1, "load": 0.0, "isa": "", "device": "a GPU", "torch": "", "triton": "", "date": ""}
    said = report.text({"results": [result], "where": where, "interrupted": False}).splitlines()
    assert [line for line in said if "keeps" in line or "kept waiting" in line] == [
        "ascend_, tiny, fp32, triton: the host takes longer than the device can be kept waiting, and shows in its time"
    ]


def test_events_are_timed_with_a_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            pass

        def record(self) -> None:
            said.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("spin"))
    monkeypatch.setattr(device, "_spoiler", lambda: SimpleNamespace(zero_=lambda: said.append("spoil")))
    assert device.event_times([(lambda: said.append("load"), lambda: said.append("call"))], 0.0) == [1e-3]
    assert said == ["load", "spoil", "spin", "event", "call", "event"]


def test_files_say_what_was_asked_for(tmp_path: Path, user: Path) -> None:
    path = tmp_path / "a.json"
    assert main(["bench", "--op", "ascend_", *SMALL, "--json", str(path)]) == 0
    bench = json.loads(path.read_text())
    assert call("theirs:make", "--steps", "1", "--option", "rho=0.1", "--json", str(path)) == 0
    profile = json.loads(path.read_text())
    for found, name, value in ((bench, "op", "ascend_"), (profile, "option", ["rho=0.1"])):
        asked = found["asked"]
        assert asked["arguments"][name] == value and asked["arguments"]["json"] == str(path) and asked["commit"]
        assert "version" in asked and "run" not in asked["arguments"]
    assert bench["seconds"] > 0 and bench["results"][0]["interrupted"] is False


# ---- in a process that goes on


@pytest.mark.parametrize(
    "words", [["bench", "--op", "ascend_,draw", *SMALL], ["profile", "theirs:make", "--steps", "1", "--device", "cpu"]]
)
def test_nothing_is_left_behind(words: list[str], user: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]
    torch.manual_seed(123)
    before, path, backend = torch.random.get_rng_state(), [*sys.path], matplotlib.rcParams._get_backend_or_none()
    assert main([*words, "--plot", str(user / "a.png")]) == 0
    assert torch.equal(torch.random.get_rng_state(), before) and sys.path == path
    assert matplotlib.rcParams._get_backend_or_none() == backend
