"""``make gpu``: stages that fail, hang or cannot run, parts of the tests that crash, and the sanitizer's selection. No GPU is needed."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")


def stage(name: str, code: str, limit: float = 20.0, **options):
    from gpu_plan import Stage

    return Stage(name, (sys.executable, "-c", code), limit, **options)


def run_all(tmp_path: Path, *some, gpu: bool = True, out: Path | None = None):
    import gpu_stages

    logs = tmp_path / "logs"
    logs.mkdir(exist_ok=True)
    results = gpu_stages.run_all(some, gpu, dict(os.environ), logs, out)
    return results, gpu_stages.summary(results), gpu_stages.status(results, False)


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# ---- stages


def test_a_stage_that_overruns_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_stages

    monkeypatch.setattr(gpu_stages, "MARGIN", 1.0)
    monkeypatch.setattr(gpu_stages, "GRACE", 0.5)
    pids = tmp_path / "pids"
    code = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
print("begun", flush=True)
time.sleep(300)
"""
    results, summary, status = run_all(tmp_path, stage("slow", code, 3), stage("next", "print('found: here')"))
    assert [r.outcome for r in results] == ["timed out", "ok"] and status == 1
    assert results[0].seconds >= 3 and "timed out" in summary and "here" in summary
    assert (tmp_path / "logs" / "slow.log").read_text() == "begun\n"
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_failing_stage_sets_the_status_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    failing = stage("bench", "print('found: a'); print('found: b', flush=True); import sys; print('why', file=sys.stderr); sys.exit(5)")
    results, summary, status = run_all(tmp_path, stage("build", "pass"), failing, stage("report", "print('all is well')"))
    assert [(r.name, r.outcome) for r in results] == [("build", "ok"), ("bench", "failed"), ("report", "ok")] and status == 1
    assert results[1].found == ("a", "b") and results[2].found == ("all is well",)
    lines = summary.splitlines()
    assert lines[0] == "bench: a" and [line.split()[0] for line in lines[2:]] == ["build", "bench", "report"]
    assert "why" in (tmp_path / "logs" / "bench.log").read_text() and "why" in capsys.readouterr().out
    assert (tmp_path / "logs" / "summary.txt").read_text() == summary + "\n"


def test_a_failed_build_stops_what_needs_it(tmp_path: Path) -> None:
    made, report = tmp_path / "made", stage("report", "pass", built=False)
    tests = stage("tests", f"open({str(made)!r}, 'w')")
    results, summary, status = run_all(tmp_path, stage("build", "raise SystemExit(1)", built=False), tests, report)
    assert [r.outcome for r in results] == ["failed", "not run", "ok"] and not made.exists() and status == 1
    assert "the build failed" in summary
    results, _, status = run_all(tmp_path, stage("build", "raise SystemExit(3)", built=False), tests, report)
    assert [r.outcome for r in results] == ["failed", "ok", "ok"] and made.exists() and status == 1, "3: built without CUDA kernels"


def test_what_cannot_run_is_told_and_fails_only_by_name(tmp_path: Path) -> None:
    import gpu_stages

    some = [
        stage("tests", "pass"),
        stage("steps", "pass", gpu=False, lacks=lambda: "bench/x.py is not there"),
        stage("a", "raise SystemExit(4)"),
    ]
    results, summary, status = run_all(tmp_path, *some)
    assert [r.outcome for r in results] == ["ok", "not available", "not available"] and status == 0
    assert gpu_stages.status(results, True) == 1 and "bench/x.py is not there" in summary
    results, _, status = run_all(tmp_path, *some[:1], gpu=False)
    assert [r.outcome for r in results] == ["not available"] and status == 0


def test_time_that_is_left_is_passed_on_and_the_total_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_stages

    told = "import sys; print('found:', {seconds})".replace("{seconds}", "'{seconds}'")
    results, _, _ = run_all(tmp_path, stage("a", "pass", 100), stage("b", told, 50))
    assert float(results[1].found[0]) > 130
    monkeypatch.setattr(gpu_stages, "TOTAL", 60.0)
    results, _, _ = run_all(tmp_path, stage("a", told, 100), stage("b", told, 50))
    assert all(float(r.found[0]) <= 54 for r in results)
    monkeypatch.setattr(gpu_stages, "TOTAL", 5.0)
    results, _, status = run_all(tmp_path, stage("a", told, 100))
    assert results[0].outcome == "not run" and status == 1


def test_the_limits_add_up_to_less_than_nine_minutes() -> None:
    import gpu_stages

    default = [each for each in gpu_stages.stages("system") if each.default]
    assert sum(each.limit for each in default) <= gpu_stages.TOTAL <= 540
    assert [each.name for each in default] == ["build", "tests", "bench", "ops", "steps", "sanitize", "report"]
    for each in gpu_stages.stages("system"):
        named = [part for part in each.command if part.startswith("bench/") and part.endswith(".py")]
        assert all((ROOT / part).exists() or each.name == "steps" for part in named)


def test_an_unknown_stage_is_refused_with_the_list() -> None:
    done = subprocess.run([sys.executable, "bench/gpu_stages.py", "--stage", "build,best"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "STAGE names best; expected some of build, checks, tests" in done.stderr


def test_without_a_gpu_only_the_compile_time_checks_run() -> None:
    import gpu_stages

    known = gpu_stages.stages("system")
    assert [each.name for each in gpu_stages.chosen("", known, False)] == ["build", "checks"]
    assert [each.name for each in gpu_stages.chosen("report,tests", known, False)] == ["tests", "report"]


def test_logs_and_results_are_kept_as_one_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_stages

    root = tmp_path / "root"
    (root / "bench" / "results").mkdir(parents=True)
    (root / "bench" / "results" / "a.json").write_text("{}")
    (root / "README.md").write_text("x")
    monkeypatch.setattr(gpu_stages, "ROOT", root)
    run_all(tmp_path, stage("a", "pass"), out=tmp_path)
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert {"bench/results/a.json", "README.md"} <= set(archive.getnames())


def test_the_summary_of_pytest_is_what_a_stage_found(tmp_path: Path) -> None:
    text = "print('FAILED x - 3 passed'); print('==== 2 failed, 3 passed in 4.00s ===='); print('bye'); raise SystemExit(1)"
    results, _, _ = run_all(tmp_path, stage("checks", text))
    assert results[0].found == ("2 failed, 3 passed in 4.00s",)


# ---- the tests in parts

HARD = """
import os, time, pytest
@pytest.mark.parametrize("k", range(3))
def test_fine(k): pass
def test_crash(): os.abort()
def test_wrong(): assert 1 == 2, "one is not two"
def test_left_out(): pytest.skip("no")
def test_hang(): time.sleep(300)
def test_last(): pass
"""


def run_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float = 60.0, **settings: float):
    import gpu_parts
    import gpu_tests

    for name, value in settings.items():
        monkeypatch.setattr(gpu_parts, name, value)
    file, logs = tmp_path / "test_hard.py", tmp_path / "parts"
    file.write_text(text)
    logs.mkdir()
    parts = [gpu_parts.Part(f"hard-{k}", [str(file), "-c", os.devnull, "--part", f"{k}/2"], logs) for k in (1, 2)]
    gpu_parts.run(parts, 2, time.time() + seconds, time.time() + seconds + 5)
    return parts, gpu_tests.summary(parts)


def test_a_crash_and_a_hang_cost_one_test_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    parts, status = run_parts(tmp_path, monkeypatch, HARD, STALLED=4.0)
    outcomes = {test.split("::")[1]: outcome for part in parts for test, outcome in part.outcomes.items()}
    assert {name for name, (outcome, _) in outcomes.items() if outcome == "passed"} == {*(f"test_fine[{k}]" for k in range(3)), "test_last"}
    assert outcomes["test_left_out"][0] == "skipped" and "one is not two" in outcomes["test_wrong"][1]
    assert "ended with -6" in outcomes["test_crash"][1] and "no word for" in outcomes["test_hang"][1]
    out = capsys.readouterr().out
    assert status == 1 and "found: 4 passed, 3 failed, 1 skipped of 8 tests in 1 files" in out
    assert "found: 1 failed in" in out and out.count("FAILED ") == 3


def test_the_time_limit_leaves_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    slow = "import time, pytest\n@pytest.mark.parametrize('k', range(40))\ndef test_slow(k): time.sleep(0.5)\n"
    parts, status = run_parts(tmp_path, monkeypatch, slow, 3.0)
    count = sum((part.count() for part in parts), start=parts[0].count() - parts[0].count())
    assert status == 1 and count["passed"] > 0 and count["not run"] > 0 and count["failed"] == 0 and count.total() == 40
    assert "not run of 40 tests" in capsys.readouterr().out


def test_tests_that_cannot_be_collected_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, status = run_parts(tmp_path, monkeypatch, "import a_module_that_is_not_there\n")
    assert status == 1 and "a_module_that_is_not_there" in capsys.readouterr().out


def test_a_lost_context_ends_the_session_and_names_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import gpu_plugin, pytest
LOST = []
def synchronize():
    if LOST: raise RuntimeError("an illegal memory access was encountered")
gpu_plugin.synchronize = synchronize
@pytest.mark.parametrize("k", range(12))
def test_kernel(k):
    if k == 5: LOST.append(k)
"""
    parts, status = run_parts(tmp_path, monkeypatch, text)
    wrong = [(test.split("::")[1], why) for part in parts for test, (outcome, why) in part.outcomes.items() if outcome == "failed"]
    assert status == 1 and wrong == [("test_kernel[5]", "RuntimeError: an illegal memory access was encountered")]
    assert sum(part.count()["passed"] for part in parts) == 11 and max(part.tries for part in parts) == 2


# ---- the sanitizer


def test_the_sanitizer_sees_a_case_of_every_op(tmp_path: Path) -> None:
    """As it would be collected on a machine with a GPU, and one case for every op and every backend with a kernel of it."""
    from gpu_sanitize import SUBSET, selection

    from sam_kernels.backends.native import _MODULES
    from sam_kernels.registry import OPS

    (tmp_path / "pretend_gpu.py").write_text(
        "import torch\ntorch.cuda.is_available = lambda: True\ntorch.cuda.get_device_name = lambda *_: 'none'\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "tests")])
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    files, having = [f"tests/test_{name}.py" for name in SUBSET], [word for name in SUBSET for word in selection(name)[3:]]
    command = [sys.executable, "-m", "pytest", "-p", "pretend_gpu", "-p", "gpu_plugin", "--collect-only", "-q", "-m", "gpu"]
    done = subprocess.run([*command, *files, *having], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = done.stdout
    tests = {  # op -> what the name of a test of it holds
        "inner_products": "-inner_products-", "ascend_": "-ascend_-", "descend_": "-descend_-", "gibbs_weights": "test_gibbs.py",
        "cross_entropy_sample": "test_value_norm_and_gradient", "cross_entropy_sample_backward": "test_value_norm_and_gradient",
        "draw": "test_draw.py", "linear_grad_norms": "test_linear_parts", "conv_grad_norms": "test_no_norm_is_negative",
        "normalization_grads": "test_normalization", "embedding_grad_norms": "test_embedding",
    }  # fmt: skip
    assert set(tests) == set(OPS)
    cpu_only = {name for module in _MODULES for name in getattr(module, "CPU_ONLY", ())}
    for op, text in tests.items():
        for backend in ("triton", *(("cuda",) if op not in cpu_only else ())):
            assert any(text in line and f"{backend}-cuda" in line for line in found.splitlines()), f"{op}, {backend}"


def test_verdicts_of_the_sanitizer(tmp_path: Path) -> None:
    from gpu_parts import Part
    from gpu_sanitize import verdict

    part = Part("memcheck-ops", [], tmp_path)
    part.path.write_text("\n".join(json.dumps(line) for line in (
        {"collected": ["a"]}, {"begin": "a"}, {"end": "a", "outcome": "passed", "seconds": 1, "why": ""})) + '\n{"cut o')  # fmt: skip
    part.hear()
    assert verdict(part, "========= ERROR SUMMARY: 0 errors\n")[0]
    assert verdict(part, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")[0]
    fine, line = verdict(part, "========= ERROR SUMMARY: 3 errors\n")
    assert not fine and "3 errors" in line and "1 passed" in line
    assert not verdict(Part("memcheck-draw", [], tmp_path), "")[0], "nothing ran"


# ---- the build


@pytest.mark.parametrize(("builds", "code", "tried"), [
    (["cuda"], 0, ["cuda"]), (["cpu"], 3, ["cuda", "cpu"]), (["none"], 3, ["cuda", "cpu", "none"]), ([], 1, ["cuda", "cpu", "none"]),
])  # fmt: skip
def test_a_build_falls_back_to_what_compiles(
    builds: list[str], code: int, tried: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import gpu_build

    seen = []
    monkeypatch.setenv("SAM_KERNELS_CUDA_ARCHS", "90")
    monkeypatch.setattr(sys, "argv", ["gpu_build.py", "--env", "system"])
    monkeypatch.setattr(gpu_build, "build", lambda env, what: seen.append(what) or what in builds)
    monkeypatch.setattr(gpu_build, "CHECK", "print('found: triton')")
    assert gpu_build.main() == code and seen == tried
    said = capsys.readouterr().out
    assert ("does not build" in said) == (code == 3) and ("nothing builds" in said) == (code == 1)
