"""linear_grad_norms and conv_grad_norms on every backend, against fp64 autograd of one sample at a time.

The bound of a squared norm is relative: 1e-5 for fp32 inputs, 1e-3 for half types against fp64 on the same rounded values (a norm
itself then errs by half of it), 5e-5 where the Gram sum cancels. Gradients are sums, and follow the rule for sums of tolerance.py with
a rounding to their dtype.
"""

import conftest
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerance import FACTOR
from torch import Tensor

from sam_kernels import ops
from sam_kernels.ops import conv_grad_norms, linear_grad_norms
from sam_kernels.ops.conv_grad_norms import reference as conv_reference
from sam_kernels.ops.linear_grad_norms import reference as linear_reference
from sam_kernels.registry import OPS

TESTED = ("linear_grad_norms", "conv_grad_norms")
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
CANCELLING = 5e-5
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
DRAWN = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def island(x: Tensor) -> Tensor:
    """A copy of x with its strides in a sea of NaN: whatever is read beside it shows."""
    size = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    sea = torch.full((size + 128,), float("nan"), dtype=x.dtype)
    return sea.as_strided(x.shape, x.stride(), 64).copy_(x) if all(x.stride()) else x


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def linear_truth(a: Tensor, g: Tensor, weight: bool, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    w = torch.zeros(g.shape[2], a.shape[2], dtype=torch.float64, requires_grad=True)
    v = torch.zeros(g.shape[2], dtype=torch.float64, requires_grad=True)
    return _truth([(F.linear(a[b].double(), w, v) * g[b].double()).sum() for b in range(len(a))], w, v, weight, bias)


def conv_truth(x: Tensor, g: Tensor, weight: bool, bias: bool, samples: int, kernel, stride, dilation, groups: int):
    w = torch.zeros(g.shape[1], x.shape[1] // groups, *kernel, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(g.shape[1], dtype=torch.float64, requires_grad=True)
    seen = (slice(None), slice(None), *(slice(n) for n in g.shape[2:]))
    losses = []
    for mine, of_mine in zip(x.double().chunk(samples), g.double().chunk(samples), strict=True):
        y = CONVOLUTIONS[len(kernel) - 1](mine, w, v, tuple(stride), 0, tuple(dilation), groups)
        losses.append((y[seen] * of_mine).sum())
    return _truth(losses, w, v, weight, bias)


def _truth(losses: list[Tensor], w: Tensor, v: Tensor, weight: bool, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows = [torch.autograd.grad(loss, (w, v)) for loss in losses]
    norms = torch.stack([weight * dw.square().sum() + bias * db.square().sum() for dw, db in rows])
    return norms, sum(dw for dw, _ in rows), sum(db for _, db in rows)


def check(name: str, got, want, sizes, terms: int, dtype: torch.dtype, weight: bool, bias: bool, grads: bool = True) -> None:
    """``sizes``: what the op gives for absolute values, so the sums of the absolute ``terms`` of every sum."""
    norms, dw, db = (x.cpu() for x in got)
    assert norms.dtype == torch.float32 and dw.dtype == db.dtype == dtype
    error = ((norms - want[0]).abs() / want[0].clamp_min(1e-30)).max().item()
    assert error <= BOUND[dtype], f"{name}: relative error {error:.2e} of the squared norms"
    for asked, part, fused, truth, size in (("weight", weight, dw, want[1], sizes[1]), ("bias", bias, db, want[2], sizes[2])):
        if part and grads:
            assert fused.shape == truth.shape
            allowed = FACTOR * terms**0.5 * torch.finfo(torch.float32).eps * size + torch.finfo(dtype).eps * truth.abs()
            assert ((fused - truth).abs() <= allowed).all(), f"{name}: gradient of the {asked}"
        else:
            assert fused.numel() == 0


def check_linear(place, a: Tensor, g: Tensor, method: str, weight: bool = True, bias: bool = True, grads: bool = True) -> None:
    backend, device = place
    got = linear_grad_norms(a.to(device), g.to(device), method=method, weight=weight, bias=bias, grads=grads, backend=backend)
    sizes = linear_reference(a.double().abs(), g.double().abs(), "direct", True, True, True)
    terms = a.shape[0] * a.shape[1]
    check(f"{method} {tuple(a.shape)}", got, linear_truth(a, g, weight, bias), sizes, terms, a.dtype, weight, bias, grads)


def check_conv(place, x: Tensor, g: Tensor, shape, method: str, weight: bool = True, bias: bool = True, samples: int | None = None) -> None:
    backend, device = place
    kernel, stride, dilation, groups = shape
    arguments = (samples or len(x), kernel, stride, dilation, groups)
    names = dict(zip(("samples", "kernel", "stride", "dilation", "groups"), arguments, strict=True))
    got = conv_grad_norms(x.to(device), g.to(device), method=method, weight=weight, bias=bias, backend=backend, **names)
    sizes = conv_reference(x.double().abs(), g.double().abs(), *arguments, "direct", True, True, True)
    want, terms = conv_truth(x, g, weight, bias, *arguments), g.numel() // g.shape[1]
    check(f"{method} {tuple(x.shape)} {shape}", got, want, sizes, terms, x.dtype, weight, bias)


# (B, T, d, p): every tile of the Gram method, full and not; several samples in a tile; p = 1; more tiles than one in d and p
SIZES = [
    (5, 1, 7, 5), (7, 2, 20, 3), (3, 15, 5, 17), (2, 16, 16, 16), (5, 17, 33, 1), (2, 33, 1, 9), (3, 3, 140, 70), (2, 64, 8, 8),
    (1, 65, 3, 2), (2, 130, 5, 7), (2, 200, 4, 3), (1, 260, 2, 3),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("size", SIZES)
def test_linear(place, size: tuple[int, int, int, int], method: str, dtype: torch.dtype) -> None:
    B, T, d, p = size
    check_linear(place, island(draw(B, T, d, dtype=dtype)), island(draw(B, T, p, seed=1, dtype=dtype)), method)


@pytest.mark.parametrize("weight, bias, grads", [(True, False, True), (False, True, True), (True, True, False), (False, False, True)])
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("T", [1, 6, 20])
def test_linear_parts(place, T: int, method: str, weight: bool, bias: bool, grads: bool) -> None:
    check_linear(place, draw(3, T, 9), draw(3, T, 4, seed=1), method, weight, bias, grads)


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize(
    "layout",
    {
        "transposed": lambda g: g.mT.contiguous().mT,
        "batch_last": lambda g: g.movedim(0, 2).contiguous().movedim(2, 0),
        "strided": lambda g: g.repeat_interleave(3, 2)[..., ::3],
        "expanded_T": lambda g: g[:, :1].expand(g.shape),
        "expanded_B": lambda g: g[:1].expand(g.shape),
        "expanded_p": lambda g: g[..., :1].expand(g.shape),
        "a_scalar": lambda g: g[:1, :1, :1].expand(g.shape),
    }.items(),
    ids=lambda layout: layout[0],
)
@pytest.mark.parametrize("T", [1, 5, 18])
def test_linear_strides(place, T: int, layout, method: str) -> None:
    a, g = draw(4, T, 6), draw(4, T, 5, seed=1)
    check_linear(place, a, island(layout[1](g)), method)
    check_linear(place, island(layout[1](a)), g, method)


# (B, channels, outputs, spatial, kernel, stride, dilation, groups, pixels of the output that g leaves out)
SHAPES = [
    (2, 3, 5, (19,), (3,), (1,), (1,), 1, 0),
    (2, 4, 6, (11,), (3,), (2,), (2,), 2, 0),
    (2, 4, 4, (7, 6), (3, 3), (1, 1), (1, 1), 4, 0),  # depthwise
    (2, 4, 8, (7, 6), (3, 2), (2, 1), (1, 1), 4, 0),  # depthwise with a multiplier
    (2, 6, 4, (9, 8), (3, 2), (2, 1), (1, 2), 2, 1),
    (3, 16, 3, (4, 4), (1, 1), (1, 1), (1, 1), 1, 0),  # a linear layer over pixels
    (3, 16, 4, (7, 7), (1, 1), (3, 2), (1, 1), 2, 0),
    (2, 2, 3, (5, 4, 6), (2, 1, 3), (1, 2, 1), (2, 1, 1), 1, 0),
    (2, 4, 2, (4, 5, 4), (2, 2, 2), (2, 1, 2), (1, 1, 1), 2, 1),
    (5, 3, 8, (5, 5), (5, 5), (1, 1), (1, 1), 1, 0),  # one output pixel
    (2, 4, 4, (8, 8), (3, 3), (3, 3), (1, 1), 2, 1),  # more input than a stride that no output sees
    (1, 3, 2, (14, 14), (3, 3), (1, 1), (1, 1), 1, 0),  # 144 pixels: three tiles of 64
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "expanded": lambda x: x[:, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["direct", "gram", "pixel_gram"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_conv(place, case, dtype: torch.dtype, method: str, layout: str) -> None:
    B, channels, outputs, spatial, kernel, stride, dilation, groups, left = case
    out = [(n - d * (k - 1) - 1) // s + 1 - left for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True)]
    x = island(LAYOUTS[layout if layout != "expanded" else "contiguous"](draw(B, channels, *spatial, dtype=dtype)))
    g = island(LAYOUTS[layout](draw(B, outputs, *out, seed=1, dtype=dtype)))
    check_conv(place, x, g, (kernel, stride, dilation, groups), method)


@pytest.mark.parametrize("weight, bias", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("spatial, kernel", [((6,), (3,)), ((3,), (3,)), ((5, 5), (2, 3))])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_several_images_are_one_sample(place, groups: int, spatial, kernel, weight: bool, bias: bool) -> None:
    out = [n - k + 1 for n, k in zip(spatial, kernel, strict=True)]
    x, g = draw(6, 4, *spatial), draw(6, 4, *out, seed=1)
    ones = (1,) * len(kernel)
    check_conv(place, x, g, (kernel, ones, ones, groups), "direct", weight, bias, samples=2)
    backend, device = place
    shape = {"kernel": kernel, "stride": ones, "dilation": ones, "groups": groups, "samples": 2, "backend": backend}
    with pytest.raises(ValueError, match="images that share a sample need 'direct'"):
        conv_grad_norms(x.to(device), g.to(device), method="gram", **shape)


def cancelling(B: int = 2, T: int = 64, d: int = 64, p: int = 48) -> tuple[Tensor, Tensor]:
    """Inputs with a shared mean direction and gradients that sum to nothing over T: the Gram sum loses most of its digits."""
    a = draw(B, T, d) + 12 * draw(1, 1, d, seed=2)
    g = draw(B, T, p, seed=1)
    return a.bfloat16(), (g - g.mean(1, keepdim=True)).bfloat16()


def test_a_gram_sum_that_cancels_keeps_its_digits(place) -> None:
    a, g = cancelling()
    wide, of_g = a.double(), g.double()
    k_a, k_g = wide @ wide.mT, of_g @ of_g.mT
    want = linear_truth(a, g, True, False)[0]
    assert ((k_a * k_g).abs().sum((1, 2)) / want > 100).all(), "does not cancel: a coarse Gram would pass"
    rounded = (k_a.bfloat16().double() * k_g.bfloat16().double()).sum((1, 2))
    assert ((rounded - want).abs() / want > 20 * CANCELLING).all(), "a Gram stored in bf16 would pass"
    backend, device = place
    for method in ("direct", "gram"):
        norms = linear_grad_norms(a.to(device), g.to(device), method=method, bias=False, grads=False, backend=backend)[0].cpu()
        assert ((norms - want).abs() / want).max() <= (CANCELLING if method == "gram" else BOUND[torch.float32])


@pytest.mark.parametrize("method", ["gram", "pixel_gram"])
@pytest.mark.parametrize("T", [4, 40])
def test_no_norm_is_negative(place, T: int, method: str) -> None:
    """Gradients that cancel over equal inputs: all of the norm is rounding, of either sign."""
    backend, device = place
    a, g = draw(1, 1, 8).expand(64, T, 8).contiguous().to(device), draw(64, T, 5, seed=1)
    g = (g - g.mean(1, keepdim=True)).to(device)
    x, of_x = a.mT.contiguous(), g.mT.contiguous()
    results = [conv_grad_norms(x, of_x, kernel=[1], stride=[1], dilation=[1], method=method, bias=False, grads=False, backend=backend)[0]]
    if method == "gram":
        results.append(linear_grad_norms(a, g, method=method, bias=False, grads=False, backend=backend)[0])
    for norms in results:
        assert (norms >= 0).all() and (norms < 1e-7 * 40 * T * T).all() and (norms == 0).any(), "none would have been negative"


@pytest.mark.parametrize("T", [2, 15, 40])
def test_methods_agree_and_repeat(place, T: int) -> None:
    backend, device = place
    a, g = draw(3, T, 20).to(device), draw(3, T, 6, seed=1).to(device)
    results = {m: linear_grad_norms(a, g, method=m, backend=backend) for m in ("direct", "gram")}
    torch.testing.assert_close(results["direct"][0], results["gram"][0], rtol=1e-5, atol=0)
    for m, first in results.items():
        again = linear_grad_norms(a, g, method=m, backend=backend)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    x, g = draw(2, 4, 6, 6).to(device), draw(2, 4, 4, 4, seed=1).to(device)
    shape = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 2, "backend": backend}
    runs = [[conv_grad_norms(x, g, method=m, **shape) for _ in range(2)] for m in ("direct", "gram", "pixel_gram")]
    for first, again in runs:
        assert all(torch.equal(y, z) for y, z in zip(first, again, strict=True))
        torch.testing.assert_close(first[0], runs[0][0][0], rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy")  # of the interpreter, on the NaN
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("T", [1, 2, 7, 20])
def test_a_sample_that_diverged_stays_alone(place, T: int, method: str) -> None:
    backend, device = place
    a, g = draw(5, T, 4), draw(5, T, 3, seed=1)
    clean = linear_grad_norms(a.to(device), g.to(device), method=method, backend=backend)[0].cpu()
    a[2, -1, 0], g[2, 0, 1] = float("nan"), float("inf")
    norms = linear_grad_norms(a.to(device), g.to(device), method=method, backend=backend)[0].cpu()
    assert torch.isfinite(norms).tolist() == [True, True, False, True, True]
    others = [0, 1, 3, 4]
    assert torch.equal(norms[others], clean[others])


@pytest.mark.parametrize("a, g", [((0, 3, 2), (0, 3, 4)), ((2, 0, 2), (2, 0, 4)), ((2, 3, 0), (2, 3, 4)), ((2, 3, 2), (2, 3, 0))], ids=str)
@pytest.mark.parametrize("method", ["direct", "gram"])
def test_empty(place, a: tuple[int, ...], g: tuple[int, ...], method: str) -> None:
    check_linear(place, draw(*a), draw(*g), method) if a[0] else None
    backend, device = place
    norms, dw, db = linear_grad_norms(torch.ones(a, device=device), torch.ones(g, device=device), method=method, backend=backend)
    assert norms.shape == a[:1] and dw.shape == (g[2], a[2]) and db.shape == g[2:]
    assert not dw.any()


@DRAWN
@given(data=st.data())
def test_random_linear(place, data) -> None:
    size = {name: data.draw(st.integers(1, most), label=name) for name, most in (("B", 5), ("T", 36), ("d", 24), ("p", 24), ("seed", 99))}
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    a = draw(size["B"], size["T"], size["d"], seed=size["seed"], dtype=dtype)
    g = draw(size["B"], size["T"], size["p"], seed=size["seed"] + 1, dtype=dtype)
    method, bias = data.draw(st.sampled_from(["direct", "gram"])), data.draw(st.booleans())
    check_linear(place, island(a), island(g), method, bias=bias)


@DRAWN
@given(data=st.data())
def test_random_conv(place, data) -> None:
    numbers = lambda low, high, count: tuple(data.draw(st.integers(low, high)) for _ in range(count))  # noqa: E731
    dims, (groups, channels, outputs) = data.draw(st.integers(1, 3)), numbers(1, 3, 3)
    kernel, stride, dilation, extra = numbers(1, 3, dims), numbers(1, 3, dims), numbers(1, 2, dims), numbers(0, 4, dims)
    out = numbers(1, 3 if dims > 1 else 20, dims)
    spatial = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(out, stride, kernel, dilation, extra, strict=True)]
    layout, dtype = data.draw(st.sampled_from(sorted(LAYOUTS)[:2])), data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    method = data.draw(st.sampled_from(["direct", "gram", "pixel_gram"]))
    images = data.draw(st.integers(1, 2)) if method == "direct" else 1
    x = LAYOUTS[layout](draw(3 * images, groups * channels, *spatial, dtype=dtype))
    g = LAYOUTS[layout](draw(3 * images, groups * outputs, *out, seed=1, dtype=dtype))
    check_conv(place, island(x), island(g), (kernel, stride, dilation, groups), method, samples=3)


@pytest.mark.parametrize("backend", ["", "reference", "triton"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("parts", [(True, True, True), (True, True, False), (False, True, True), (True, False, True)])
def test_opcheck(backend: str, layout: str, parts: tuple[bool, bool, bool]) -> None:
    if backend == "triton" and (why := OPS[TESTED[0]].missing.get(backend) or ("the GPU machine" if torch.cuda.is_available() else "")):
        conftest.skip_or_fail(backend, why)
    for method in ("direct", "gram"):
        torch.library.opcheck(torch.ops.sam_kernels.linear_grad_norms.default, (draw(2, 3, 4), draw(2, 3, 5), method, *parts, backend))
    x, g = LAYOUTS[layout](draw(2, 4, 6, 5)), LAYOUTS[layout](draw(2, 6, 4, 3))
    arguments = (x, g, 2, [3, 3], [1, 1], [1, 1], 2, "direct", *parts, backend)
    torch.library.opcheck(torch.ops.sam_kernels.conv_grad_norms.default, arguments)


def test_bad_arguments_are_refused(place) -> None:
    backend, device = place
    a, g = torch.ones(2, 3, 4, device=device), torch.ones(2, 3, 5, device=device)
    raw, conv = torch.ops.sam_kernels.linear_grad_norms, torch.ops.sam_kernels.conv_grad_norms
    for call, error, message in (
        (lambda: linear_grad_norms(a, g[:1], backend=backend), ValueError, r"a has shape \(2, 3, 4\) and g \(1, 3, 5\)"),
        (lambda: linear_grad_norms(a[0], g[0], backend=backend), ValueError, "flatten the middle"),
        (lambda: linear_grad_norms(a, g, method="ghost", backend=backend), ValueError, "method is 'ghost'"),
        (lambda: linear_grad_norms(a, g.half(), backend=backend), RuntimeError, "differ in dtype or device"),
        (lambda: raw(a, g[:, :2], "gram", True, True, True, backend), RuntimeError, r"must be \[B, T, d\]"),
        (lambda: raw(a.long(), g.long(), "gram", True, True, True, backend), RuntimeError, "differ in dtype or device"),
        (lambda: conv_grad_norms(a, g, kernel=[2], stride=[1], dilation=[1], backend=backend), RuntimeError, "leaves the input"),
        (lambda: conv_grad_norms(a, g, kernel=[1], stride=[1], dilation=[1], groups=2, backend=backend), RuntimeError, "groups"),
        (lambda: conv_grad_norms(a, g, samples=3, kernel=[1], stride=[1], dilation=[1], backend=backend), RuntimeError, "do not divide"),
        (lambda: conv_grad_norms(a, g, kernel=[1], stride=[1, 1], dilation=[1], backend=backend), RuntimeError, "differ in length"),
        (lambda: conv_grad_norms(a, g, kernel=[1], stride=[0], dilation=[1], backend=backend), RuntimeError, "positive"),
        (lambda: conv(a, a, 1, [1], [1], [1], 1, "gram", True, True, True, backend), RuntimeError, "need the direct method"),
    ):
        with pytest.raises(error, match=message):
            call()
    if backend == "triton":
        with pytest.raises(RuntimeError, match=r"supports .* not torch.float64"):
            linear_grad_norms(a.double(), g.double(), backend=backend)


@conftest.where_triton_runs
@pytest.mark.parametrize("method", ["direct", "gram"])
def test_triton_offsets_of_64_bits_and_rounded_products(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a huge sample or a lower precision asked of torch selects, on the small sizes that the interpreter can bear."""
    launch = pytest.importorskip("sam_kernels.backends.triton.sample_launch")
    if "triton" not in OPS[TESTED[0]].implementations:
        conftest.skip_or_fail("triton", OPS[TESTED[0]].missing["triton"])
    place = ("triton", "cuda" if torch.cuda.is_available() else "cpu")
    x, g = draw(2, 4, 6, 5), draw(2, 4, 2, 2, seed=1)
    monkeypatch.setattr(launch, "LONG", 0)
    check_conv(place, x, g, ((3, 2), (2, 1), (1, 2), 2), method)
    check_linear(place, draw(3, 4, 5), draw(3, 4, 6, seed=1), method)
    assert launch._precision(x) == (False, "ieee") and launch._precision(x.half()) == (True, "ieee")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert launch._precision(x) == (True, "tf32")
        if place[1] == "cpu":  # where the interpreter rounds nothing
            check_linear(place, draw(2, 70, 5), draw(2, 70, 6, seed=1), method)
    finally:
        torch.set_float32_matmul_precision(before)


@conftest.where_triton_runs
@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("axis", ["samples", "rows", "columns"])
def test_offsets_beyond_31_bits(axis: str, method: str) -> None:
    """Elements 2^30 apart, in memory that is never touched between them."""
    if "triton" not in OPS[TESTED[0]].implementations:
        conftest.skip_or_fail("triton", OPS[TESTED[0]].missing["triton"])
    place = ("triton", "cuda" if torch.cuda.is_available() else "cpu")
    far = (1 << 30) + 8
    try:
        buffer = torch.empty(3 * far, dtype=torch.bfloat16, device=place[1])
    except (RuntimeError, MemoryError) as error:
        pytest.skip(f"no 6 GB of address space: {error}")
    shape, strides = {"samples": ((3, 2, 4), (far, 4, 1)), "rows": ((1, 3, 4), (5, far, 1)), "columns": ((1, 3, 3), (5, 1, far))}[axis]
    a = buffer.as_strided(shape, strides).copy_(draw(*shape))
    check_linear(place, a, draw(*shape[:2], 3, seed=1, dtype=torch.bfloat16), method, grads=False)


def test_columns_in_the_order_that_reads_vectors() -> None:
    """Of channels-last tensors: the channels fastest, 16 bytes at a time, and the height and width of a 1 x 1 kernel as one digit."""
    matrices = pytest.importorskip("sam_kernels.backends.triton.conv_grad_norms")
    x = torch.empty(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    patch = matrices.fastest_last((64, 3, 3), (x.stride(1), x.stride(2), x.stride(3)))
    assert patch == ((192,), (512, 1))
    moves = x.stride()[2:]
    patches = matrices.view_matrix(x, 2, 1, (6, 6), moves, patch, 576)
    assert patches.vectors and patches.rows == ((6,), (512, 64))
    pixels = matrices.view_matrix(x, 2, 1, (8, 8), moves, matrices.fastest_last((64, 1, 1), (1, *moves)), 64)
    assert pixels.rows == pixels.columns._replace(strides=(64,)) == ((), (64,))
    assert not matrices.view_matrix(x.contiguous(), 2, 1, (8, 8), (8, 1), matrices.digits((64,), (64,)), 64).vectors


@conftest.where_triton_runs
def test_pairs_of_tiles_around_every_triangular_number() -> None:
    """The pair comes from a square root in fp32, which may round to the next integer."""
    if "triton" not in OPS[TESTED[0]].implementations:
        conftest.skip_or_fail("triton", OPS[TESTED[0]].missing["triton"])
    import grad_norm_probe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    i = torch.arange(1 << 14, device=device)
    for j in (0 * i, i):
        index = (i * (i + 1) // 2 + j).int()
        got = torch.empty(2, len(i), dtype=torch.int32, device=device)
        grad_norm_probe.pairs_kernel[(1,)](index, got, len(i))
        assert torch.equal(got.long(), torch.stack([i, j]))


def test_every_shape_has_a_tile() -> None:
    launch = pytest.importorskip("sam_kernels.backends.triton.sample_launch")
    for cores in (True, False):
        for size in [*range(1, 300), 1000, 4096, 100_000]:
            assert (cores, launch.edge_of(size, cores)) in launch.TILES
            edge = launch.gram_edge(size, cores)
            assert (cores, edge) in launch.TILES and (edge >= size or edge >= 64)


def test_public_names() -> None:
    assert {"linear_grad_norms", "conv_grad_norms"} <= set(ops.__all__)
