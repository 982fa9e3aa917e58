"""All tests marked ``gpu``, many processes at a time: a fault, a crash or a hang costs one test, and the time limit costs no result.

    python bench/gpu_tests.py [--seconds 170] [--workers N] [paths and options of pytest]

Every process has a part of a file and writes a record (tests/gpu_plugin.py). One that dies, hangs or loses its CUDA context is begun
again with the tests that are not in its record. Logs and records: bench/.results/gpu/tests/. Needs pytest only.
"""

import argparse
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

from gpu_parts import ROOT, Part, counted, run

LOGS = ROOT / "bench" / ".results" / "gpu" / "tests"
PARTS = {  # files in the order in which they are begun, the most telling ones first, and in how many parts; then all others
    "ops": 3, "losses": 1, "gibbs": 1, "draw": 2, "noise": 1, "layer_ops": 1, "grad_norm_kernels": 8, "optim": 1, "capture": 2,
    "algorithms": 1, "bases": 1, "amp": 1, "faults": 1, "per_sample": 6, "trainer": 1,
}  # fmt: skip
OTHERS = 3
LAST = 12.0  # seconds before the end after which no test is begun


def parts_of(arguments: list[str], logs: Path) -> list[Part]:
    """Of everything, or of what is named in the arguments of pytest, as one."""
    if arguments:
        return [Part("chosen", arguments, logs)]
    found, known = [], []
    for name, count in PARTS.items():
        path = ROOT / "tests" / f"test_{name}.py"
        if path.exists():
            known.append(path)
            file = str(path.relative_to(ROOT))
            found += [Part(f"{name}-{k}", [file, "-m", "gpu", "--part", f"{k}/{count}"], logs) for k in range(1, count + 1)]
    others = ["tests", "-m", "gpu", *(f"--ignore={path.relative_to(ROOT)}" for path in known)]
    return found + [Part(f"others-{k}", [*others, "--part", f"{k}/{OTHERS}"], logs) for k in range(1, OTHERS + 1)]


def summary(parts: list[Part]) -> int:
    """A line per file, the failures by test function, and what the stage has found. 0 where all has been run and nothing failed."""
    files: dict[str, Counter] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    for part in parts:
        for test in part.collected:
            outcome, why = part.outcomes.get(test, ("not run", ""))
            files.setdefault(test.split("::")[0], Counter())[outcome] += 1
            if outcome == "failed":
                backend = re.search(r"\b\w+-cuda\b", test)
                groups.setdefault(f"{test.split('[')[0]}, {backend[0] if backend else 'no backend'}", []).append((test, why))
    print()
    for file in sorted(files):
        print(f"{file:<36}{files[file].total():>6}: {counted(files[file])}")
    broken, unknown = [part for part in parts if part.broken], [part.name for part in parts if not part.tries]
    for part in broken:
        print(f"found: {part.name}: {part.broken}")
    if unknown:
        print(f"found: not begun, the time was over: {', '.join(unknown)}")
    for where, failed in sorted(groups.items(), key=lambda item: -len(item[1]))[:12]:
        test, why = failed[0]
        print(f"found: {len(failed)} failed in {where}, the first one [{test.partition('[')[2]}: {why}"[:260])
    total = sum(files.values(), Counter())
    print(f"found: {counted(total)} of {total.total()} tests in {len(files)} files")
    return int(bool(total["failed"] or total["not run"] or broken or unknown or not total["passed"]))


def shared() -> bool:
    """Whether several processes may use the GPU at a time."""
    try:
        asked = ["nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader"]
        return "Exclusive" not in subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--workers", type=int, default=min(16, len(os.sched_getaffinity(0))))
    arguments, others = parser.parse_known_args()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    begun = time.time()
    parts, workers = parts_of(others, LOGS), arguments.workers if shared() else 1
    print(f"{len(parts)} parts, {workers} at a time, {arguments.seconds:.0f} s", flush=True)
    run(parts, workers, begun + arguments.seconds - LAST, begun + arguments.seconds - 3)
    return summary(parts)


if __name__ == "__main__":
    raise SystemExit(main())
