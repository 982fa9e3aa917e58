"""What the compiled CUDA kernels use, registers, shared memory and stack by ``cuobjdump``, and how many blocks fit on a multiprocessor."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DTYPES = {"f": "fp32", "8BFloat16": "bf16", "7Float16": "fp16"}  # as they are mangled
BASES = {"3Sgd": "sgd", "4Adam": "adam", "4Lion": "lion"}
THREADS = {"gibbs_weights": 1024}  # per block; of the others 256
REGISTERS, PARTS = 65536, 4  # registers of a multiprocessor, in the parts that its warps are spread over
WARP, GRANULE = 32, 256  # they are given to warps in such pieces
RESERVED = 1024  # bytes of shared memory that the system takes of every block


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor, by compute capability: CUDA C++ Programming Guide, table of technical specifications."""

    warps: int
    blocks: int
    shared: int  # bytes


ARCHS = {
    "75": Limits(32, 16, 64 << 10),
    "80": Limits(64, 32, 164 << 10),
    "86": Limits(48, 16, 100 << 10),
    "89": Limits(48, 24, 100 << 10),
    "90": Limits(64, 32, 228 << 10),
    "100": Limits(64, 32, 228 << 10),
    "120": Limits(48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Usage:
    kernel: str  # with its base or variant
    dtype: str
    arch: str
    registers: int
    shared: int
    stack: int

    @property
    def threads(self) -> int:
        return THREADS.get(self.kernel, 256)

    @property
    def blocks(self) -> int:
        return blocks_per_multiprocessor(self.registers, self.shared, self.threads, ARCHS[self.arch])

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor can hold."""
        return self.blocks * self.threads / (WARP * ARCHS[self.arch].warps)


def blocks_per_multiprocessor(registers: int, shared: int, threads: int, limits: Limits) -> int:
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // GRANULE) * GRANULE
    by_registers = PARTS * (REGISTERS // PARTS // per_warp) // warps if registers else limits.blocks
    return min(limits.blocks, limits.warps // warps, by_registers, limits.shared // (shared + RESERVED))


def instance(mangled: str) -> tuple[str, str]:
    """Kernel with its base or variant, and dtype, of an entry function."""
    kernel = re.search(r"\d(inner_products|ascend|descend|fill|gibbs_weights|cross_entropy(?:_backward)?)_kernel", mangled)
    if kernel is None:
        raise ValueError(f"{mangled} is no kernel of this library")
    base = re.search("|".join(BASES), mangled)
    dtype = re.search(rf"_kernelI(?:NS_)?({'|'.join(DTYPES)})", mangled)
    noise = ["noise"] if kernel[1] == "ascend" and "Lb1E" in mangled else []
    rows = re.search(r"Li(32|256)EL[ib](\d)EE", mangled)  # threads of a row, mode
    variant = [BASES[base[0]]] if base else [{"32": "warp", "256": "block"}[rows[1]], rows[2]] if rows else noise
    return "_".join([kernel[1], *variant]), DTYPES[dtype[1]] if dtype else "none"


def cuobjdump() -> str | None:
    """On the path, in the toolkit, or in the Triton wheel."""
    if found := shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin"):
        return found
    spec = find_spec("triton")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return next(filter(None, (shutil.which("cuobjdump", path=f"{folder}/backends/nvidia/bin") for folder in folders)), None)


def usages(library: Path, tool: str) -> list[Usage]:
    """Of every kernel in a library, for every architecture that it holds code for."""
    done = subprocess.run([tool, "--dump-resource-usage", str(library)], capture_output=True, text=True, check=True)
    return list(parse(done.stdout))


def parse(dump: str) -> Iterator[Usage]:
    arch = ""
    pattern = re.compile(r"^arch = sm_(\d+)|^ Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", re.MULTILINE)
    for found in pattern.finditer(dump):
        if found[1]:
            arch = found[1]
        elif "_kernel" in found[2]:
            kernel, dtype = instance(found[2])
            shared = max(0, int(found[5]) - RESERVED) if int(arch) >= 90 else int(found[5])  # there the dump counts those of the system
            yield Usage(kernel, dtype, arch, int(found[3]), shared, int(found[4]))
