"""Time of every op on a CUDA GPU, on all backends that have it and with torch's counterpart, interleaved in one run.

    python bench/gpu_ops.py [--seconds 75] [--out bench/results]

What ``python -m sam_kernels bench`` measures, written to <gpu>-<date>-ops.json after every case: the preference table of
sam_kernels/backends/__init__.py is decided from it. Every family of ops has a process of its own, so that a fault costs no other family.
torch's counterpart does less than ours: the plain weight gradient without norms, the loss without the norm at the logits, a softmax.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from op_peers import PEERS

from sam_kernels.profiling.batch_cases import BatchCase, sizes_of
from sam_kernels.profiling.cases import Case, ListCase
from sam_kernels.profiling.device import Phases, nothing
from sam_kernels.profiling.measuring import measure
from sam_kernels.profiling.plans import backends_of, refuse_interpreter
from sam_kernels.profiling.report import text
from sam_kernels.profiling.tables import number
from sam_kernels.profiling.where import commit, where
from sam_kernels.profiling.workloads import named

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch"  # in the place of a backend
LISTS = ("ascend_", "descend_:sgd", "descend_:adamw", "inner_products")
FAMILIES = {  # name: (what, dtypes)
    "lists": (LISTS, ("fp32", "bf16")),
    "batches": (("cross_entropy_sample", "cross_entropy_sample_backward", "gibbs_weights", "draw:systematic", "draw:multinomial",
                 "draw:bernoulli", "draw:top_k", "normalization_grads", "embedding_grad_norms"), ("fp32",)),
    "norms": (("linear_grad_norms:gram", "linear_grad_norms:direct", "conv_grad_norms:gram", "conv_grad_norms:direct"), ("fp32", "bf16")),
}  # fmt: skip
SPENT = 8.0  # seconds that a process needs before it times anything
SHARE, LEAST = 0.4, 0.05  # of a case's time for its rounds, which take longer than what they time; seconds


class Compared(BatchCase):
    """With torch's counterpart as one more backend, which has nothing to match: it computes something else."""

    def match(self, backend: str, device: str) -> int:
        return self._matched()[0] if backend == TORCH else super().match(backend, device)

    def calls(self, backends: Sequence[str], device: str) -> dict[str, Phases]:
        found = super().calls([backend for backend in backends if backend != TORCH], device)
        if TORCH in backends:
            found[TORCH] = [(nothing, PEERS[self.what](self._inputs(self.sizes, self.dtype, device)))]
        return found


# ---- cases


def cases_of(family: str, device: str) -> Iterator[tuple[Case, list[str]]]:
    whats, dtypes = FAMILIES[family]
    for dtype in dtypes:
        for what in whats:
            for case in lists(what, ("gpt2", "resnet50"), dtype) if what in LISTS else batches(what, dtype):
                yield case, backends(case, device)
    for what in (what for what in whats if what in LISTS[:2]):
        for case in lists(what, ("tiny10000",), "fp32"):
            yield case, backends(case, device)


def lists(what: str, workloads: Sequence[str], dtype: str) -> list[Case]:
    return [ListCase(what, named(workload, 1, 1 << 62), dtype) for workload in workloads]


def batches(what: str, dtype: str) -> list[Case]:
    return [Compared(what, label, sizes, dtype) for label, sizes in sizes_of(what, None, None)]


def backends(case: Case, device: str) -> list[str]:
    """All that are there; on lists of tensors not the reference, which goes through them one by one."""
    able = backends_of("all", case, device)
    return [*able, TORCH] if isinstance(case, Compared) else [backend for backend in able if backend != "reference"] or able


def run_family(family: str, path: Path, seconds: float, device: str) -> int:
    """In a process of its own."""
    refuse_interpreter()
    begun = perf_counter()
    every = list(cases_of(family, device))
    found: dict[str, Any] = {"where": where(device), "device": device, "interrupted": False, "results": [], "left_out": []}
    for k, (case, backends) in enumerate(every):
        left = seconds - (perf_counter() - begun)
        if left <= 0:
            found["left_out"].append(case.name)
        else:
            result, _ = measure(case, backends, device, max(LEAST, SHARE * left / (len(every) - k)))
            found["results"].append(result)
            print(line(result), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def line(result: dict[str, Any]) -> str:
    def told(p: dict[str, Any]) -> str:
        spread = p.get("device_ms") or p.get("ms")
        return f"{number(1e3 * spread['median'])} us" if spread else str(p.get("failed", "not timed"))

    return f"{result['what']}, {result['on']}, {result['dtype']}: {'; '.join(f'{b}: {told(p)}' for b, p in result['backends'].items())}"


def merge(path: Path, parts: Sequence[Path]) -> dict[str, Any]:
    """All families in one file; those that died early with what they had."""
    found: dict[str, Any] = {"device": "cuda", "interrupted": False, "results": [], "left_out": []}
    for part in (json.loads(part.read_text()) for part in parts if part.exists()):
        found.setdefault("where", part["where"] | {"commit": commit(ROOT)})
        found["results"] += part["results"]
        found["left_out"] += part["left_out"]
    if found["results"]:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--family", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu_ops.py: torch sees no CUDA GPU here; nothing is timed")
        return 0
    if arguments.family:
        return run_family(arguments.family, arguments.json, arguments.seconds, "cuda")
    logs = ROOT / "bench" / ".results" / "gpu" / "ops"
    logs.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    begun, parts, broken = perf_counter(), [logs / f"{family}.json" for family in FAMILIES], []
    slug, found = "", {}
    for k, family in enumerate(FAMILIES):
        parts[k].unlink(missing_ok=True)
        seconds = (arguments.seconds - (perf_counter() - begun)) / (len(FAMILIES) - k)
        command = [sys.executable, __file__, "--family", family, "--json", str(parts[k]), "--seconds", str(seconds - SPENT)]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=seconds + SPENT, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if code != 0:
            broken.append(f"{family} died or took too long ({code})")
        slug = slug or torch.cuda.get_device_name().lower().replace(" ", "-") + "-" + where("cuda")["date"]
        found = merge(arguments.out / f"{slug}-ops.json", parts)
    if found.get("results"):
        print(text(found))
    failed = [f"{r['what']}, {r['on']}, {r['dtype']}, {b}" for r in found["results"] for b, p in r["backends"].items() if "failed" in p]
    for said in (*broken, *(f"failed: {name}" for name in failed[:8])):
        print(f"found: {said}")
    print(f"found: {len(found['results'])} cases, {len(failed)} failed, {len(found['left_out'])} left out for want of time")
    return int(bool(broken or failed))


if __name__ == "__main__":
    raise SystemExit(main())
