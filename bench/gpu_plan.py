"""The stages of ``make gpu``: what each runs, how long it may take, and what it needs. Standard library only."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USABLE = 3  # exit status of a build that failed, but left something to test
UNAVAILABLE = 4  # of a stage that found that it cannot run here


@dataclass(frozen=True)
class Stage:
    """``{seconds}`` in the command is what it may take."""

    name: str
    command: tuple[str, ...]
    limit: float
    gpu: bool = True  # needs one
    built: bool = True  # needs the build
    default: bool = True  # runs where no stage is asked for; without a GPU only what needs none does
    lacks: Callable[[], str | None] = lambda: None  # why it cannot run here


def lacks_file(path: str) -> Callable[[], str | None]:
    return lambda: None if (ROOT / path).exists() else f"{path} is not there"


def lacks_sanitizer() -> str | None:
    return None if sanitizer() else "compute-sanitizer was not found on the path or in the CUDA toolkit"


def sanitizer() -> str | None:
    homes = [home for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    folders = [os.environ.get("PATH", ""), *(f"{home}/{folder}" for home in homes for folder in ("bin", "compute-sanitizer"))]
    return next(filter(None, (shutil.which("compute-sanitizer", path=folder) for folder in folders)), None)


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, f"bench/{name}.py", *arguments


def stages(env: str) -> list[Stage]:
    # The build has time for a slow machine; what it leaves goes to those behind it, which can do with little but do better with more.
    pytest, seconds = (sys.executable, "-m", "pytest", "-q", "--color=no"), ("--seconds", "{seconds}")
    return [
        Stage("build", script("gpu_build", "--env", env), 150, gpu=False, built=False),
        Stage("checks", (*pytest, "tests/test_triton_aot.py", "tests/test_cuda_static.py"), 500, gpu=False, default=False),
        Stage("tests", script("gpu_tests", *seconds), 130),
        Stage("bench", script("gpu", *seconds), 60),
        Stage("ops", script("gpu_ops", *seconds), 60),
        Stage("steps", script("end_to_end", *seconds, "--out", "bench/results"), 85, lacks=lacks_file("bench/end_to_end.py")),
        Stage("sanitize", script("gpu_sanitize", *seconds), 40, lacks=lacks_sanitizer),
        Stage("tune", script("tune", *seconds), 420, default=False),
        Stage("report", script("gpu_report", "--readme", "README.md", "--plot", "docs/gpu.png"), 15, gpu=False, built=False),
    ]
