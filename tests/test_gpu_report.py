"""What the GPU benchmarks write, on a CPU with made-up clocks; the README's GPU part and its figure, from made-up files; tuning notes."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
MARKED = "before\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\nafter\n"


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def spread(median: float) -> dict[str, float]:
    return {"median": median, "p20": 0.9 * median, "p80": 1.2 * median, "best": 0.8 * median}


def where(device: str = "Made Up 1", date: str = "2026-01-02", **more: Any) -> dict[str, Any]:
    return {"device": device, "cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0", "date": date, "commit": "abc", **more}


def provider(ours: bool, ms: float, share: float = 0.5, ratio: float = 1.0) -> dict[str, Any]:
    return {
        "ours": ours, "bytes": 40_000_000, "launches": 2, "peak_bytes": 5_000_000, "gb_per_s": 1234.0, "variant": {},
        "ms": spread(ms), "device_ms": spread(ms / 2), "first_ms": spread(ms / 4), "second_ms": spread(ms / 4), "host_ms": spread(0.07),
        "share_of_copy": spread(share), "ratio_to_ours": spread(ratio), "device_ratio_to_ours": spread(1.7),
    }  # fmt: skip


def steps(date: str = "2026-01-02", device: str = "Made Up 1", share: float = 0.93) -> dict[str, Any]:
    def cell(workload: str, providers: dict[str, Any]) -> dict[str, Any]:
        about = {"workload": workload, "method": "sam-sgd-fp32", "tensors": 148, "parameters": 124_000_000, "bytes": 5_000_000_000}
        return about | {"rounds": 41, "copy_gb_per_s": spread(4000.0), "providers": providers}

    resnet = {
        "sam_kernels cuda": provider(True, 0.25),
        "sam_kernels triton": {"ours": True, "bytes": 1, "failed": "CompilationError: no such instruction"},
        "per-tensor loop": provider(False, 4.0, ratio=16.5),
        "_foreach_ + fused base": provider(False, 1.0, ratio=3.25),
        "pytorch_optimizer 4.1.0": {"ours": False, "absent": "pytorch_optimizer is not installed"},
    }
    cells = [cell("resnet50", resnet), cell("gpt2", {"sam_kernels cuda": provider(True, 1.5, share)})]
    return {"where": where(device, date), "cells": cells}


def ops() -> dict[str, Any]:
    def backend(us: float) -> dict[str, Any]:
        timed = {"ms": spread(us / 500), "device_ms": spread(us / 1e3), "host_ms": spread(0.01), "launches": 1}
        return timed | {"gb_per_s": spread(3456.0), "share_of_copy": spread(0.86), "over_first": spread(1.0)}

    shared = {"dtype": "fp32", "device": "cuda", "bytes": 1 << 20, "copy_bytes": 1 << 20, "copy_gb_per_s": spread(4000.0), "rounds": 99}
    results = [
        shared | {"what": "ascend_", "on": "gpt2", "backends": {"cuda": backend(123), "triton": backend(117)}},
        shared | {"what": "draw:top_k", "on": "256x128", "backends": {"triton": {"failed": "Mismatch: bits"}, "torch": backend(55)}},
    ]
    return {
        "where": where(cores=16, threads=16, load=0.5),
        "results": results,
        "left_out": ["descend_:sgd, gpt2, bf16"],
        "interrupted": False,
    }


def whole() -> dict[str, Any]:
    about = {"label": "ResNet-18, B 128", "batch": 128, "model": "resnet18_cifar", "match": "matched"}
    timed = {"optimizer_ms": 0.21, "peak_bytes": 2_500_000_000, "ms": spread(12.5), "over_passes": spread(2.2)}
    rows = [
        about | {"method": "SAM, plain loop", **timed, "over_loop": spread(1.0)},
        about | {"method": "ours, captured", **timed, "over_loop": spread(0.5), "optimizer_ms": None, "host_ms": spread(0.06)},
        about | {"method": "SAM, pytorch_optimizer", "missing": "pytorch_optimizer is not installed"},
        about | {"model": "vit_b16", "label": "ViT-B/16", "method": "Reweighted SAM exact, eager", "failed": "OutOfMemoryError: no"},
    ]
    return {"where": where(cores=16, threads=16, load=0.5), "steps": rows, "targets": [], "left_out": []}


def report(tmp_path: Path, readme: str, **files: dict[str, Any]) -> str:
    import gpu_report

    results = tmp_path / "results"
    results.mkdir(exist_ok=True)
    for name, content in files.items():
        (results / f"{name}.json").write_text(json.dumps(content))
    page = tmp_path / "README.md"
    page.write_text(readme)
    assert gpu_report.main(["--results", str(results), "--readme", str(page), "--plot", str(tmp_path / "gpu.png")]) == 0
    return page.read_text()


def line_of(text: str, *parts: str) -> list[str]:
    """The cells of the only line of a table that holds all of these."""
    (line,) = [line for line in text.splitlines() if line.startswith("|") and all(part in line for part in parts)]
    return [cell.strip() for cell in line.strip("|").split("|")]


# ---- the README


def test_without_results_every_target_is_open(tmp_path: Path) -> None:
    page = report(tmp_path, MARKED)
    assert page.startswith("before\n<!-- gpu:begin -->") and page.endswith("<!-- gpu:end -->\nafter\n") and "old" not in page
    assert "Nothing in this repository has been measured on a GPU" in page and not (tmp_path / "gpu.png").exists()
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 13 and all(line.endswith("| not yet measured |") for line in lines)


def test_what_was_measured_stands_where_it_belongs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = report(tmp_path, MARKED, a=steps(), b=ops(), c=whole())
    assert line_of(page, "GPT-2, SAM + SGD: rate over")[1:] == ["≥ 0.92", "0.930 (0.837 to 1.12)"]
    assert line_of(page, "time over ours: per-tensor loop")[2].startswith("16.5")
    assert line_of(page, "time over ours: _foreach_")[2].startswith("3.25")
    assert line_of(page, "ResNet-50, SAM + SGD: ms until")[2].startswith("0.0700")
    assert line_of(page, "a whole captured step: ms until enqueued")[2].startswith("0.06")
    assert line_of(page, "a plain-loop SAM step over a captured one")[2] == "2.00 (1.67 to 2.22)", "the other way round: its time is a half"
    assert line_of(page, "ViT-B/16: exact Reweighted SAM over SAM, eager")[2] == "failed: OutOfMemoryError: no"
    assert line_of(page, "WRN-28-10: exact Reweighted SAM over SAM, eager")[2] == "not yet measured"
    assert line_of(page, "**sam_kernels cuda**", "ResNet-50")[3] == "0.250 (0.225 to 0.300)"
    assert "CompilationError: no such instruction" in line_of(page, "**sam_kernels triton**")
    assert "pytorch_optimizer is not installed" in line_of(page, "pytorch_optimizer 4.1.0")
    header = line_of(page, "fastest of ours")
    ascend, draw = dict(zip(header, line_of(page, "| ascend_ |"), strict=True)), dict(zip(header, line_of(page, "draw:top_k"), strict=True))
    assert (ascend["cuda, µs"], ascend["triton, µs"], ascend["torch, µs"], ascend["fastest of ours"]) == ("123", "117", "-", "triton")
    assert (draw["cuda, µs"], draw["triton, µs"], draw["torch, µs"], draw["fastest of ours"]) == ("-", "failed", "55.0", "")
    assert line_of(page, "ours, captured")[2:] == ["12.5 (11.2 to 15.0)", "2.20 (1.98 to 2.64)", "0.500 (0.450 to 0.600)", "", "2.50"]
    assert line_of(page, "SAM, plain loop", "12.5")[:2] == ["ResNet-18, B 128", "SAM, plain loop"]
    assert "Left out for want of time: descend_:sgd, gpt2, bf16" in page and "commit abc" in page and "16 cores" in page
    assert "pytorch_optimizer is not installed" in line_of(page, "SAM, pytorch_optimizer")
    assert f"]({tmp_path / 'gpu.png'})" in page and (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def test_the_newest_file_of_every_gpu_is_taken(tmp_path: Path) -> None:
    old, new, other = steps("2026-01-02", share=0.11), steps("2026-03-01", share=0.22), steps("2025-01-01", "Made Up 2", share=0.33)
    cpu = steps("2026-05-05", "A processor", share=0.44)
    cpu["where"]["cuda"] = None
    page = report(tmp_path, MARKED, z=old, a=new, b=other, c=cpu)
    assert page.count("**Made Up 1**") == page.count("**Made Up 2**") == 1 and "A processor" not in page
    assert "0.220 (" in page and "0.330 (" in page and "0.110 (" not in page
    assert page.count("Not yet measured at all: ops, whole training steps.") == 2


def test_a_readme_without_marks_and_a_file_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected <!-- gpu:begin -->"):
        report(tmp_path, "before\nafter\n", a=steps())
    with pytest.raises(SystemExit, match=r"x\.json: expected 'where'"):
        report(tmp_path, MARKED, x={"where": where()})


def test_the_readme_says_what_the_results_say() -> None:
    """The committed page is what the tool makes of the committed results."""
    import gpu_report
    from gpu_figure import points_of

    gpus = gpu_report.newest(ROOT / "bench" / "results")
    drawn = any(points_of(found)[0] for found in gpus.values())
    assert gpu_report.block(gpus, "docs/gpu.png" if drawn else None) in (ROOT / "README.md").read_text()
    assert not drawn or (ROOT / "docs" / "gpu.png").exists()


def test_the_names_in_the_targets_are_those_that_the_benchmark_writes() -> None:
    import end_to_end
    import gpu_report

    from sam_kernels.profiling.networks import NETWORKS

    known = {label for label, _ in end_to_end.METHODS.values()}
    assert {method for _, method, *_ in gpu_report.WHOLE_TARGETS} <= known
    assert {model for model, *_ in gpu_report.WHOLE_TARGETS} <= NETWORKS.keys()
    assert {ratio for _, _, ratio, *_ in gpu_report.WHOLE_TARGETS} <= {*end_to_end.BASES, "host_ms"}


def test_dots_of_the_figure() -> None:
    from gpu_figure import points_of

    dots, copies = points_of({"cells": steps(), "results": ops()})
    assert [(x, y) for x, y, *_ in dots] == [*[(40_000_000, 1234.0)] * 4, *[(1 << 20, 3456.0)] * 2], "what failed and torch's own have none"
    assert copies == [*[(1 << 20, 4000.0)] * 2, *[(5_000_000_000, 4000.0)] * 2]


# ---- what is measured


def test_a_cell_of_optimizer_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the clock of the CPU in the place of all three of the GPU."""
    import device
    import gpu
    import providers

    from sam_kernels.profiling import device as clocks
    from sam_kernels.profiling.methods import Method

    def timed_on_cpu(phases: clocks.Phases):
        entry = clocks.cpu_entry(phases)
        return lambda: 3 * entry()

    def broken(*_: Any) -> Any:
        raise ArithmeticError("no\nway")

    names = {"cuda": "cpp", "triton": "reference"}
    monkeypatch.setattr(clocks, "cuda_entry", timed_on_cpu)
    monkeypatch.setattr(device, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "ours", lambda backend: providers.ours(names[backend]))
    monkeypatch.setattr(gpu, "copy_entry", lambda nbytes: lambda: (0.0, 0.0, 0.0, 0.0, 1e-3, 0.0))
    monkeypatch.setattr(gpu, "launches", lambda *_: 2)
    monkeypatch.setattr(gpu, "peak_bytes", lambda *_: 7)
    peers = [p for p in providers.PEERS if "foreach" in p.name]
    missing = providers.Provider("a package", broken, package="a_package_that_is_not_there")
    failing = providers.Provider("a peer", broken)
    monkeypatch.setattr(gpu, "PEERS", (*peers, missing, failing))
    cell = gpu.cell("tiny300", Method(), 0.5, math.inf)
    done = {name: p for name, p in cell["providers"].items() if "ms" in p}
    assert set(done) == {"sam_kernels cpp", "sam_kernels reference", "_foreach_ + fused base"} and cell["rounds"] >= 5
    assert cell["providers"]["a package"] == {"ours": False, "absent": "a_package_that_is_not_there is not installed"}
    assert cell["providers"]["a peer"]["failed"] == "ArithmeticError: no"
    assert done["sam_kernels cpp"]["ratio_to_ours"]["median"] == 1.0 and done["sam_kernels cpp"]["launches"] == 2
    told = gpu.line(cell)
    assert "a peer: ArithmeticError: no" in told and "a package: a_package_that_is_not_there is not installed" in told and "ms" in told
    late = gpu.cell("tiny300", Method(), 0.5, -math.inf)
    assert all("time was over" in p["failed"] for name, p in late["providers"].items() if name != "a package")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 0 and not list(tmp_path.iterdir())


def test_ops_are_timed_beside_those_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import gpu_ops
    from test_cli import SIZES

    from sam_kernels.profiling.batch_cases import BATCH_OPS

    found = []
    for what in gpu_ops.PEERS:
        case = gpu_ops.Compared(what, "small", SIZES[BATCH_OPS[what].layer], "fp32")
        result, _ = gpu_ops.measure(case, ["cpp", gpu_ops.TORCH], "cpu", 0.01) if "top_k" not in what else (None, None)
        found += [result] if result else []
        assert result is None or all("ms" in p for p in result["backends"].values()), what
    assert len(found) == len(gpu_ops.PEERS) - 1
    every = {what for whats, _ in gpu_ops.FAMILIES.values() for what in whats}
    assert every == {*gpu_ops.LISTS, *gpu_ops.PEERS}, "every op on batches that has a kernel is timed, with its counterpart"

    monkeypatch.setattr(gpu_ops, "refuse_interpreter", lambda: None)
    monkeypatch.setattr(gpu_ops, "backends_of", lambda *_: ["cpp"])
    monkeypatch.setitem(gpu_ops.FAMILIES, "batches", (("gibbs_weights",), ("fp32",)))
    parts = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "never.json"]
    assert gpu_ops.run_family("batches", parts[0], 1.0, "cpu") == gpu_ops.run_family("batches", parts[1], -1.0, "cpu") == 0
    merged = gpu_ops.merge(tmp_path / "all.json", parts)
    assert [r["on"] for r in merged["results"]] == ["256", "1000000"] and len(merged["left_out"]) == 2
    assert json.loads((tmp_path / "all.json").read_text()) == merged and merged["where"]["commit"]
    assert "gibbs_weights, 256, fp32: cpp: " in capsys.readouterr().out


# ---- tuning


def test_every_change_is_one_that_can_be_made() -> None:
    from experiments import EXPERIMENTS

    names = [e.name for e in EXPERIMENTS]
    assert len(set(names)) == len(names)
    for e in EXPERIMENTS:
        assert (e.other is None) == bool(e.file) and e.prediction[0].isdigit(), e.name
        if e.file:
            assert (ROOT / e.file).read_text().count(e.old) == 1 and e.new != e.old, f"{e.name}: {e.file} has changed"


def test_a_change_and_another_cell_are_timed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tune
    import tune_cell
    from experiments import Cell, Experiment

    fake = tmp_path / "fake.py"
    fake.write_text(
        "import os, sys\n"
        "cell = dict(word.split('=') for word in sys.argv[1:])\n"
        "if cell['backend'] == 'broken': raise KeyError('no such kernel')\n"
        "changed = 'CHANGED' in open('sam_kernels/spans.py').read()\n"
        "print('ready Made Up', flush=True)\n"
        "for k, _ in enumerate(sys.stdin): print(1.0 + changed + (cell['backend'] == 'twice') + (k == 0), flush=True)\n"
    )
    monkeypatch.setattr(tune_cell, "CHILD", [sys.executable, str(fake)])
    cell = Cell("ascend_", "resnet18", "once")
    changed = Experiment("a", "2: because", cell, "sam_kernels/spans.py", "from collections", "CHANGED = 1\nfrom collections")
    assert (ROOT / changed.file).read_text().count(changed.old) == 1
    assert tune.run(changed).startswith("2.00 (2.00 to 2.00): 1000 → 2000 µs, Made Up, 20")
    assert tune.run(Experiment("b", "2", cell, other=Cell("ascend_", "resnet18", "twice"))).startswith("2.00 (2.00 to 2.00)")
    assert tune.run(Experiment("c", "2", cell, other=Cell("ascend_", "resnet18", "broken"))) == "failed: KeyError: 'no such kernel'"
    assert "0 times; expected once" in tune.run(Experiment("d", "2", cell, "sam_kernels/spans.py", "not there", "x"))


def test_notes_keep_what_was_measured() -> None:
    import tune
    from experiments import EXPERIMENTS

    notes = f"intro\n{tune.BEGIN}\n{tune.END}\nend\n"
    first = tune.written(notes, EXPERIMENTS, {EXPERIMENTS[5].name: "1.05 (1.04 to 1.06): 1 → 2 µs"})
    assert first.startswith("intro\n") and first.endswith("\nend\n") and first.count(tune.UNKNOWN) == len(EXPERIMENTS) - 1
    second = tune.written(first, EXPERIMENTS, {EXPERIMENTS[0].name: "failed: why"})
    assert (
        tune.outcomes(second)[EXPERIMENTS[5].name] == "1.05 (1.04 to 1.06): 1 → 2 µs"
        and tune.outcomes(second)[EXPERIMENTS[0].name] == "failed: why"
    )
    assert tune.written(second, EXPERIMENTS, {}) == second
    with pytest.raises(SystemExit, match="once each"):
        tune.written("no marks", EXPERIMENTS, {})
    committed = (ROOT / "bench" / "TUNING.md").read_text()
    assert tune.written(committed, EXPERIMENTS, {}) == committed, "run python bench/tune.py --list"
