"""The experiments of TUNING.md: a changed copy of the kernels against the kernels, matched first, in alternating rounds.

    python bench/tune.py [--seconds 420] [--only "forward traversal, cuda"] [--list]

Every change is made in a copy of the sources, which is built where it concerns CUDA. A cell runs in a process of its own that waits for
its turn, so that both are timed in the same run. The outcomes go into bench/TUNING.md; --list writes it without measuring.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from time import monotonic

from experiments import EXPERIMENTS, OPEN, Experiment
from tune_cell import Served

ROOT = Path(__file__).resolve().parents[1]
NOTES = ROOT / "bench" / "TUNING.md"
BEGIN, END = "<!-- tuning:begin -->", "<!-- tuning:end -->"
UNKNOWN = "not measured yet"
HEADER = "| experiment | prediction | change | outcome |\n| --- | --- | --- | --- |"
ROUNDS = 15


def changed(experiment: Experiment, folder: Path) -> Path:
    """A copy of the sources with the change in it; built where it is one of CUDA."""
    source = (ROOT / experiment.file).read_text()
    if source.count(experiment.old) != 1:
        raise RuntimeError(f"{experiment.file} holds {experiment.old!r} {source.count(experiment.old)} times; expected once")
    for name in ("sam_kernels", "csrc", "build"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / experiment.file).write_text(source.replace(experiment.old, experiment.new))
    if experiment.file.startswith("csrc/"):
        command, environment = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], os.environ | {"SAM_KERNELS_BUILD": "cuda"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line]
            raise RuntimeError(f"does not build: {(errors or ['?'])[0]}")
    return folder


def run(experiment: Experiment) -> str:
    """The outcome, as it stands in the notes."""
    from sam_kernels.profiling.tables import between, number
    from sam_kernels.profiling.timing import ratios, spread

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            tree = ROOT if experiment.other else changed(experiment, folder / "tree")
            with ExitStack() as stack:
                both = [Served(experiment.cell, ROOT, folder / "0"), Served(experiment.other or experiment.cell, tree, folder / "1")]
                for served in both:
                    stack.callback(served.close)
                where, _ = (served.ready() for served in both)
                pairs = [tuple(served.time() for served in both) for _ in range(ROUNDS + 1)][1:]
        except RuntimeError as error:
            return f"failed: {str(error)[:160]}"
    before, after = zip(*pairs, strict=True)
    times = " → ".join(f"{number(1e3 * spread(some)['median'])}" for some in (before, after))
    return f"{between(ratios(after, before))}: {times} µs, {where}, {date.today()}"


def outcomes(notes: str) -> dict[str, str]:
    """What the notes say already, by experiment."""
    inside = notes.partition(BEGIN)[2].partition(END)[0]
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in inside.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): cells[3].strip() for cells in found if len(cells) == 4 and cells[0].strip() != "experiment"}


def written(notes: str, experiments: Sequence[Experiment], results: dict[str, str]) -> str:
    """The notes with a line per experiment between their markers."""
    if notes.count(BEGIN) != 1 or notes.count(END) != 1:
        raise SystemExit(f"{NOTES}: expected {BEGIN} and {END}, once each")
    known = outcomes(notes) | results

    def line(e: Experiment) -> str:
        cells = (e.name, e.prediction, f"{e.change}; {e.cell.op}, {e.cell.on}, {e.cell.dtype}", known.get(e.name, UNKNOWN))
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells[:3]) + f" | {cells[3]} |"

    table = "\n".join([HEADER, *map(line, experiments)])
    left = "\n".join(f"* {text}." for text in OPEN)
    head, tail = notes.partition(BEGIN)[0], notes.partition(END)[2]
    return f"{head}{BEGIN}\n\n{table}\n\nOpen, without code:\n\n{left}\n\n{END}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--only", action="append", choices=[e.name for e in EXPERIMENTS], metavar="NAME")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    NOTES.write_text(written(NOTES.read_text(), EXPERIMENTS, {}))
    if arguments.list:
        return 0
    import torch

    if not torch.cuda.is_available():
        print("bench/tune.py: torch sees no CUDA GPU here; nothing is timed")
        return 0
    begun, left, failed = monotonic(), 0, 0
    for experiment in sorted(EXPERIMENTS, key=lambda e: e.file.startswith("csrc/")):  # what is to be built comes last
        if arguments.only and experiment.name not in arguments.only:
            continue
        if monotonic() - begun > arguments.seconds - 30:
            left += 1
            continue
        outcome = run(experiment)
        failed += outcome.startswith("failed")
        print(f"{experiment.name}: {outcome}", flush=True)
        NOTES.write_text(written(NOTES.read_text(), EXPERIMENTS, {experiment.name: outcome}))
    print(f"found: {failed} experiments failed, {left} left out for want of time; see bench/TUNING.md")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
