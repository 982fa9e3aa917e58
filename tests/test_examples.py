"""The examples run as smoke tests, and what they print is what they say they measure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
for module in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(module)
REWEIGHTED = ("RW-SAM exact", "RW-SAM logits", "RW-SAM finite diff.")
CHOOSING = ("ESAM", "AUSAM")  # some samples of a batch


def start(script: str, *options: str, out: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(ROOT / "examples" / script), "--quick", "--threads", "1", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})


def run(script: str, *options: str, out: Path) -> list[str]:
    done = start(script, *options, out=out)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def table(lines: list[str]) -> list[list[str]]:
    """Header and rows, cut at the columns of the rule."""
    rule = next(k for k, line in enumerate(lines) if line.startswith("-----"))
    ends, end = [], 0
    for dashes in lines[rule].split("  "):
        ends.append((end, end + len(dashes)))
        end += len(dashes) + 2
    below = lines[rule + 1 :]
    rows = below[: next(k for k, line in enumerate(below) if line.startswith(("accuracy", "Spearman", "after")))]
    return [[row[a:b].strip() for a, b in ends] for row in (lines[rule - 1], *rows)]


def test_digits(tmp_path: Path) -> None:
    names = ["SGD", "SAM", "m-SAM, m 16", *CHOOSING, *REWEIGHTED]
    keys = "esam,ausam,sgd,sam,m-sam,rw-exact,rw-logits,rw-difference"  # the table has its own order
    lines = run("digits.py", "--epochs", "2", "--methods", keys, out=tmp_path)  # in the first, AUSAM takes all samples
    head, *rows = table(lines)
    assert [row[0] for row in rows] == names
    weight, loop = head.index("weight on wrong labels, %"), head.index("ms in a plain per-tensor loop")
    for row in rows:
        assert (row[weight] != "-") == (row[0] in REWEIGHTED + CHOOSING) and (row[loop] != "-") == (row[0] == "SAM")
        assert float(row[1]) > 0 and float(row[3].split()[0]) > 0
    assert all(20 < float(row[weight]) < 80 for row in rows[3:])
    assert any("matches autograd on single samples" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.png", "optimizer_time.png"}


@pytest.mark.parametrize(("script", "option", "given"), [("digits.py", "--methods", "sam,lion"), ("estimators.py", "--method", "lion")])
def test_unknown_methods_are_refused_with_the_known_ones(tmp_path: Path, script: str, option: str, given: str) -> None:
    done = start(script, option, given, out=tmp_path)
    assert done.returncode == 2
    assert "no method named 'lion'; expected some of sgd,sgd-0.1,sam,asam,stable-sam,m-sam,esam,ausam," in done.stderr


def test_estimators(tmp_path: Path) -> None:
    head, *rows = table(run("estimators.py", out=tmp_path))
    assert [row[0] for row in rows] == ["0", "1", "5", "21"]
    for row in rows:
        assert all(-1 <= float(cell) <= 1 for cell in row[1:])
    last = dict(zip(head[1:], map(float, rows[-1][1:]), strict=True))
    assert last["1 probe"] < last["4 probes"] < last["16 probes"]  # 0.2, 0.5, 0.8: more probes know more
    assert min(last[name] for name in ("loss", "logits", "last layer", "norm layers")) > 0.4
    assert {path.name for path in tmp_path.iterdir()} == {"estimators.png"}


def test_m_sharpness(tmp_path: Path) -> None:
    _, *rows = table(run("m_sharpness.py", out=tmp_path))
    assert [row[0] for row in rows] == [f"{name}, rho {rho}" for rho in (0.1, 0.5) for name in ("m-SAM, m 32", "m-SAM, m 128", "RW-SAM")]
    for row in rows:
        assert 10 < float(row[1]) <= 100 and 10 < float(row[2]) <= 100 and float(row[3]) > 0
    assert float(rows[0][3]) != float(rows[1][3])
    assert {path.name for path in tmp_path.iterdir()} == {"m_sharpness.png"}


def test_top_eigenvalue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power iteration against the eigenvalues of the whole Hessian."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from m_sharpness import top_eigenvalue

    random = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.GELU(), torch.nn.Linear(6, 3))
    x, y = torch.randn(40, 5, generator=random), torch.randint(0, 3, (40,), generator=random)
    names, sizes = [name for name, _ in model.named_parameters()], [p.numel() for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(w: torch.Tensor) -> torch.Tensor:
        pieces = [v.view_as(p) for v, p in zip(w.split(sizes), model.parameters(), strict=True)]
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), x), y)

    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    assert abs(top_eigenvalue(model, x, y) / largest - 1) < 0.02  # the iteration stops at changes of 0.1 %
