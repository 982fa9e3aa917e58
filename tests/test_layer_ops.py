"""normalization_grads and embedding_grad_norms against autograd in fp64, one sample at a time, on every backend.

Norms and rows may err by 1e-5 in fp32, rows relative to their largest entry, dx relative to its own; by 1e-2 in bf16 and fp16, whose
outputs are rounded; by 1e-12 in fp64. The inputs of the truth are those that the op gets, rounded to its dtype.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam_kernels.ops import embedding_grad_norms, normalization_grads
from sam_kernels.ops.lists import accumulator
from sam_kernels.ops.normalization_grads import guard

TESTED = ("normalization_grads", "embedding_grad_norms")
Place = tuple[str, str]
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}
HALVES = (torch.bfloat16, torch.float16)
RELAXED = settings(deadline=None, max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def dtypes_of(backend: str) -> tuple[torch.dtype, ...]:
    return (torch.float32, *HALVES) if backend == "triton" else (torch.float32, torch.float64, *HALVES)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64) + mean).to(dtype)


def close(name: str, got: Tensor, want: Tensor, bound: float, terms: Tensor | None = None) -> None:
    """Within ``bound`` of the largest of ``want``, or of the ``terms`` that it is the difference of."""
    assert got.shape == want.shape, f"{name} has shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if want.numel():
        error, scale = (got.double().cpu() - want).abs().max().item(), (want if terms is None else terms).abs().max().item()
        assert error <= bound * scale, f"{name}: error {error:.3e} of {scale:.3e}, allowed {bound:.0e}"


# ---- normalization


class Layer(NamedTuple):
    """A torch layer over a sample's ``shape``, and how normalization_grads sees it: ``view`` is (entries per sample, G, D, S)."""

    name: str
    shape: tuple[int, ...]
    view: tuple[int, int, int, int]
    run: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    centred: bool = True


def layer_norm(t: int, d: int) -> Layer:
    return Layer(f"layer_norm-{t}x{d}", (t, d), (t, 1, d, 1), lambda x, w, b: F.layer_norm(x, (d,), w, b))


def rms_norm(t: int, d: int) -> Layer:
    return Layer(f"rms_norm-{t}x{d}", (t, d), (t, 1, d, 1), lambda x, w, b: F.rms_norm(x, (d,), w, 1e-5) + (0 if b is None else b), False)


def group_norm(groups: int, channels: int, *sizes: int) -> Layer:
    view = (1, groups, channels // groups, int(torch.tensor(sizes).prod()))
    return Layer(f"group_norm-{groups}-{view}", (channels, *sizes), view, lambda x, w, b: F.group_norm(x, groups, w, b))


def instance_norm(channels: int, *sizes: int) -> Layer:
    view = (1, channels, 1, int(torch.tensor(sizes).prod()))
    return Layer(f"instance_norm-{view}", (channels, *sizes), view, lambda x, w, b: F.instance_norm(x, weight=w, bias=b))


LAYERS = [
    layer_norm(3, 40), layer_norm(1, 7), layer_norm(5, 1), layer_norm(70, 16), rms_norm(2, 33), rms_norm(1, 128), rms_norm(40, 8),
    group_norm(2, 6, 5, 3), group_norm(1, 4, 70), group_norm(3, 12), group_norm(4, 4, 9), instance_norm(3, 6, 6), instance_norm(2, 2, 2, 3),
]  # fmt: skip
WIDE = [layer_norm(130, 600), layer_norm(2, 20000), group_norm(1, 3, 100, 190), group_norm(40, 40, 33), instance_norm(5, 45, 20)]


def operands(layer: Layer, samples: int, dtype: torch.dtype, mean: float = 0.0, affine: bool = True) -> dict[str, Any]:
    """The op's arguments; statistics are those of the rounded x, in fp64 and then rounded."""
    entries, groups, channels, positions = layer.view
    shape = (samples * entries, groups, channels, positions)
    x, grad = random(*shape, dtype=dtype, mean=mean), random(*shape, dtype=dtype, seed=1)
    wide, average = x.double(), x.double().mean((2, 3))
    square = ((wide - average[..., None, None]) if layer.centred else wide).square().mean((2, 3))
    to = accumulator(dtype)
    weight = random(groups * channels, dtype=dtype, seed=2) if affine else None
    statistics = {"mean": average.to(to) if layer.centred else None, "rstd": (square + 1e-5).rsqrt().to(to)}
    return {"grad": grad, "x": x, **statistics, "weight": weight, "samples": samples}


def truth_of(layer: Layer, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """dx and rows by autograd in fp64, one sample after the other."""
    samples, affine = given["samples"], layer.view[1] * layer.view[2]
    dx, rows = [], []
    for x, grad in zip(*(given[name].double().view(samples, 1, *layer.shape) for name in ("x", "grad")), strict=True):
        weight = torch.ones(affine).double() if given["weight"] is None else given["weight"].double()
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_(), torch.zeros(affine).double().requires_grad_()]
        gradients = torch.autograd.grad(layer.run(*leaves), leaves, grad)
        dx.append(gradients[0])
        rows.append(torch.stack(gradients[1:]))
    return torch.stack(dx).view(given["x"].shape), torch.stack(rows)


def run(place: Place, given: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    backend, device = place
    moved = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in given.items()}
    return normalization_grads(**moved, **options, backend=backend)


def check(place: Place, layer: Layer, given: dict[str, Any], bound: float | None = None) -> None:
    dtype = given["x"].dtype
    (dx, rows), (want_dx, want_rows) = run(place, given), truth_of(layer, given)
    bound = bound or BOUND[dtype]
    assert dx.dtype == dtype and rows.dtype == accumulator(dtype)
    tiny = layer.view[2] * layer.view[3] < 4  # centred and scaled, next to nothing is left of one element, or of two
    close("dx", dx, want_dx, bound, given["grad"] * given["rstd"][:, :, None, None] if tiny else None)
    accurate = BOUND[accumulator(dtype)] if bound == BOUND[dtype] else bound  # rows are not rounded to the half types
    close("rows", rows, want_rows, accurate)
    close("norms", rows.double().square().sum(2), want_rows.square().sum(2), 2 * accurate)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_normalization(place: Place, layer: Layer) -> None:
    for dtype in dtypes_of(place[0]):
        check(place, layer, operands(layer, 3, dtype))
    check(place, layer, operands(layer, 1, torch.float32, affine=False))


@pytest.mark.parametrize("layer", WIDE, ids=lambda layer: layer.name)
def test_normalization_in_blocks(place: Place, layer: Layer) -> None:
    """Sizes beyond one block, one tile, one piece of work."""
    for dtype in dtypes_of(place[0])[:3:2]:
        check(place, layer, operands(layer, 2, dtype))


@RELAXED
@given(
    samples=st.integers(1, 3), entries=st.integers(1, 3), groups=st.integers(1, 3), channels=st.integers(1, 5), positions=st.integers(1, 40)
)
def test_normalization_of_any_shape(place: Place, samples: int, entries: int, groups: int, channels: int, positions: int) -> None:
    """A sample may own several entries: GroupNorm over folded frames."""

    def frames(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return torch.group_norm(x.flatten(0, 1), groups, w, b).view(x.shape)  # F refuses a single value

    layer = Layer("frames", (entries, groups * channels, positions), (entries, groups, channels, positions), frames)
    check(place, layer, operands(layer, samples, torch.float32), bound=1e-4 if channels * positions < 4 else None)  # rstd may be large


@pytest.mark.parametrize("layer", [layer_norm(6, 96), group_norm(2, 6, 7, 9), instance_norm(3, 80)], ids=lambda layer: layer.name)
def test_large_mean(place: Place, layer: Layer) -> None:
    """x is centred before it is multiplied. Against the reference in fp64 with the statistics that the op gets: rounding a mean of 100
    to fp32 is not the op's error. Sums of g x less mean times sums of g would err by 4e-6 and more."""
    given = operands(layer, 2, torch.float32, mean=100.0)
    wide = {name: x.double() if isinstance(x, Tensor) else x for name, x in given.items()}
    for name, got, want in zip(("dx", "rows"), run(place, given), run(("reference", "cpu"), wide), strict=True):
        close(name, got, want, 1e-6)
    check(place, layer, given, bound=5e-5)


def test_frozen_statistics(place: Place) -> None:
    given = operands(group_norm(2, 6, 7), 3, torch.float32)
    dx, rows = run(place, given, coupled=False)
    want = given["grad"].double() * given["weight"].double().view(1, 2, 3, 1) * given["rstd"].double()[:, :, None, None]
    close("dx", dx, want, 1e-6)
    assert torch.equal(rows, run(place, given)[1])


def test_weight_in_fp32_for_half_inputs(place: Place) -> None:
    layer = layer_norm(3, 24)
    given = operands(layer, 2, torch.bfloat16)
    check(place, layer, {**given, "weight": random(24, seed=2)})


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_normalization_of_nothing(place: Place, shape: tuple[int, ...]) -> None:
    n, g, d, _ = shape
    x, statistics = torch.ones(shape, device=place[1]), torch.ones(n, g, device=place[1])
    for samples in {0, 1, 2} if n == 0 else {1, 2}:
        dx, rows = normalization_grads(x, x, statistics, statistics, samples=samples, backend=place[0])
        assert dx.shape == x.shape and torch.equal(rows.cpu(), torch.zeros(samples, 2, g * d))


# ---- embedding


def embedding_truth(ids: Tensor, g: Tensor, padding_idx: int | None) -> Tensor:
    norms = []
    for row, grad in zip(ids, g.double(), strict=True):
        table = torch.zeros(int(ids.max()) + 1, g.shape[2]).double().requires_grad_()
        (gradient,) = torch.autograd.grad(F.embedding(row, table, padding_idx=padding_idx), table, grad)
        norms.append(gradient.square().sum())
    return torch.stack(norms)


def check_embedding(place: Place, ids: Tensor, g: Tensor, padding_idx: int | None = None) -> None:
    backend, device = place
    norms = embedding_grad_norms(ids.to(device), g.to(device), padding_idx=padding_idx, backend=backend)
    want, bound = embedding_truth(ids, g, padding_idx), BOUND[accumulator(g.dtype)]
    assert norms.dtype == accumulator(g.dtype)
    close("norms", norms, want, bound)
    assert ((norms.double().cpu() - want).abs() <= 2 * bound * want).all(), "a small norm is not accurate"


def tokens(samples: int, length: int, words: int) -> Tensor:
    return torch.randint(words, (samples, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("samples", "length", "words", "d"),
    [(3, 12, 5, 9), (2, 1, 4, 3), (1, 40, 1, 5), (2, 33, 1000, 1), (1, 130, 7, 20), (33, 3, 2, 2), (1, 6, 3, 1500)],
)
def test_embedding(place: Place, samples: int, length: int, words: int, d: int) -> None:
    ids = tokens(samples, length, words)
    for dtype in dtypes_of(place[0]):
        check_embedding(place, ids, random(samples, length, d, dtype=dtype))
    check_embedding(place, ids, random(samples, length, d), padding_idx=int(ids[0, 0]))


@RELAXED
@given(samples=st.integers(1, 3), length=st.integers(1, 80), words=st.integers(1, 90), d=st.integers(1, 40), padding=st.integers(-1, 3))
def test_embedding_of_any_shape(place: Place, samples: int, length: int, words: int, d: int, padding: int) -> None:
    padding_idx = padding if 0 <= padding < words else None
    ids = tokens(samples, length, words).clamp_min(int(padding_idx == words - 1))  # not everything may be padding
    check_embedding(place, ids, random(samples, length, d), padding_idx)


def test_embedding_of_cancelling_gradients(place: Place) -> None:
    """The sum of a run is formed before its square: what cancels, cancels exactly."""
    ids, g = torch.tensor([[4, 9, 4, 4]]), random(1, 4, 6)
    g[0, 2], g[0, 3], g[0, 1] = -g[0, 0], 0, 1e-4
    norms = embedding_grad_norms(ids.to(place[1]), g.to(place[1]), backend=place[0])
    close("norms", norms, torch.tensor([6e-8]).double(), 1e-5)


def test_ids_are_never_addresses(place: Place) -> None:
    """Ids that no embedding would take: the largest and the smallest, and one below zero that is not the absent padding."""
    ids = torch.tensor([[2**63 - 1, -1, -(2**63), -1, 2**63 - 1]], device=place[1])
    norms = embedding_grad_norms(ids, torch.ones(1, 5, 2, device=place[1]), backend=place[0])
    assert norms.tolist() == [2.0 * (4 + 4 + 1)]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_embedding_of_nothing(place: Place, shape: tuple[int, ...]) -> None:
    ids, g = torch.zeros(shape[:2], dtype=torch.int64, device=place[1]), torch.ones(shape, device=place[1])
    assert torch.equal(embedding_grad_norms(ids, g, backend=place[0]).cpu(), torch.zeros(shape[0]))


# ---- both


def test_equal_bits(place: Place) -> None:
    """On a rerun, and on the CPU for any number of threads."""
    given = [operands(layer, 2, torch.float32) for layer in (layer_norm(130, 600), group_norm(2, 4, 90, 70))]
    ids, g = tokens(2, 90, 30), random(2, 90, 1100)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 1, 2, 3) if place[0] == "cpp" else (1, 1):
            torch.set_num_threads(count)
            norms = embedding_grad_norms(ids.to(place[1]), g.to(place[1]), backend=place[0])
            runs.append([norms, *(x for layer in given for x in run(place, layer))])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other, strict=True))


def test_opcheck(place: Place) -> None:
    backend, device = place
    given = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in operands(group_norm(2, 4, 5), 2, torch.float32).items()}
    for weight in (given["weight"], None):
        arguments = (given["grad"], given["x"], given["mean"], given["rstd"], weight, 2, True, backend)
        torch.library.opcheck(torch.ops.sam_kernels.normalization_grads.default, arguments)
    arguments = (tokens(2, 5, 3).to(device), random(2, 5, 4).to(device), 0, backend)
    torch.library.opcheck(torch.ops.sam_kernels.embedding_grad_norms.default, arguments)


def normalization(**changed: Any) -> None:
    normalization_grads(**{**operands(group_norm(2, 6, 5), 3, torch.float32), **changed})


def on_two_devices() -> None:
    """The check itself: with a meta tensor among its arguments the op would only be traced."""
    guard({**operands(group_norm(2, 6, 5), 3, torch.float32), "grad": torch.empty(3, 2, 3, 5, device="meta")})


def embedding(ids: Tensor | None = None, g: Tensor | None = None, **options: Any) -> None:
    embedding_grad_norms(tokens(2, 3, 4) if ids is None else ids, random(2, 3, 5) if g is None else g, **options)


BAD: dict[str, tuple[Callable[[], None], type[Exception], str]] = {
    "x_dims": (lambda: normalization(x=random(3, 6, 5)), ValueError, r"x has shape \(3, 6, 5\); expected 4 dimensions"),
    "x_integer": (lambda: normalization(x=torch.ones(3, 2, 3, 5, dtype=torch.int32)), TypeError, "x is torch.int32"),
    "x_strides": (lambda: normalization(x=random(3, 2, 5, 3).mT), ValueError, r"x has strides .*contiguous\(\)"),
    "grad_shape": (lambda: normalization(grad=random(3, 2, 5, 3)), ValueError, r"grad has shape \(3, 2, 5, 3\); expected .*\(3, 2, 3, 5\)"),
    "grad_dtype": (lambda: normalization(grad=random(3, 2, 3, 5).double()), ValueError, "grad is torch.float64; expected .*float32"),
    "grad_expanded": (lambda: normalization(grad=torch.ones(1).expand(3, 2, 3, 5)), ValueError, "grad has strides"),
    "grad_device": (on_two_devices, ValueError, "grad is on meta; expected .*on cpu"),
    "mean_shape": (lambda: normalization(mean=random(6)), ValueError, r"mean has shape \(6,\); expected .*\(3, 2\)"),
    "rstd_dtype": (lambda: normalization(rstd=random(3, 2).bfloat16()), ValueError, "rstd is torch.bfloat16"),
    "weight_shape": (lambda: normalization(weight=random(3)), ValueError, r"weight has shape \(3,\); expected .*\(6,\)"),
    "weight_dtype": (lambda: normalization(weight=random(6).half()), ValueError, "weight is torch.float16"),
    "samples": (lambda: normalization(samples=2), ValueError, "samples is 2; expected a divisor of the 3 batch entries"),
    "no_samples": (lambda: normalization(samples=0), ValueError, "samples is 0"),
    "negative_samples": (lambda: normalization(samples=-3), ValueError, "samples is -3"),
    "normalization_cuda": (lambda: normalization(backend="cuda"), RuntimeError, "backend 'cuda' cannot run normalization_grads"),
    "g_dims": (lambda: embedding(g=random(2, 3)), ValueError, r"g has shape \(2, 3\); expected 3 dimensions"),
    "ids_shape": (lambda: embedding(ids=tokens(3, 2, 4)), ValueError, r"ids has shape \(3, 2\); expected .*\(2, 3\)"),
    "ids_dtype": (lambda: embedding(ids=tokens(2, 3, 4).int()), ValueError, "ids is torch.int32; expected .*int64"),
    "ids_strides": (lambda: embedding(ids=tokens(3, 2, 4).mT), ValueError, "ids has strides"),
    "padding": (lambda: embedding(padding_idx=-2), ValueError, "padding_idx is -2; expected an id >= 0"),
    "embedding_backend": (lambda: embedding(backend="fpga"), ValueError, "backend is 'fpga'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
