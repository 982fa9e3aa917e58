"""Processes of pytest for parts of the tests, many at a time, and what their records say; see tests/gpu_plugin.py. Needs pytest only."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
FIRST, STALLED = 120.0, 100.0  # seconds without a word: before the first test, and in one: some compile kernels for dozens of shapes
TRIES = 10  # of a part
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
