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
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
LOGS = ROOT / "bench" / ".results" / "gpu" / "tests"
PARTS = {  # files in the order in which they are begun, the most telling ones first, and in how many parts; then all others
    "ops": 3, "losses": 1, "gibbs": 1, "draw": 2, "noise": 1, "layer_ops": 1, "grad_norm_kernels": 8, "optim": 1, "capture": 2,
    "algorithms": 1, "bases": 1, "amp": 1, "faults": 1, "per_sample": 6, "trainer": 1,
}  # fmt: skip
OTHERS = 3
FIRST, STALLED = 120.0, 100.0  # seconds without a word: before the first test, and in one: some compile kernels for dozens of shapes
TRIES = 10  # of a part
LAST = 12.0  # seconds before the end after which no test is begun
SHOWN = 40  # failures, one line each, as they come


def environment() -> dict[str, str]:
    """Required backends may not be skipped. Not among them is ``cuda``, which has no kernel for some ops: the build looks for it."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "SAM_KERNELS_REQUIRE": "reference,triton",
    }


class Part:
    """A process for some of the tests, and what its record says."""

    def __init__(
        self, name: str, arguments: list[str], logs: Path, prefix: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.prefix, self.arguments, self.variables = name, prefix, arguments, variables or {}
        self.log, self.path = logs / f"{name}.log", logs / f"{name}.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.tries, self.read, self.heard, self.begun = 0, 0, 0.0, 0.0
        self.collected: list[str] = []
        self.started: list[str] = []
        self.outcomes: dict[str, tuple[str, str]] = {}  # test -> outcome, why
        self.broken = ""  # why there is nothing more to be had

    def start(self, until: float) -> None:
        self.tries += 1
        self.heard = time.time()
        self.begun = self.begun or self.heard
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "gpu_plugin",
            "-p",
            "no:cacheprovider",
            "--color=no",
            *self.arguments,
        ]
        command += ["--record", str(self.path), "--until", str(until)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment() | self.variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def hear(self) -> list[str]:
        """Takes in what is new in the record; lines about what failed."""
        from gpu_plugin import read

        lines, said = read(self.path), []
        for line in lines[self.read :]:
            self.heard = time.time()
            if "collected" in line:
                self.collected = line["collected"]
            if "begin" in line:
                self.started.append(line["begin"])
            if "end" in line:
                test, outcome = line["end"], line["outcome"]
                if self.outcomes.get(test, ("",))[0] != "failed":
                    self.outcomes[test] = (outcome, line["why"])
                if outcome == "failed":
                    said.append(f"FAILED {test}: {line['why']}")
        self.read = len(lines)
        return said

    def open(self) -> list[str]:
        """Begun, and no word of its end."""
        return [test for test in self.started if test not in self.outcomes]

    def ended(self, why: str) -> list[str]:
        """After the process: the test that it died in has failed."""
        said = []
        for test in self.open():
            self.outcomes[test] = ("failed", why)
            said.append(f"FAILED {test}: {why}")
        return said

    def left(self) -> list[str]:
        return [test for test in self.collected if test not in self.outcomes]

    def count(self) -> Counter:
        return Counter(outcome for outcome, _ in self.outcomes.values()) + Counter({"not run": len(self.left())})


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


def run(parts: list[Part], workers: int, until: float, end: float) -> None:
    """Until all is done, or until ``end``; failures are printed as they come, and a line when a part is done."""
    waiting, shown = list(parts), 0
    running: list[Part] = []

    def say(lines: Iterable[str]) -> None:
        nonlocal shown
        for line in lines:
            shown += 1
            if shown <= SHOWN:
                print(line[:300], flush=True)

    while waiting or running:
        while waiting and len(running) < workers and time.time() < until:
            running.append(waiting.pop(0))
            running[-1].start(until)
        if time.time() >= until:
            waiting.clear()
        for part in list(running):
            assert part.process is not None
            say(part.hear())
            code, silent = part.process.poll(), time.time() - part.heard
            if code is None and (time.time() > end or silent > (STALLED if part.started else FIRST)):
                over = "the time limit ended it" if time.time() > end else f"no word for {silent:.0f} s: killed"
                part.process.kill()
                part.process.wait()
                part.broken = "" if part.started else over
                say([*part.hear(), *(part.ended(over) if time.time() <= end else ())])  # what the time limit ended has not been run
            elif code is None:
                continue
            else:
                say([*part.hear(), *part.ended(f"the process ended with {code} in this test")])
                if code not in (0, 1, 2, 5) or (code == 2 and not part.started):
                    part.broken = "" if part.started else f"pytest ended with {code}: {last_line(part.log)}"
            running.remove(part)
            if part.left() and not part.broken and part.tries < TRIES and time.time() < until:
                print(f"{part.name}: begun again, {len(part.left())} tests left", flush=True)
                part.start(until)
                running.append(part)
            else:
                print(
                    f"{part.name}: {counted(part.count())}, {time.time() - part.begun:.0f} s{', ' * bool(part.broken)}{part.broken}",
                    flush=True,
                )
        time.sleep(0.1)


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1][:200]


def counted(count: Counter) -> str:
    names = ("passed", "failed", "skipped", "not run")
    return ", ".join(f"{count[name]} {name}" for name in names if count[name] or name == "passed")


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
