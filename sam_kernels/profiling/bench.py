"""Time ops and whole steps: match with the reference, then time, several backends in interleaved rounds.

  python -m sam_kernels bench --op ascend_ --workload resnet18
  python -m sam_kernels bench --op inner_products,ascend_,descend_ --workload gpt2,vit_b16 --backend all --json out.json --plot out.png
  python -m sam_kernels bench --step sam,asam --base sgd,adamw --shapes 64x3x7x7,64,1000x512 --dtype fp32,bf16
  python -m sam_kernels bench --op draw --sizes 1000000x250000

GB/s counts the bytes that have to move, whoever runs the op: an operand as often as it must be read, the gradients of ascend_ twice, since
their norm comes before their use. What is still in a cache need not come from memory again, so "of copy" may exceed 1: it is that rate over
the rate of a torch copy of as many bytes in the same rounds, which makes its result anew where the op does. On a CUDA device the rates are
of the time on the device, by events. Ops are called as a user calls them, with the checks of all arguments; optimizers keep their lists
and are timed by --step. Ctrl-C ends the measurement and keeps what there is.

The JSON file holds where, asked (arguments, version, commit), seconds in all, interrupted, and results, of each: what, on, dtype, bytes
that have to move, matched (parameters or samples), rounds, interrupted, copy_bytes, copy_allocates, copy_gb_per_s and, by backend: ms,
host_ms, device_ms, gb_per_s (median, p20, p80, best), share_of_copy, over_first (ratios round by round), launches, failed.
"""

import argparse
from pathlib import Path
from time import perf_counter

from ..backends import BACKENDS
from . import INTERRUPTED, Refused
from .batch_cases import BATCH_OPS, SCHEMES_HELP
from .cases import LIST_OPS
from .measuring import measure
from .methods import BASES, DTYPES, VARIANTS
from .outputs import Outputs
from .plans import DEFAULT, Plan, device_of, plans_of
from .report import Result, progress, text
from .where import asked, where
from .workloads import WORKLOADS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what", "comma-separated lists; every combination is measured")
    ops = [*LIST_OPS, *BATCH_OPS]
    whole = dict.fromkeys(op.split(":")[0] for op in ops if ":" in op and op.split(":")[0] not in ops)
    what.add_argument("--op", metavar="OPS", help=f"{', '.join(ops)}; all forms at once: {', '.join(whole)}")
    what.add_argument("--step", metavar="STEPS", help=f"whole optimizer steps: {', '.join(VARIANTS)}")
    what.add_argument("--base", metavar="BASES", help=f"of steps and of descend_: {', '.join(BASES)} (steps: sgd)")
    on = parser.add_argument_group("on")
    on.add_argument("--workload", metavar="NAMES", help=f"{', '.join(WORKLOADS)} ({DEFAULT})")
    on.add_argument("--shapes", metavar="SHAPES", help="your own list of tensors: 64x3x7x7,64 or a JSON file with a list of lists of sizes")
    on.add_argument("--sizes", metavar="SIZES", help=f"of ops on batches: {SCHEMES_HELP}")
    on.add_argument("--dtype", metavar="DTYPES", default="fp32", help=f"{', '.join(DTYPES)} (fp32)")
    by = parser.add_argument_group("by")
    by.add_argument(
        "--backend", metavar="NAMES", help=f"{', '.join(BACKENDS)}, or all that are there; the first is compared with (preferred)"
    )
    by.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    by.add_argument("--seconds", type=float, default=2.0, help="time for the rounds of each measurement (2)")
    out = parser.add_argument_group("out")
    out.add_argument("--json", metavar="FILE", type=Path, help="write all results there")
    out.add_argument("--plot", metavar="FILE", type=Path, help="draw GB/s as bars, and the copy as a line")


def run(arguments: argparse.Namespace) -> int:
    """Measure what the command line asks for. 0, or 1 where something failed, or 130 after Ctrl-C, with what was measured kept."""
    device = device_of(arguments.device)
    if not 0 < arguments.seconds < float("inf"):
        raise Refused(f"--seconds is {arguments.seconds}; expected a number > 0")
    outputs = Outputs(json=arguments.json, plot=arguments.plot)
    found: Result = {"where": where(device), "asked": asked(arguments), "device": device, "interrupted": False, "results": []}
    measure_all(plans_of(arguments, device), device, arguments.seconds, found, outputs)
    if arguments.plot and any("copy_gb_per_s" in result for result in found["results"]):
        from .plots import plot

        outputs.write("plot", lambda path: plot(found, path))
    outputs.end(text(found))
    failed = any("failed" in p for result in found["results"] for p in result["backends"].values())
    return INTERRUPTED if found["interrupted"] else int(failed or bool(outputs.failed))


def measure_all(plans: list[Plan], device: str, seconds: float, found: Result, outputs: Outputs) -> None:
    """Into ``found``, which is written behind every measurement: what ends this process may be no exception."""
    begun = perf_counter()
    try:
        with progress(len(plans)) as tick:
            for case, backends in plans:
                tick(case.name)
                result, found["interrupted"] = measure(case, backends, device, seconds)
                if not found["interrupted"] or "rounds" in result or any(result["backends"].values()):
                    found["results"].append(result)
                found["seconds"] = perf_counter() - begun
                outputs.json(found)
                if found["interrupted"]:
                    break
    except KeyboardInterrupt:
        found["interrupted"] = True
        outputs.json(found)
