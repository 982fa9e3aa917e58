"""The C++ draws at the size that they are made for, against the reference and for any number of threads, bit by bit."""

from collections.abc import Iterator

import pytest
import torch
from conftest import require_ops
from torch import Tensor

from sam_kernels.ops.draw import OP
from sam_kernels.ops.draw_checks import SCHEMES

STATE = torch.tensor([-(2**40) - 17, 2**33 + 5])
N = 1_000_000
WEIGHTS = {
    "plain": lambda u: u,
    "wide": lambda u: (12 * u).exp() ** 2,  # 24 octaves and more
    "holes": lambda u: torch.where(u < 0.7, 0.0, u),
    "ties": lambda u: torch.ones_like(u),
    "one": lambda u: torch.where(torch.arange(len(u)) == len(u) // 3, 1e30, u * 1e-12),  # a chunk with nearly all points
}


def run(backend: str, weights: Tensor, k: int, scheme: str) -> tuple[Tensor, ...]:
    require_ops(backend, "cpu", ["draw"])
    return OP.named(backend, "cpu", weights.dtype)(weights, k, scheme, STATE)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def uniform(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(n))


def assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("counts", "inclusion", "flag"), got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), f"{name} differ in {(a != b).sum()} places"


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_million_weights(scheme: str, kind: str) -> None:
    weights = WEIGHTS[kind](uniform(N))
    assert_equal(run("cpp", weights, N // 4, scheme), run("reference", weights, N // 4, scheme))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_threads(scheme: str, dtype: torch.dtype, threads: None) -> None:
    for n in (16384 * 9, 16384 * 20 + 7):
        weights, runs = uniform(n).to(dtype), []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            runs.append(run("cpp", weights, n // 3, scheme))
        for other in runs[1:]:
            assert_equal(other, runs[0])
        assert_equal(runs[0], run("reference", weights, n // 3, scheme))


def test_a_race_in_which_the_sample_of_times_misleads() -> None:
    """Every time that the selection samples belongs to a heavy weight: the rank that it looks for is not where it looks first."""
    stride = 8
    weights = torch.full((stride * 4096,), 1e-6)
    weights[::stride] = 1.0
    for k in (1, 2048, 4096, len(weights) // 2, len(weights) - 1):
        assert_equal(run("cpp", weights, k, "top_k"), run("reference", weights, k, "top_k"))


def test_many_more_points_than_samples() -> None:
    weights = uniform(1000)
    for scheme in ("systematic", "multinomial"):
        assert_equal(run("cpp", weights, 3_000_000, scheme), run("reference", weights, 3_000_000, scheme))
    counts = run("cpp", weights, 2**31 - 1, "systematic")[0].long()
    assert counts.sum() == 2**31 - 1 and (counts - (2**31 - 1) * weights.double() / weights.double().sum()).abs().max() < 1
