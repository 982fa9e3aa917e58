"""What setup.py decides in each situation, and that a real build leaves libraries that load, with their story told."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sam_kernels
from sam_kernels.backends import native

ROOT = Path(__file__).parent.parent
ALL = {"cxx": "g++", "ninja": "ninja", "torch": "/t", "nvcc": "nvcc", "pybind11": "/p"}


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    """setup.py as a module, without running setuptools.setup."""
    import setuptools

    spec = importlib.util.spec_from_file_location("samk_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    original, setuptools.setup = setuptools.setup, lambda **_: None
    try:
        spec.loader.exec_module(module)
    finally:
        setuptools.setup = original
    return module


@pytest.mark.parametrize(
    ("mode", "missing", "built"),
    [
        ("auto", (), {"cpp", "cuda", "rows", "info"}),
        ("auto", ("nvcc",), {"cpp", "rows", "info"}),
        ("auto", ("cxx",), set()),
        ("auto", ("torch",), {"info"}),
        ("auto", ("pybind11",), {"cpp", "cuda"}),
        ("none", (), set()),
        ("cpu", ("nvcc",), {"cpp", "rows", "info"}),
        ("cuda", (), {"cpp", "cuda", "rows", "info"}),
    ],
)
def test_decisions(setup_py: ModuleType, mode: str, missing: tuple[str, ...], built: set[str]) -> None:
    plan = setup_py.decide(mode, {**ALL, **dict.fromkeys(missing)})
    assert {name for name, what in plan.items() if what == "build"} == built
    for name, what in plan.items():
        assert name in built or what.startswith("skipped, "), "what is not built says why"


@pytest.mark.parametrize(("mode", "missing", "message"), [
    ("cpu", "cxx", "cpp cannot be built: no C\\+\\+ compiler found"), ("cuda", "nvcc", "cuda cannot be built: nvcc not found"),
    ("cpu", "torch", "torch >= 2.11 is not importable"), ("fast", "", "expected one of auto, none, cpu, cuda"),
])  # fmt: skip
def test_what_is_asked_for_by_name_must_be_possible(setup_py: ModuleType, mode: str, missing: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        setup_py.decide(mode, {**ALL, missing: None})


def test_architectures_come_from_the_environment(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_KERNELS_CUDA_ARCHS", "8.6;90a")
    assert setup_py.cuda_archs() == ["86", "90a"]
    monkeypatch.setenv("SAM_KERNELS_CUDA_ARCHS", "hopper")
    with pytest.raises(SystemExit, match="expected for example '80;90;100'"):
        setup_py.cuda_archs()


def test_show_backends_tells_chosen_available_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    table = sam_kernels.show_backends()
    assert table in capsys.readouterr().out
    for op in ("inner_products", "ascend_", "descend_"):
        row = next(line for line in table.splitlines() if line.startswith(op) and "cpu" in line).split()
        assert row[2:4] in (["+", "*"], ["*", "-"]), "the reference is always there; cpp is chosen where it is built"
    if not torch.cuda.is_available():
        assert "cuda: " in table


def test_cuda_build_loads_beside_this_torch() -> None:
    """With nvcc at build time, the CUDA library loads and registers its ops whether or not there is a GPU."""
    if not native.build_info()["cuda"].startswith("built"):
        pytest.skip(f"cuda library {native.build_info()['cuda']}")
    assert (Path(sam_kernels.__file__).parent / "_cuda.so").exists()
    why = sam_kernels.registry.OPS["ascend_"].missing.get("cuda")
    assert why == (None if torch.cuda.is_available() else "built, but torch sees no CUDA GPU")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("sam_kernels_native::ascend_", "CUDA")


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ("reference", "6 reference"),
        ("cuda,reference", "6 reference"),
        ("nonsense", "SAM_KERNELS_BACKEND names ['nonsense']"),
        ("triton", "backend 'triton' cannot run inner_products"),
    ],
)
def test_backend_order_from_the_environment(backends: str, expected: str) -> None:
    code = (
        "import torch, sam_kernels; from sam_kernels.registry import OPS\n"
        "print(len(sam_kernels.ops.inner_products([torch.ones(3)])), OPS['ascend_'].chosen('cpu', torch.float32))"
    )
    environment = {**os.environ, "SAM_KERNELS_BACKEND": backends, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert expected in done.stdout + done.stderr


def test_info_names_the_instruction_set() -> None:
    if not native.build_info()["info"].startswith("built"):
        pytest.skip(f"info library {native.build_info()['info']}")
    from sam_kernels import _info

    assert _info.cpu_isa() and _info.compiler and _info.cpu_chunk % 1024 == 0
