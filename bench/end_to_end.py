"""Time of whole training steps on synthetic data, forwards and backwards included, under bf16 autocast: ours against the peers.

    python bench/end_to_end.py [--models resnet18_cifar,wrn28_10,vit_s16,vit_b16,gpt2] [--methods sam-eager,sam-captured]
    python bench/end_to_end.py --device cpu --models tiny       scaled down, to see that it works; such times say nothing

Base SGD with momentum and weight decay, rho 0.05; the statistics of BatchNorm frozen in every second pass, convolutional networks in
channels last, weights in fp32: the same for all. Every method is matched before it is timed (``end_match``), what is measured is told by
``end_cell``. Writes <gpu>-<date>-steps.json after every network.
"""

import argparse
import gc
import json
import math
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import end_methods as methods
import torch
from end_cell import Cell, forget
from end_tables import BASES, CAPTURED, EAGER, LOOP, NORMS, PASSES, RW_CAPTURED, RW_EAGER, table, verdict_line, verdicts
from end_trial import Trial, Work

from sam_kernels.profiling.models import Case
from sam_kernels.profiling.networks import NETWORKS, TINY
from sam_kernels.profiling.where import commit, described
from sam_kernels.profiling.where import where as where_it_runs

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 150.0
INTERRUPTED = 130  # as of a shell
METHODS: dict[str, tuple[str, type[Trial]]] = {
    "passes": (PASSES, Trial),
    "sgd": ("SGD", methods.Sgd),
    "sam-loop": (LOOP, methods.Loop),
    "sam-package": ("SAM, pytorch_optimizer", methods.Package),
    "sam-foreach": ("SAM, foreach + fused", methods.Foreach),
    "sam-eager": (EAGER, methods.Ours),
    "sam-captured": (CAPTURED, methods.Captured),
    "norms": (NORMS, methods.ExactNorms),
    "rw-eager": (RW_EAGER, methods.Reweighted),
    "rw-captured": (RW_CAPTURED, methods.CapturedReweighted),
}


def rows_of(name: str, case: Case, work: Work, cell: Cell) -> list[dict[str, Any]]:
    about = {
        "model": name,
        "label": case.label.rpartition(", B ")[0],
        "batch": len(work.x),
        "shape": list(work.x.shape),
        "parameters": sum(p.numel() for p in work.model.parameters()),
        "autocast": work.autocast,
        "channels_last": case.channels_last,
    }
    return [{**about, "method": method, **row} for method, row in cell.rows.items()]


def measure(cases: dict[str, Case], names: list[str], device: str, seconds: float, batch_size: int | None, path: Path) -> dict[str, Any]:
    """All networks, those left when the time is over left out; written as it grows."""
    end = perf_counter() + seconds
    found: dict[str, Any] = {"where": {**where_it_runs(device), "commit": commit(ROOT)}, "settings": {"rho": methods.RHO, **methods.SGD}}
    found |= {"interrupted": False, "died": None, "left_out": [], "steps": [], "targets": []}
    kinds = dict(METHODS[name] for name in names)
    path.parent.mkdir(parents=True, exist_ok=True)
    for k, (name, case) in enumerate(cases.items()):
        gc.freeze()  # what was imported is not to be searched whenever a method is forgotten
        if (now := perf_counter()) > end:
            found["left_out"].append(name)
        else:
            work = Work.of(case, device, batch_size)
            cell = Cell(work, kinds, BASES, until=now + (end - now) / (len(cases) - k), deadline=end)
            try:
                cell.measure()
            except KeyboardInterrupt:
                found["interrupted"] = True
            except Exception as error:  # outside of any method: a device that answers no more
                found["died"] = f"{name}: {type(error).__name__}: {error}"
            rows = rows_of(name, case, work, cell)
            judged = verdicts(rows) if device == "cuda" else []
            found["steps"] += rows
            found["targets"] += judged
            print("\n".join([table(rows), *map(verdict_line, judged), ""]) if rows else f"{name}: nothing was measured", flush=True)
            del work, cell
        if found["steps"]:  # else what an earlier run has measured stays
            path.write_text(json.dumps(found, indent=1) + "\n")
        if found["interrupted"] or found["died"]:
            break
        forget()
    gc.unfreeze()
    return found


def chosen(text: str, known: dict[str, Any], flag: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or set(names) - known.keys():
        raise SystemExit(f"{flag} is {text!r}; expected one or several of {', '.join(known)}")
    return names


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(NETWORKS), help=f"{', '.join(NETWORKS)}, or tiny (default: all of them)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything, about (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="default: the network's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder")
    arguments = parser.parse_args(words)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        parser.error(f"--batch-size is {arguments.batch_size}; expected at least 1")
    if not 0 < arguments.seconds < math.inf:
        parser.error(f"--seconds is {arguments.seconds}; expected a number > 0")
    known = NETWORKS | TINY
    models = list(TINY) if arguments.models == "tiny" else chosen(arguments.models, known | {"tiny": None}, "--models")
    names = chosen(arguments.methods, METHODS, "--methods")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench/end_to_end.py: torch sees no CUDA GPU here; nothing is timed")
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1" and arguments.device == "cuda":
        print("bench/end_to_end.py: TRITON_INTERPRET=1 is set; the interpreter is not to be timed", file=sys.stderr)
        return 1
    if arguments.device == "cuda":  # before cuBLAS begins; torch's own size on Hopper, and no match is strict without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    where = where_it_runs(arguments.device)
    path = arguments.out / f"{where['device'].lower().replace(' ', '-')}-{where['date']}-steps.json"
    cases = {name: known[name] for name in models}
    found = measure(cases, names, arguments.device, arguments.seconds, arguments.batch_size, path)
    left = f"left out, {arguments.seconds:.0f} s were over: {', '.join(found['left_out'])}\n" if found["left_out"] else ""
    print(f"{left}{described(found['where'])}, commit {found['where']['commit']}\n{path}")
    if found["died"]:
        print(found["died"], file=sys.stderr)
    failed = found["died"] or any("failed" in row for row in found["steps"])
    return INTERRUPTED if found["interrupted"] else int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
