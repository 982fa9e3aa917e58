"""The examples run as smoke tests, and what they print is what they say they measure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
for module in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(module)
REWEIGHTED = ("RW-SAM exact", "RW-SAM logits", "RW-SAM finite diff.")


def run(script: str, *options: str, out: Path) -> list[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(ROOT / "examples" / script), "--quick", "--threads", "1", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path})
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
    rows = below[: next(k for k, line in enumerate(below) if line.startswith(("accuracy", "Spearman")))]
    return [[row[a:b].strip() for a, b in ends] for row in (lines[rule - 1], *rows)]


def test_digits(tmp_path: Path) -> None:
    lines = run("digits.py", "--epochs", "1", "--methods", "SGD", "SAM", *REWEIGHTED, out=tmp_path)
    head, *rows = table(lines)
    assert [row[0] for row in rows] == ["SGD", "SAM", *REWEIGHTED]
    weight, loop = head.index("weight on wrong labels, %"), head.index("ms in a plain per-tensor loop")
    for row in rows:
        assert (row[weight] != "-") == (row[0] in REWEIGHTED) and (row[loop] != "-") == (row[0] == "SAM")
        assert float(row[1]) > 0 and float(row[3].split()[0]) > 0
    assert all(20 < float(row[weight]) < 80 for row in rows[2:])
    assert any("matches autograd on single samples" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.png", "optimizer_time.png"}


def test_estimators(tmp_path: Path) -> None:
    head, *rows = table(run("estimators.py", out=tmp_path))
    assert [row[0] for row in rows] == ["0", "1", "5", "21"]
    for row in rows:
        assert all(-1 <= float(cell) <= 1 for cell in row[1:])
    last = dict(zip(head[1:], map(float, rows[-1][1:]), strict=True))
    assert last["1 probe"] < last["4 probes"] < last["16 probes"]  # 0.2, 0.5, 0.8: more probes know more
    assert min(last[name] for name in ("loss", "logits", "last layer", "norm layers")) > 0.4
    assert {path.name for path in tmp_path.iterdir()} == {"estimators.png"}
