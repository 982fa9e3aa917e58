"""compute-sanitizer over a small case of every kernel: memcheck for accesses out of bounds, racecheck for hazards in shared memory.

    python bench/gpu_sanitize.py [--seconds 55]

All at once, since they spend their time in starting. memcheck without torch's caching allocator, so that every tensor is an allocation of
its own. Logs: bench/.results/gpu/sanitize/. Standard library only.
"""

import argparse
import re
import shutil
import time

from gpu_parts import ROOT, Part, counted, run
from gpu_plan import UNAVAILABLE, sanitizer

LOGS = ROOT / "bench" / ".results" / "gpu" / "sanitize"
BOTH = ("cuda-cuda", "triton-cuda")
FOUND = 86  # exit status of the tool where it has found something
STEP = (
    "inner_products-g-chunk_edges", "inner_products-ghq_weighted-every_offset", "ascend_-sam-chunk_edges", "ascend_-friendly-every_offset",
    "ascend_-noise_q-every_offset", "ascend_-groups-many", "descend_-restore-small", "descend_-momentum-chunk_edges",
    "descend_-stable-chunk_edges", "descend_-vsam_refresh-every_offset", "descend_-adam_groups-every_offset", "descend_-lion-every_offset",
)  # fmt: skip
SUBSET = {  # file of tests -> what the names of those to run hold, by op
    "ops": [f"test_value[{backend}-{case}" for case in STEP for backend in BOTH],
    "losses": [f"test_value_norm_and_gradient[{backend}-{case}" for case in ("ten-both", "blocks-weighted") for backend in BOTH],
    "gibbs": [f"test_values[{backend}-2049-bad-True" for backend in BOTH],
    "draw": ["test_equal_bits[triton-cuda-128-", "test_equal_bits[triton-cuda-40000-"],
    "layer_ops": ["test_normalization_in_blocks[triton-cuda-group_norm-40", "test_embedding[triton-cuda-33-3-2-2"],
    "grad_norm_kernels": [
        "test_methods_agree_and_repeat[triton-cuda-40",
        "test_linear_parts[triton-cuda-1-gram",
        "test_no_norm_is_negative[triton-cuda-4-",
    ],
}
TOOLS = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "racecheck": {}}
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (.*)")


def selection(name: str) -> list[str]:
    """Arguments of pytest for one file."""
    chosen = [argument for text in SUBSET[name] for argument in ("--having", text)]
    return [f"tests/test_{name}.py", "-m", "gpu", *chosen]


def parts(tool: str) -> list[Part]:
    found = []
    for check, variables in TOOLS.items():
        prefix = (tool, "--tool", check, "--error-exitcode", str(FOUND), "--report-api-errors", "no", "--print-limit", "20")
        found += [Part(f"{check}-{name}", selection(name), LOGS, prefix, variables) for name in SUBSET]
    return found


def verdict(part: Part, log: str) -> tuple[bool, str]:
    """Whether it is fine, and a line about it. Fine are tests that have passed without a word of the tool, and at least one."""
    said, count = SUMMARY.findall(log), part.count()
    clean = all(text.startswith("0 ") for text in said)
    fine = clean and count["passed"] > 0 and not count["failed"] and not part.broken
    return (
        fine,
        f"{part.name}: {'; '.join(said) or 'no summary of the tool'}; tests: {counted(count)}{', ' * bool(part.broken)}{part.broken}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=55.0)
    seconds = parser.parse_args().seconds
    tool = sanitizer()
    if tool is None:
        print("found: compute-sanitizer was not found")
        return UNAVAILABLE
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    begun, some = time.time(), parts(tool)
    run(some, len(some), begun + seconds - 12, begun + seconds - 4)
    logs = [part.log.read_text(errors="replace") if part.log.exists() else "" for part in some]
    if all("Device not supported" in log for log in logs):
        print("found: compute-sanitizer does not support this device")
        return UNAVAILABLE
    verdicts = [verdict(part, log) for part, log in zip(some, logs, strict=True)]
    for fine, line in verdicts:
        print(line if fine else f"found: {line}")
    for (fine, _), log, part in zip(verdicts, logs, some, strict=True):
        told = [line for line in log.splitlines() if line.startswith("=========")]
        if not fine and told:
            print(f"\n{part.name}:", *told[:25], sep="\n")
    passed = sum(part.count()["passed"] for part in some)
    print(f"found: {sum(fine for fine, _ in verdicts)} of {len(verdicts)} runs clean, {passed} tests passed")
    return int(not all(fine for fine, _ in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
