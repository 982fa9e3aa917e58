"""A cell of tune.py, timed in a process of its own that waits for its turn: both sides of it."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from experiments import Cell

CALLS = 10  # of which the median counts
CHILD = [sys.executable, str(Path(__file__).resolve())]


def serve(cell: Cell) -> None:
    """Match, say so, then answer every line with the median of some calls: milliseconds on the device, or of the host's clock on a CPU."""
    from statistics import median

    import torch

    from sam_kernels.profiling.batch_cases import BATCH_OPS, BatchCase, sizes_of
    from sam_kernels.profiling.cases import ListCase
    from sam_kernels.profiling.device import entry
    from sam_kernels.profiling.match import full_precision
    from sam_kernels.profiling.workloads import named

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cell.op in BATCH_OPS:
        ((label, sizes),) = sizes_of(cell.op, cell.on, None)
        case = BatchCase(cell.op, label, sizes, cell.dtype)
    else:
        case = ListCase(cell.op, named(cell.on, 1, 1 << 62), cell.dtype)
    with full_precision():
        case.match(cell.backend, device)
    timed = entry(case.calls([cell.backend], device)[cell.backend], device)
    timed()
    print(f"ready {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}", flush=True)
    for _ in sys.stdin:
        print(1e3 * median(timed()[-1] for _ in range(CALLS)), flush=True)


class Served:
    def __init__(self, cell: Cell, tree: Path, log: Path) -> None:
        words = [f"{name}={value}" for name, value in asdict(cell).items()]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*CHILD, *words], env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        self.log = log

    def ready(self) -> str:
        """Waits for the match; the device."""
        said = self._hear()
        if not said.startswith("ready "):
            raise RuntimeError(said)
        return said.removeprefix("ready ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()

    def time(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._hear())

    def _hear(self) -> str:
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if not said:
            self.process.wait()
            raise RuntimeError((self.log.read_text().strip().splitlines() or ["it ended without a word"])[-1])
        return said


if __name__ == "__main__":
    serve(Cell(**dict(word.split("=", 1) for word in sys.argv[1:])))
