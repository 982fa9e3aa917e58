"""What ``make gpu`` does: stages, each a process of its own with a time limit; one that fails or hangs does not stop the others.

    python bench/gpu_stages.py [--stage build,tests] [--env system]

Output goes to the terminal and to bench/.results/gpu/<stage>.log. What a stage leaves of its time is added to that of the next ones; all
of them together end within nine minutes. With OUT=<folder> in the environment logs, results, README and figures are kept there as one
archive, anew after every stage. Standard library only: it also reports where nothing can be imported.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_plan import ROOT, UNAVAILABLE, USABLE, Stage, sanitizer, stages

LOGS = ROOT / "bench" / ".results" / "gpu"
KEPT = ("bench/.results/gpu", "bench/results", "bench/TUNING.md", "README.md", "docs/gpu.png")
TOTAL = 540.0  # seconds
MARGIN = 6.0  # of a stage's limit, for it to end by itself
GRACE = 3.0  # between being asked to end and being killed
OK, FAILED, TIMED_OUT, MISSING, NOT_RUN = "ok", "failed", "timed out", "not available", "not run"
PROBE = """import json, platform, torch
found = {"gpu": None, "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
if torch.cuda.is_available():
    found["gpu"], (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    found["arch"] = f"{major}{minor}"
print(json.dumps(found))
"""


@dataclass
class Result:
    name: str
    outcome: str
    seconds: float = 0.0
    found: tuple[str, ...] = ()
    usable: bool = True  # what it made, where it is the build

    def line(self) -> str:
        return f"{self.name:<10}{self.outcome:<15}{self.seconds:>6.0f} s   {self.found[-1] if self.found else ''}".rstrip()


def run(stage: Stage, limit: float, environment: dict[str, str], logs: Path) -> Result:
    """One stage, killed with all that it has started where it takes longer than ``limit``."""
    command = [part.replace("{seconds}", f"{limit - MARGIN:.0f}") for part in stage.command]
    log, begun = logs / f"{stage.name}.log", time.monotonic()
    print(f"\n==== {stage.name}, at most {limit:.0f} s: {' '.join(command)}", flush=True)
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Result(stage.name, FAILED, 0.0, (str(error),), False)
    reader = threading.Thread(target=copy_output, args=(process, log), daemon=True)
    reader.start()
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        end(process)
        reader.join(GRACE)
    outcome = {None: TIMED_OUT, 0: OK, UNAVAILABLE: MISSING}.get(code, FAILED)
    found = findings(log, f"exit status {code}" if code else "")
    return Result(stage.name, outcome, time.monotonic() - begun, found, code in (0, USABLE))


def copy_output(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """To the terminal and into the log, as it comes."""
    assert process.stdout is not None
    with log.open("wb", buffering=0) as file:
        while data := os.read(process.stdout.fileno(), 1 << 16):
            file.write(data)
            sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()


def end(process: "subprocess.Popen[bytes]") -> None:
    """Nothing of its group survives, whether it has ended itself or not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE if number == signal.SIGTERM else None)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def findings(log: Path, otherwise: str) -> tuple[str, ...]:
    """Its lines ``found: ...``, or the summary of pytest, or the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    told = [line.removeprefix("found: ") for line in lines if line.startswith("found: ")]
    counts = [line.strip("= ") for line in lines if re.search(r"\b\d+ (passed|failed|error|skipped)", line) and " in " in line]
    last = [f"{lines[-1]}{' (' + otherwise + ')' if otherwise else ''}"] if lines else [otherwise]
    return tuple(line[:240] for line in (told or counts[-1:] or last)[-16:])


def probe(environment: dict[str, str]) -> dict[str, str | None]:
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        return {"gpu": None, "error": "importing torch took more than 90 s"}
    if done.returncode != 0:
        return {"gpu": None, "error": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def chosen(asked: str, known: Sequence[Stage], gpu: bool) -> list[Stage]:
    """The stages to run: those asked for, or the default ones; without a GPU the build and the compile-time checks."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in [stage.name for stage in known]]:
        raise SystemExit(f"STAGE names {', '.join(unknown)}; expected some of {', '.join(stage.name for stage in known)}")
    if names:
        return [stage for stage in known if stage.name in names]
    return [stage for stage in known if (stage.default if gpu else stage.name in ("build", "checks"))]


def run_all(
    some: Sequence[Stage], gpu: bool, environment: dict[str, str], logs: Path, out: Path | None, spare: float = 0.0
) -> list[Result]:
    """One after the other; ``spare``: seconds beyond the limits, for whoever needs them first."""
    results: list[Result] = []
    begun, usable = time.monotonic(), True
    for stage in some:
        missing = "torch sees no CUDA GPU" if stage.gpu and not gpu else stage.lacks()
        left = TOTAL - (time.monotonic() - begun)
        limit = min(stage.limit + spare, left) if gpu else 3600.0
        if missing:
            results.append(Result(stage.name, MISSING, 0.0, (missing,)))
        elif stage.built and not usable:
            results.append(Result(stage.name, NOT_RUN, 0.0, ("the build failed",)))
        elif limit < 2 * MARGIN:
            results.append(Result(stage.name, NOT_RUN, 0.0, (f"{TOTAL:.0f} s are over",)))
        else:
            results.append(run(stage, limit, environment, logs))
            spare = max(0.0, stage.limit + spare - results[-1].seconds)
        usable = usable and (stage.name != "build" or results[-1].usable)
        print(f"---- {results[-1].line()}", flush=True)
        (logs / "summary.txt").write_text(summary(results) + "\n")
        if out is not None:
            keep(out)
    return results


def summary(results: Sequence[Result]) -> str:
    """A line per stage, after what the failed ones have found beside their last line."""
    details = [f"{r.name}: {line}" for r in results if r.outcome in (FAILED, TIMED_OUT) for line in r.found[:-1]]
    return "\n".join([*details, *([""] if details else []), *(result.line() for result in results)])


def keep(out: Path) -> None:
    """As one archive, to be unpacked at the root of the repository."""
    with tarfile.open(out / "gpu.tar.gz", "w:gz") as archive:
        for name in KEPT:
            if (ROOT / name).exists():
                archive.add(ROOT / name, name)


def status(results: Sequence[Result], asked: bool) -> int:
    """What is not available fails only where it was asked for by name."""
    bad = {FAILED, TIMED_OUT, NOT_RUN} | ({MISSING} if asked else set())
    return int(any(result.outcome in bad for result in results))


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # ends the stage on the way out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", default="", help="comma-separated; default: all but tune")
    parser.add_argument("--env", default="venv", help="ENV of the Makefile: venv or system")
    arguments = parser.parse_args()
    known = stages(arguments.env)
    chosen(arguments.stage, known, True)  # refuses wrong names before anything is looked at
    signal.signal(signal.SIGTERM, stop)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if environment.pop("TRITON_INTERPRET", None):
        print("make gpu: TRITON_INTERPRET is set; taken out of the environment of all stages")
    found = probe(environment)
    gpu = found["gpu"] is not None
    print(f"make gpu: {json.dumps(found)}; compute-sanitizer: {sanitizer() or 'none'}; cores: {os.cpu_count()}", flush=True)
    if gpu:
        environment.setdefault("SAM_KERNELS_CUDA_ARCHS", str(found["arch"]))  # code for this GPU only: a third of the time of the build
    elif not arguments.stage:
        print("make gpu: torch sees no CUDA GPU; running the compile-time checks only", flush=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") and Path(os.environ["OUT"]).is_dir() else None
    some = chosen(arguments.stage, known, gpu)
    results = run_all(some, gpu, environment, LOGS, out, max(0.0, TOTAL - sum(each.limit for each in some)))
    print(
        f"\n==== make gpu on {found['gpu'] or 'a machine without a GPU'}\n\n{summary(results)}\n\nlogs: {LOGS.relative_to(ROOT)}",
        flush=True,
    )
    return status(results, bool(arguments.stage))


if __name__ == "__main__":
    raise SystemExit(main())
