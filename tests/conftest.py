"""The backend axis, and the rule that a required backend may not be skipped.

``SAM_KERNELS_REQUIRE=reference,cpp,triton`` (a comma-separated list) turns a skip of those backends into a failure. Without a GPU
the Triton kernels run in the interpreter, which must be asked for before they are imported: hence the first lines.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from sam_kernels.profiling.match import full_precision
from sam_kernels.registry import OPS

STEP = ("inner_products", "ascend_", "descend_")
REQUIRED = {name.strip() for name in os.environ.get("SAM_KERNELS_REQUIRE", "").split(",") if name.strip()}
PLACES = [("reference", "cpu"), ("cpp", "cpu"), ("triton", "cpu")]
GPU_PLACES = [("reference", "cuda"), ("triton", "cuda"), ("cuda", "cuda")]


def skip_or_fail(backend: str, reason: str) -> None:
    if backend in REQUIRED:
        pytest.fail(f"{backend} is required by SAM_KERNELS_REQUIRE but {reason}", pytrace=False)
    pytest.skip(f"{backend}: {reason}")


def require_ops(backend: str, device: str, names: Iterable[str], dtype: torch.dtype = torch.float32) -> None:
    """Skip with the reason where ``backend`` cannot run one of these ops; a failure where it is required."""
    for op in (OPS[name] for name in names):
        found = op.implementations.get(backend)
        why = op.missing.get(backend, "not built") if found is None else found.refuses(device, dtype)
        if why is not None and device == "cpu" and torch.cuda.is_available() and backend == "triton":
            pytest.skip("the GPU machine tests Triton on the GPU")
        if why is not None and found is not None and dtype != torch.float32:
            pytest.skip(f"{backend} {why}")
        if why is not None:
            skip_or_fail(backend, f"{op.name}: {why}")


def where_triton_runs(test: Callable[..., None]) -> Callable[..., None]:
    """For a test that asks for Triton itself: on the GPU where there is one, and then one of its tests, else in the interpreter."""
    return pytest.mark.gpu(test) if torch.cuda.is_available() else test


def pytest_report_header() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: no GPU tests are collected, Triton is interpreted"
    return f"sam_kernels: required backends {sorted(REQUIRED) or 'none'}; CUDA device {device}"


def _params() -> list:
    gpu = [pytest.param(place, id="-".join(place), marks=pytest.mark.gpu) for place in GPU_PLACES if torch.cuda.is_available()]
    return [pytest.param(place, id=place[0]) for place in PLACES] + gpu


@pytest.fixture(autouse=True)
def _in_full_precision() -> Iterator[None]:
    with full_precision():
        yield


@pytest.fixture(params=_params())
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(backend, device); skipped with the reason where the backend cannot run, a failure where it is required. A module that tests
    other ops than those of the step names them in ``TESTED``: not every backend has every op."""
    backend, device = request.param
    require_ops(backend, device, getattr(request.module, "TESTED", STEP))
    return backend, device
