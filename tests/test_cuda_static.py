"""The CUDA kernels without a GPU: they compile cleanly, stay inside their budgets, use 16-byte accesses, and load anywhere.

nvcc is called with the flags of setup.py. Where it is missing the tests are skipped, or fail if SAM_KERNELS_REQUIRE names "cuda".
"""

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import skip_or_fail

from sam_kernels.profiling.kernels import DTYPES, instance

ROOT = Path(__file__).parent.parent
ARCHS = ("80", "90", "100")
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
KERNEL_LINES = 150

# Registers: 65536 per SM and 256 threads per block, so 64 keep four blocks on an SM, 80 three and 128 two. Vectors: loads and stores
# of tensors in the PTX, at least; unrolling multiplies those of the source. Beside fp32 operands, halves are accessed by 8 bytes.
BUDGET = {  # kernel and base: (registers, {bytes: (vector loads, vector stores)} of fp32, the same of bf16 and fp16)
    "inner_products": (64, {16: (20, 0)}, {16: (12, 0), 8: (12, 0)}),
    "ascend": (80, {16: (32, 12)}, {16: (20, 8), 8: (12, 4)}),
    "ascend_noise": (80, {16: (12, 8)}, {16: (6, 6), 8: (6, 4)}),
    "descend_sgd": (80, {16: (36, 12)}, {16: (16, 8), 8: (18, 4)}),
    "descend_adam": (128, {16: (50, 24)}, {16: (30, 20), 8: (24, 4)}),
    "descend_lion": (80, {16: (36, 12)}, {16: (16, 8), 8: (18, 4)}),
    "fill": (40, {}, {}),
    "gibbs_weights": (32, {}, {}),  # 1024 threads: 64 is the limit
}
# A warp or a block per row; without smoothing, with it, with class weights: (registers, vectors of fp32, of bf16 and fp16)
for group in ("warp", "block"):
    for mode, registers in enumerate((56, 64, 80)):
        BUDGET[f"cross_entropy_{group}_{mode}"] = (registers, {16: (5, 0)}, {16: (3, 0)})
    for by_class, registers in enumerate((40, 48)):
        BUDGET[f"cross_entropy_backward_{group}_{by_class}"] = (registers, {16: (1, 1)}, {16: (1, 1)})
INSTANCES = [(kernel, dtype) for kernel in BUDGET for dtype in (DTYPES.values() if kernel != "fill" else ["none"])]
WIDTH = {16: r"v4\.[ubf]32", 8: r"(?:v2\.[ubf]32|v4\.[ubf]16|[ub]64)"}


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Build:
    log: str
    usage: dict[tuple[str, str, str], list[Usage]]  # kernel and base, dtype, arch
    ptx: dict[tuple[str, str, str], str]
    objects: list[Path]
    nvcc: str


def parse_usage(log: str) -> dict[tuple[str, str, str], list[Usage]]:
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found: dict[tuple[str, str, str], list[Usage]] = {}
    for name, arch, stack, stores, loads, registers in pattern.findall(log):
        found.setdefault((*instance(name), arch), []).append(Usage(int(registers), int(stack), int(stores) + int(loads)))
    return found


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc") or next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes if home)), None)
    if nvcc is None:
        skip_or_fail("cuda", "nvcc was not found")
    flags = re.search(r'^NVCC_FLAGS = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS] + [f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}"]
    logs, ptx, objects = [], {}, []
    for source in SOURCES:
        kept = tmp_path_factory.mktemp(source.stem)
        objects.append(kept / f"{source.stem}.o")
        command = [nvcc, *flags[1].split(), *codes, "-Xptxas", "-v", "--keep", "--keep-dir", kept, "-o", objects[-1], "-c", source]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        logs.append(done.stdout + done.stderr)
        for arch in ARCHS:
            text = (kept / f"{source.stem}.compute_{arch}.ptx").read_text()
            for entry in re.finditer(r"^\.(?:visible |weak )?\.?entry (\w+).*?^}", text, re.DOTALL | re.MULTILINE):
                ptx[(*instance(entry[1]), arch)] = entry[0]
    log = "".join(logs)
    return Build(log, parse_usage(log), ptx, objects, nvcc)


def test_compiles_without_warnings(build: Build) -> None:
    assert not [line for line in build.log.splitlines() if re.search(r"\b(warning|error)\b", line, re.IGNORECASE)]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_instantiation_is_known(build: Build, arch: str) -> None:
    """Nothing is compiled that has no budget, and nothing twice."""
    found = {key[:2]: len(usages) for key, usages in build.usage.items() if key[2] == arch}
    assert found == dict.fromkeys(INSTANCES, 1)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("kernel", "dtype"), INSTANCES)
def test_budget(build: Build, kernel: str, dtype: str, arch: str) -> None:
    for usage in build.usage[kernel, dtype, arch]:
        assert usage.registers <= BUDGET[kernel][0], f"{usage.registers} registers"
        assert usage.spills == usage.stack == 0, f"{usage.spills} bytes spilled, {usage.stack} bytes of local memory"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("kernel", "dtype"), INSTANCES)
def test_vector_accesses(build: Build, kernel: str, dtype: str, arch: str) -> None:
    """As global accesses, because a generic one has to find out at run time which memory it means."""
    text = build.ptx[kernel, dtype, arch]
    for size, (loads, stores) in BUDGET[kernel][1 if dtype == "fp32" else 2].items():
        assert len(re.findall(rf"\bld\.global(?:\.\w+)*\.{WIDTH[size]}\b", text)) >= loads, f"loads of {size} bytes"
        assert len(re.findall(rf"\bst\.global(?:\.\w+)*\.{WIDTH[size]}\b", text)) >= stores, f"stores of {size} bytes"
    assert not re.search(r"\b(?:ld|st)\.v[24]\.|\b(?:ld|st)\.local", text), "a generic vector access, or local memory"


def test_loads_without_a_gpu(build: Build, tmp_path: Path) -> None:
    """Linked against the static runtime, nothing is left undefined and no CUDA library is needed to load it."""
    library = tmp_path / "kernels.so"
    subprocess.run([build.nvcc, "-shared", "-cudart", "static", "-Xlinker", "--no-undefined", *build.objects, "-o", library], check=True)
    ctypes.CDLL(str(library), mode=os.RTLD_NOW)


@pytest.mark.parametrize("folder", ["core", "cpu", "cuda"])
def test_no_torch_below_the_binding(folder: str) -> None:
    files = [path for path in (ROOT / "csrc" / folder).rglob("*") if path.is_file()]
    assert files
    for path in files:
        torch = re.findall(r'^\s*#\s*include\s*[<"](?:torch|ATen|c10)[/"].*$', path.read_text(), re.MULTILINE)
        assert not torch, f"{path.relative_to(ROOT)} includes torch: {torch}"


def test_the_binding_uses_no_name_that_torch_2_11_lacks() -> None:
    """The oldest torch that is supported, and the one on machines with a GPU."""
    for path in (ROOT / "csrc" / "torch").iterdir():
        assert "STABLE_TORCH_ERROR_CODE_CHECK" not in path.read_text(), f"{path.name}: write TORCH_ERROR_CODE_CHECK, which 2.11 has as well"


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_kernel_files_stay_short(folder: str) -> None:
    for path in (ROOT / "csrc" / folder).iterdir():
        lines = len(path.read_text().splitlines())
        assert lines <= KERNEL_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it (limit {KERNEL_LINES})"
