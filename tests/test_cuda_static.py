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

ROOT = Path(__file__).parent.parent
ARCHS = ("80", "90", "100")
OPS = ("inner_products", "ascend", "descend")
KERNEL_LINES = 150

# Registers: 65536 per SM and 256 threads per block, so 64 keep four blocks on an SM and 80 keep three. Vectors: 16-byte loads and
# stores of tensors in the PTX, at least; unrolling doubles or quadruples those of the source.
BUDGET = {  # kernel: (registers, vector loads, vector stores)
    "inner_products_kernel": (64, 8, 0),
    "ascend_kernel": (80, 12, 6),
    "descend_kernel": (80, 12, 6),
    "fill_kernel": (40, 0, 0),
}


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Build:
    log: str
    usage: dict[tuple[str, str], list[Usage]]  # (kernel, arch): one for each instantiation
    ptx: dict[str, dict[str, str]]  # op, arch
    objects: list[Path]
    nvcc: str


def parse_usage(log: str) -> dict[tuple[str, str], list[Usage]]:
    pattern = re.compile(
        r"Compiling entry function '\w*?\d((?:inner_products|ascend|descend|fill)_kernel)\w*' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found: dict[tuple[str, str], list[Usage]] = {}
    for kernel, arch, stack, stores, loads, registers in pattern.findall(log):
        found.setdefault((kernel, arch), []).append(Usage(int(registers), int(stack), int(stores) + int(loads)))
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
    for op in OPS:
        kept = tmp_path_factory.mktemp(op)
        objects.append(kept / f"{op}.o")
        command = [nvcc, *flags[1].split(), *codes, "-Xptxas", "-v", "--keep", "--keep-dir", kept, "-o", objects[-1]]
        command += ["-c", f"csrc/cuda/{op}.cu"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        logs.append(done.stdout + done.stderr)
        ptx[op] = {arch: (kept / f"{op}.compute_{arch}.ptx").read_text() for arch in ARCHS}
    log = "".join(logs)
    return Build(log, parse_usage(log), ptx, objects, nvcc)


def test_compiles_without_warnings(build: Build) -> None:
    assert not [line for line in build.log.splitlines() if re.search(r"\b(warning|error)\b", line, re.IGNORECASE)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kernel", BUDGET)
def test_budget(build: Build, kernel: str, arch: str) -> None:
    instances = build.usage[kernel, arch]
    assert len(instances) == {"descend_kernel": 2, "fill_kernel": len(OPS)}.get(kernel, 1), "a kernel of which ptxas said nothing"
    for usage in instances:
        assert usage.registers <= BUDGET[kernel][0], f"{kernel}, sm_{arch}: {usage.registers} registers"
        assert usage.spills == usage.stack == 0, f"{kernel}, sm_{arch}: {usage.spills} bytes spilled, {usage.stack} bytes of local memory"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("op", OPS)
def test_vector_accesses(build: Build, op: str, arch: str) -> None:
    """In every instantiation; as global accesses, because a generic one has to find out at run time which memory it means."""
    _, loads, stores = BUDGET[f"{op}_kernel"]
    kernels = re.findall(rf"^\.(?:visible )?(?:weak )?\.?entry \w*{op}_kernel.*?^}}", build.ptx[op][arch], re.DOTALL | re.MULTILINE)
    assert len(kernels) == (2 if op == "descend" else 1)
    for text in kernels:
        assert len(re.findall(r"\bld\.global(?:\.\w+)*\.v4\.", text)) >= loads
        assert len(re.findall(r"\bst\.global(?:\.\w+)*\.v4\.", text)) >= stores
        assert not re.search(r"\b(?:ld|st)\.v4\.|\b(?:ld|st)\.local", text), "a generic vector access, or local memory"


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


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_kernel_files_stay_short(folder: str) -> None:
    for path in (ROOT / "csrc" / folder).iterdir():
        lines = len(path.read_text().splitlines())
        assert lines <= KERNEL_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it (limit {KERNEL_LINES})"
