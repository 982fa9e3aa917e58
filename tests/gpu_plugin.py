"""pytest plugin of bench/gpu_tests.py: a part of the tests, a line of JSON as each begins and ends, an end at the time limit.

    python -m pytest tests -m gpu -p gpu_plugin --part 2/5 --record out.jsonl --until 1790000000

A kernel that faults makes every later CUDA call of the process fail: the test that did it fails by name, whether it looked or not, and the
session ends, for whoever started it to begin again with the tests that are not in the record yet. So it is after a crash or a hang.
"""

import json
import sys
import time
import zlib
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu_plugin")
    group.addoption("--part", default="1/1", help="K/N: the K-th of N parts, by name")
    group.addoption(
        "--having", action="append", default=[], help="only tests whose names hold all of these, separated by commas; repeatable"
    )
    group.addoption("--record", type=Path, help="file of JSON lines; tests that it knows are left out")
    group.addoption("--until", type=float, help="seconds since 1970 after which no test is begun")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config), "gpu_recorder")


def read(path: Path) -> list[dict]:
    """The lines of a record; the last one may have been cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


class Recorder:
    def __init__(self, config: pytest.Config) -> None:
        self.path, self.until = config.getoption("record"), config.getoption("until")
        number, count = config.getoption("part").split("/")
        self.part, self.parts = int(number) - 1, int(count)
        self.having = [group.split(",") for group in config.getoption("having")]
        self.session: pytest.Session | None = None

    def write(self, **line: object) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    @pytest.hookimpl(trylast=True)  # after the selection by marks and names
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for group in self.having:
            if not any(all(text in item.nodeid for text in group) for item in items):
                raise pytest.UsageError(f"--having {','.join(group)}: no test has such a name")
        begun = {line["begin"] for line in read(self.path) if "begin" in line} if self.path is not None else set()
        mine = [
            item
            for item in items
            if zlib.crc32(item.nodeid.encode()) % self.parts == self.part
            and (not self.having or any(all(text in item.nodeid for text in group) for group in self.having))
        ]
        left = {item.nodeid for item in mine} - begun
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in left])
        items[:] = [item for item in mine if item.nodeid in left]
        self.write(collected=[item.nodeid for item in mine])

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(begin=nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> object:
        result = yield
        synchronize()
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            first = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "").strip()
            crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", "") or first
            why = (crash.splitlines() or [""])[0][:300]
            self.write(end=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), why=why)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        assert self.session is not None
        try:
            synchronize()
        except RuntimeError as error:
            self.write(lost=nodeid)
            self.session.shouldstop = f"the CUDA context is lost after {nodeid}: {str(error).splitlines()[0]}"
        if self.until is not None and time.time() > self.until:
            self.session.shouldstop = "time limit: the rest is not run"


def synchronize() -> None:
    """Raises what the kernels of this process have done wrong."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
