"""Every Triton kernel variant that matters, compiled for each GPU generation without a GPU, within its budget of registers and loads.

A kernel that the interpreter has taken over cannot be compiled, so the compilation runs in a process of its own. The budget of local
memory is 0 bytes everywhere: these kernels hold no arrays, so any of it is a spill.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ARCHITECTURES = (80, 90, 100)
# variant: (most registers, fewest 16-byte loads). A program of 128 threads: 12 fit a multiprocessor at 40 registers, 10 at 48,
# 9 at 56, 8 at 64, 4 at 112. A tile is two 16-byte loads per operand that is read; what the compiler unrolls comes on top.
BUDGETS = {
    "inner_products_1": (40, 2),
    "inner_products_3": (112, 6),
    "inner_products_weighted": (48, 4),
    "ascend_norm": (40, 2),
    "ascend_norm_all": (72, 6),
    "ascend": (48, 4),
    "ascend_given": (48, 4),
    "ascend_all": (64, 6),
    "descend_sgd": (48, 6),
    "descend_stable": (56, 6),
    "descend_all": (112, 12),
    "restore": (40, 2),
}


def variants():
    """name -> (kernel, its compile-time arguments); None is an absent tensor."""
    from sam_kernels.backends.triton.ascend import ascend_kernel, norm_kernel
    from sam_kernels.backends.triton.descend import descend_kernel
    from sam_kernels.backends.triton.inner_products import inner_products_kernel

    products = {"HAS_G": True, "HAS_H": False, "HAS_Q": False, "WEIGHTED": False}
    norm = {"rho": None, "direction": None, "HAS_G": True, "HAS_Q": False, "WEIGHTED": False, "PLAIN": False}
    up = {"rho": None, "direction": None, "gram": None, "q_steps": None, "HAS_G": True, "HAS_Q": False, "EMA": False}
    lists = {
        "HAS_STASH": True, "HAS_H": True, "HAS_G": False, "HAS_Q": False, "HAS_STATE": True, "SGD": True, "WRITE_Q": False,
        "AT_PERTURBED": False,
    }  # fmt: skip
    no_scalars = {"sq_norm": None, "found_inf": None, "lr": None, "squares": None}
    no_gram = {"partials": None, "gram": None, "NEEDED": 0, "REDUCED": 0}
    return {
        "inner_products_1": (inner_products_kernel, products),
        "inner_products_3": (inner_products_kernel, {**products, "HAS_H": True, "HAS_Q": True}),
        "inner_products_weighted": (inner_products_kernel, {**products, "WEIGHTED": True}),
        "ascend_norm": (norm_kernel, norm),
        "ascend_norm_all": (norm_kernel, {"HAS_G": True, "HAS_Q": True, "WEIGHTED": True, "PLAIN": True}),
        "ascend": (ascend_kernel, up),
        "ascend_given": (ascend_kernel, {**up, "partials": None}),
        "ascend_all": (ascend_kernel, {"HAS_G": True, "HAS_Q": True, "EMA": True}),
        "descend_sgd": (descend_kernel, {**lists, **no_scalars, **no_gram}),
        "descend_stable": (descend_kernel, {**lists, **no_scalars, "NEEDED": 0b101, "REDUCED": 0b100}),
        "descend_all": (descend_kernel, {**dict.fromkeys(lists, True), "NEEDED": 0b111111, "REDUCED": 0b111111}),
        "restore": (
            descend_kernel,
            {**lists, **no_scalars, **no_gram, "steps": None, "HAS_H": False, "HAS_STATE": False, "SGD": False},
        ),
    }


def compile_all():
    """In the subprocess: what every variant needs on every architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sam_kernels.backends.triton.table import LAUNCH

    types = {"records": "*i64", "tensor_of": "*i32", "chunks": "i32"}  # all others are *fp32
    aligned = {"records", "tensor_of", "partials", "etas", "went", "squares"}  # of our own allocation: the JIT sees and uses it
    measured = {}
    for name, (kernel, fixed) in variants().items():
        signature = {key: "constexpr" if key in fixed else types.get(key, "*fp32") for key in kernel.arg_names}
        index = {key: (i,) for i, key in enumerate(kernel.arg_names)}
        hints = {index[key]: [["tt.divisibility", 16]] for key in kernel.arg_names if key in aligned - set(fixed)}
        source = ASTSource(kernel, signature, {index[key]: value for key, value in fixed.items()}, hints)
        for architecture in ARCHITECTURES:
            binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=LAUNCH)
            measured[f"{name}-sm_{architecture}"] = resources(binary.asm, Path(triton.__file__).parent)
    return measured


def resources(asm, triton_folder):
    """(registers, bytes of local memory, 16-byte loads); without a device only cuobjdump knows the first two."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
        text = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"], asm["ptx"].count("ld.global.v4")


@pytest.fixture(scope="module")
def measured():
    if find_spec("triton") is None:
        from conftest import skip_or_fail  # not at the top: this file is also run as a script

        skip_or_fail("triton", "triton is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", BUDGETS)
def test_budget(measured, variant, architecture):
    registers, local_bytes, vector_loads = measured[f"{variant}-sm_{architecture}"]
    most_registers, fewest_loads = BUDGETS[variant]
    assert registers <= most_registers
    assert local_bytes == 0
    assert vector_loads >= fewest_loads


def test_every_variant_has_a_budget(measured):
    assert set(measured) == {f"{variant}-sm_{architecture}" for variant in BUDGETS for architecture in ARCHITECTURES}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(compile_all()))
