"""Every Triton kernel variant that matters, compiled for each GPU generation without a GPU, within its budget of registers and loads.

A kernel that the interpreter has taken over cannot be compiled, so the compilation runs in a process of its own. The budget of local
memory is 0 bytes everywhere: these kernels hold no arrays, so any of it is a spill. A module ``aot_<topic>`` has ``variants()`` (name ->
kernel and its compile-time arguments), ``TYPES`` of the others, ``ALIGNED`` ones, ``options()`` of the launch, and ``BUDGETS``. A variant
may add types and launch options of its own. A type is Triton's, ``:16`` after it for a multiple of 16, ``1`` for that number, or a tuple.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import aot_draw
import aot_gibbs
import aot_grad_norms
import aot_layers
import aot_losses
import aot_step
import pytest

MODULES = (aot_step, aot_layers, aot_losses, aot_gibbs, aot_grad_norms, aot_draw)
BUDGETS = {name: budget for module in MODULES for name, budget in module.BUDGETS.items()}
ARCHITECTURES = (80, 90, 100)
LOADS = r"ld\.global\.v4|cp\.async\.cg\.shared\.global .*, 0x10,"  # 16 bytes into registers, or past them into shared memory
PRODUCTS = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma"
SHARED = 99 * 1024  # bytes that a program may have on every one of them


def compile_all():
    """In the subprocess: what every variant needs on every architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    measured = {}
    for module in MODULES:
        for name, (kernel, fixed, *own) in module.variants().items():
            types, launch = (*own, {}, {})[:2]
            asked = {key: "*fp32" for key in kernel.arg_names} | module.TYPES | types
            asked |= {key: asked[key] + ":16" for key in module.ALIGNED & set(asked)} | dict.fromkeys(fixed, "constexpr")
            constants = {(i,): fixed[key] for i, key in enumerate(kernel.arg_names) if key in fixed}
            hints = {}
            signature = {key: typed(asked[key], (i,), constants, hints) for i, key in enumerate(kernel.arg_names)}
            source = ASTSource(kernel, signature, constants, hints)
            for architecture in ARCHITECTURES:
                binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={**module.options(), **launch})
                measured[f"{name}-sm_{architecture}"] = (*resources(binary.asm, Path(triton.__file__).parent), binary.metadata.shared)
    return measured


def typed(asked, path, constants, hints):
    """The type of an argument or of a part of one, its value noted where it is 1 and its alignment where it is known."""
    if isinstance(asked, tuple):
        return tuple(typed(part, (*path, i), constants, hints) for i, part in enumerate(asked))
    if asked == "1":
        constants[path] = 1
        return "constexpr"
    if asked.endswith(":16"):
        hints[path] = [["tt.divisibility", 16]]
    return asked.removesuffix(":16")


def resources(asm, triton_folder):
    """(registers, bytes of local memory, 16-byte loads, tensor-core instructions); without a device only cuobjdump knows the first two."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
        text = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"], len(re.findall(LOADS, asm["ptx"])), len(re.findall(PRODUCTS, asm["ptx"]))


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
    registers, local_bytes, vector_loads, products, shared = measured[f"{variant}-sm_{architecture}"]
    most_registers, fewest_loads, *fewest_products = BUDGETS[variant]
    assert registers <= most_registers
    assert local_bytes == 0
    assert vector_loads >= fewest_loads
    assert products >= sum(fewest_products)
    assert shared <= SHARED


def test_every_variant_has_a_budget(measured):
    assert set(measured) == {f"{variant}-sm_{architecture}" for variant in BUDGETS for architecture in ARCHITECTURES}


def test_no_kernel_function_returns_none_beside_values() -> None:
    """Triton 3.6 cannot make a tensor of None; 3.7 and the interpreter can."""
    for path in (Path(__file__).parents[1] / "sam_kernels" / "backends" / "triton").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(x) for x in node.decorator_list):
                returns = [x.value for x in ast.walk(node) if isinstance(x, ast.Return)]
                nothing = [x for x in returns if x is None or (isinstance(x, ast.Constant) and x.value is None)]
                assert not nothing or len(nothing) == len(returns), f"{path.name}: {node.name} returns None beside values"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(compile_all()))
