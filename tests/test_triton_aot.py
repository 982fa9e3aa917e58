"""Every Triton kernel variant that matters, compiled for each GPU generation without a GPU, within its budget of registers and loads.

Kernels that the interpreter has taken over cannot be compiled, so the compilation runs in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# At most 8 programs of 128 threads share a multiprocessor up to 64 registers, 5 up to 96. A 16-byte load per list and tile half.
# variant: (most registers on sm_80, sm_90, sm_100; fewest 16-byte loads)
BUDGETS = {
    "inner_products_1": (40, 40, 40, 2),
}
ARCHITECTURES = (80, 90, 100)


def compile_all() -> dict[str, dict[str, int]]:
    """Runs in the subprocess: resources of every variant on every architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sam_kernels.backends.triton import ascend, descend, inner_products
    from sam_kernels.backends.triton.table import LAUNCH

    pointers = {"records": "*i64", "tensor_of": "*i32", "chunks": "i32"}  # all others are *fp32
    products = {"HAS_G": True, "HAS_H": False, "HAS_Q": False, "WEIGHTED": False}
    norm = {"rho": None, "direction": None, "HAS_G": True, "HAS_Q": False, "WEIGHTED": False, "PLAIN": False}
    up = {"rho": None, "direction": None, "gram": None, "q_steps": None, "HAS_G": True, "HAS_Q": False, "EMA": False}
    down = {
        "partials": None, "gram": None, "sq_norm": None, "found_inf": None, "lr": None, "squares": None, "NEEDED": 0, "REDUCED": 0,
        "HAS_STASH": True, "HAS_H": True, "HAS_G": False, "HAS_Q": False, "HAS_STATE": True, "SGD": True, "WRITE_Q": False,
        "AT_PERTURBED": False,
    }  # fmt: skip
    everything = {
        "HAS_STASH": True, "HAS_H": True, "HAS_G": True, "HAS_Q": True, "HAS_STATE": True, "SGD": True, "NEEDED": 63, "REDUCED": 63,
        "WRITE_Q": True, "AT_PERTURBED": True,
    }  # fmt: skip
    variants = {
        "inner_products_1": (inner_products.inner_products_kernel, products),
        "inner_products_3": (inner_products.inner_products_kernel, {**products, "HAS_H": True, "HAS_Q": True}),
        "inner_products_weighted": (inner_products.inner_products_kernel, {**products, "WEIGHTED": True}),
        "ascend_norm": (ascend.norm_kernel, norm),
        "ascend_norm_all": (ascend.norm_kernel, {"HAS_G": True, "HAS_Q": True, "WEIGHTED": True, "PLAIN": True}),
        "ascend": (ascend.ascend_kernel, up),
        "ascend_given": (ascend.ascend_kernel, {**up, "partials": None}),
        "ascend_all": (ascend.ascend_kernel, {"HAS_G": True, "HAS_Q": True, "EMA": True}),
        "descend_sgd": (descend.descend_kernel, down),
        "descend_stable": (descend.descend_kernel, {**down, "NEEDED": 5, "REDUCED": 4, "partials": "*fp32", "gram": "*fp32"}),
        "descend_all": (descend.descend_kernel, everything),
        "restore": (descend.descend_kernel, {**down, "steps": None, "HAS_H": False, "HAS_STATE": False, "SGD": False}),
    }
    measured = {}
    for name, (kernel, fixed) in variants.items():
        fixed = {key: value for key, value in fixed.items() if value != "*fp32"}
        signature = {key: "constexpr" if key in fixed else pointers.get(key, "*fp32") for key in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(key),): value for key, value in fixed.items()})
        for arch in ARCHITECTURES:
            binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=LAUNCH)
            measured[f"{name}-sm_{arch}"] = resources(binary.asm)
    return measured


def resources(asm: dict) -> dict[str, int]:
    """Registers and local memory from the machine code, vector loads from the PTX. Stack or local memory means spills here."""
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
    return {
        "registers": usage["REG"],
        "spilled": usage["STACK"] + usage["LOCAL"],
        "vector_loads": asm["ptx"].count("ld.global.v4"),
        "vector_stores": asm["ptx"].count("st.global.v4"),
    }


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    if find_spec("triton") is None:
        required = "triton" in os.environ.get("SAM_KERNELS_REQUIRE", "")
        (pytest.fail if required else pytest.skip)("triton is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(compile_all(), indent=1))
