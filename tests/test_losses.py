"""cross_entropy_sample on every backend: loss, gradient norm and gradient against fp64 autograd, one sample at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_kernels.ops import cross_entropy_sample

TESTED = ("cross_entropy_sample", "cross_entropy_sample_backward")
INF, NAN = float("inf"), float("nan")
SHAPES = {
    "one_class": (5, 1),
    "two": (3, 2),
    "ten": (37, 10),
    "narrow": (17, 64),
    "wide": (5, 65),
    "groups": (3, 1024),
    "blocks": (2, 5003),
    "no_rows": (0, 7),
}
OPTIONS = {"plain": (0.0, False), "smoothed": (0.1, False), "weighted": (0.0, True), "both": (0.3, True), "all_smoothed": (1.0, False)}


def case(shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    rows, classes = shape
    logits = torch.randn(rows, classes, generator=generator) * scale
    target = torch.randint(0, classes, (rows,), generator=generator)
    if rows > 2:
        target[1] = -100
    return logits, target, torch.rand(classes, generator=generator) + 0.1


def plain(logits, target, smoothing, weight, grad):
    """Loss, norm and weighted gradient by autograd, in the dtype of the logits; every sample's own gradient is a row of one backward."""
    z = logits.detach().clone().requires_grad_()
    w = None if weight is None else weight.to(z.dtype)
    loss = F.cross_entropy(z, target, weight=w, label_smoothing=smoothing, reduction="none")
    (rows,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
    (weighted,) = torch.autograd.grad(loss, z, grad.to(loss.dtype))
    return loss.detach(), rows.norm(dim=1), weighted


def fused(logits, target, smoothing, weight, grad, backend):
    z = logits.detach().requires_grad_()
    out = cross_entropy_sample(z, target, label_smoothing=smoothing, weight=weight, backend=backend)
    (weighted,) = torch.autograd.grad(out.loss, z, grad.to(out.loss.dtype))
    return out.loss.detach(), out.grad_norm, weighted


def assert_close(name, got, plain32, truth, accumulator, dtype):
    """The rule of tolerance.py, and 8 ulp for the exponentials: a few elements of plain torch may be right by luck. In fp64 the truth
    has such errors of its own."""
    ulps = 32 if accumulator == torch.float64 else 8
    magnitude, scale = truth.abs().max().item() if truth.numel() else 0.0, torch.finfo(accumulator).eps / torch.finfo(torch.float32).eps
    plain_error = scale * (plain32 - truth).abs().max().item() if truth.numel() else 0.0
    allowed = 2 * plain_error + (ulps * torch.finfo(accumulator).eps + (dtype != accumulator) * torch.finfo(dtype).eps) * magnitude
    error = (got.double() - truth).abs().max().item() if truth.numel() else 0.0
    assert error <= allowed, f"{name}: error {error:.3e} exceeds {allowed:.3e}"


def dtypes_of(backend):
    halves = [torch.bfloat16, torch.float16]
    return [torch.float32, *halves, *([torch.float64] if backend in ("reference", "cpp") else [])]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_norm_and_gradient(place, shape, options):
    backend, device = place
    smoothing, weighted = OPTIONS[options]
    for dtype in dtypes_of(backend):
        logits, target, weight = (x.to(device) for x in case(SHAPES[shape]))
        logits, weight = logits.to(dtype), weight if weighted else None
        grad = torch.linspace(-1, 2, len(target), device=device)
        got = fused(logits, target, smoothing, weight, grad, backend)
        truth, plain32 = (plain(logits.to(d), target, smoothing, weight, grad) for d in (torch.float64, torch.float32))
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        assert [x.dtype for x in got] == [accumulator, accumulator, dtype]
        for name, a, b, c, d in zip(("loss", "norm", "grad"), got, plain32, truth, (accumulator, accumulator, dtype), strict=True):
            assert_close(f"{name} in {dtype}", a, b, c, accumulator, d)


@pytest.mark.parametrize("square", [1e-2, 1e-6, 1e-12, 1e-24])
@pytest.mark.parametrize("classes", [2, 10, 64, 1000])
def test_digits_of_confident_samples(place, classes, square):
    """softmax - onehot in fp32 knows nothing of these: its smallest step is 6e-8."""
    backend, device = place
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(8, classes, generator=generator)
    target = torch.randint(0, classes, (8,), generator=generator)
    others = logits.double().scatter(1, target[:, None], -INF).logsumexp(1)
    logits.scatter_(1, target[:, None], (others - 0.5 * math.log(square)).float()[:, None])
    z = logits.double()
    odds = (z.scatter(1, target[:, None], -INF) - z.gather(1, target[:, None])).exp()
    mass = odds.sum(1)
    loss, norm = torch.log1p(mass), (mass.square() + odds.square().sum(1)).sqrt() / (1 + mass)
    got = fused(logits.to(device), target.to(device), 0.0, None, torch.ones(8, device=device), backend)
    own = got[2].gather(1, target.to(device)[:, None])[:, 0]
    ulps = 16 if backend == "reference" else 8  # an odds ratio of e^-x is rounded by x ulp / 2 in plain torch
    for name, a, b in (("loss", got[0], loss), ("norm", got[1], norm), ("gradient of the target", own, -mass / (1 + mass))):
        error = ((a.cpu().double() - b) / b).abs().max().item()
        assert error <= ulps * torch.finfo(torch.float32).eps, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [3, 70, 2100])
def test_infinite_logits_as_torch_has_them(place, classes, smoothing):
    backend, device = place
    logits = torch.randn(9, classes, generator=torch.Generator().manual_seed(1))
    target = torch.full((9,), classes - 1)
    logits[0, 0] = -INF  # a masked class
    logits[1, : classes - 1] = -INF  # all but the target
    logits[2, classes - 1] = -INF  # the target
    logits[3] = -INF
    logits[4, 0] = INF
    logits[5, classes - 1] = INF
    logits[6, 1] = NAN
    logits[7, classes - 1] = NAN
    logits, target = logits.to(device), target.to(device)
    z = logits.double().requires_grad_()
    want = F.cross_entropy(z, target, reduction="none", label_smoothing=smoothing)
    (rows,) = torch.autograd.grad(want.sum(), z)
    got = fused(logits, target, smoothing, None, torch.ones(9, device=device), backend)
    torch.testing.assert_close(got[0].double(), want.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)
    finite = torch.isfinite(want)
    torch.testing.assert_close(got[1].double()[finite], rows.norm(dim=1)[finite], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[2].double()[finite], rows[finite], rtol=1e-5, atol=1e-6)
    assert got[1][2] == pytest.approx(rows[2].norm().item(), rel=1e-5)  # loss inf, gradient not
    torch.testing.assert_close(got[2][2].double(), rows[2], rtol=1e-5, atol=1e-6)
    assert torch.isnan(got[1][3:8]).all()


def test_far_logits_do_not_overflow_and_keep_their_digits(place):
    backend, device = place
    logits, target, _ = (x.to(device) for x in case((6, 100)))
    near = cross_entropy_sample(logits, target, label_smoothing=0.1, backend=backend)
    far = cross_entropy_sample((logits * 4).round() / 4 + 2.0**15, target, label_smoothing=0.1, backend=backend)
    exact = cross_entropy_sample((logits * 4).round() / 4, target, label_smoothing=0.1, backend=backend)
    assert torch.isfinite(near.loss).all()
    torch.testing.assert_close(far.loss, exact.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(far.grad_norm, exact.grad_norm, rtol=1e-5, atol=0)


def test_ignored_targets(place):
    backend, device = place
    logits = torch.full((4, 9), 100.0, device=device).requires_grad_()
    target = torch.tensor([7, 3, 7, 0], device=device)
    out = cross_entropy_sample(logits, target, ignore_index=7, backend=backend)
    (grad,) = torch.autograd.grad(out.loss.sum(), logits)
    for row in (0, 2):
        assert out.loss[row] == 0 and out.grad_norm[row] == 0 and not grad[row].any()
    assert (out.loss[1::2] > 0).all() and grad[1].any()


def test_shapes_and_layouts(place):
    backend, device = place
    logits, target = torch.randn(2, 5, 3, 4, device=device), torch.randint(0, 5, (2, 3, 4), device=device)
    out = cross_entropy_sample(logits, target, backend=backend)
    torch.testing.assert_close(out.loss, F.cross_entropy(logits, target, reduction="none"))
    assert out.grad_norm.shape == target.shape
    one = cross_entropy_sample(logits[0, :, 1, 2], target[0, 1, 2], backend=backend)
    assert one.loss.shape == one.grad_norm.shape == () and torch.equal(one.grad_norm, out.grad_norm[0, 1, 2])
    padded = torch.randn(6, 80, device=device)
    target = torch.randint(0, 70, (6,), device=device)
    for view in (padded[:, :70], padded[:, 3:73], torch.randn(70, 6, device=device).t(), padded[:1, :70].expand(6, 70)):
        a, b = (fused(x, target, 0.1, None, torch.ones(6, device=device), backend) for x in (view, view.contiguous()))
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("classes", [50257, 128256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vocabularies(classes, dtype):
    logits, target, _ = case((3, classes))
    logits, grad = logits.to(dtype), torch.ones(3)
    truth, plain32 = (plain(logits.to(d), target, 0.0, None, grad) for d in (torch.float64, torch.float32))
    got = fused(logits, target, 0.0, None, grad, "cpp")
    for name, a, b, c, d in zip(("loss", "norm", "grad"), got, plain32, truth, (torch.float32, torch.float32, dtype), strict=True):
        assert_close(name, a, b, c, torch.float32, d)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 40), classes=st.integers(1, 1200), smoothing=st.sampled_from([0.0, 0.2]), weighted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), seed=st.integers(0, 9), scale=st.sampled_from([0.1, 3.0, 30.0]),
)  # fmt: skip
def test_any_shape(rows, classes, smoothing, weighted, dtype, seed, scale):
    logits, target, weight = case((rows, classes), seed, scale)
    logits, weight, grad = logits.to(dtype), weight if weighted else None, torch.ones(rows)
    got, want = (fused(logits, target, smoothing, weight, grad, backend) for backend in ("cpp", "reference"))
    truth = plain(logits.double(), target, smoothing, weight, grad)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    for name, a, b, c, d in zip(("loss", "norm", "grad"), got, want, truth, (accumulator, accumulator, dtype), strict=True):
        assert a.shape == b.shape
        if rows:
            allowed = 64 * torch.finfo(d).eps * max(1.0, c.abs().max().item())
            assert (a.double() - c).abs().max() <= allowed, name
            assert (b.double() - c).abs().max() <= allowed, f"{name} of the reference"


@pytest.mark.parametrize("shape", [(37, 10), (300, 100), (70, 3001), (3, 50257)])
def test_equal_bits_on_a_rerun_for_any_threads_and_for_a_row_alone(shape):
    logits, target, weight = case(shape)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(fused(logits, target, 0.1, weight, torch.ones(len(target)), "cpp"))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    alone = fused(logits[2:3], target[2:3], 0.1, weight, torch.ones(1), "cpp")
    assert all(torch.equal(a[2:3], b) for a, b in zip(runs[0], alone, strict=True))


def test_equal_bits_on_a_rerun(place):
    backend, device = place
    logits, target, weight = (x.to(device) for x in case((20, 70)))
    a, b = (fused(logits, target, 0.1, weight, torch.ones(20, device=device), backend) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend", ["reference", "cpp"])  # those with fp64
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(backend, options):
    smoothing, weighted = OPTIONS[options]
    logits, target, weight = case((4, 6))
    weight, logits = weight.double() if weighted else None, logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy_sample(z, target, label_smoothing=smoothing, weight=weight, backend=backend).loss, logits
    )


def test_norm_is_a_constant_and_there_is_no_second_derivative(place):
    backend, device = place
    logits, target, _ = (x.to(device) for x in case((4, 6)))
    logits.requires_grad_()
    out = cross_entropy_sample(logits, target, backend=backend)
    assert out.loss.requires_grad and not out.grad_norm.requires_grad
    (grad,) = torch.autograd.grad(out.loss.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(place, dtype):
    backend, device = place
    logits, target, weight = (x.to(device) for x in case((5, 7)))
    logits = logits.to(dtype).requires_grad_()
    ops = torch.ops.sam_kernels
    for smoothing, w in ((0.0, None), (0.1, weight)):
        torch.library.opcheck(ops.cross_entropy_sample.default, (logits, target, smoothing, -100, w, backend))
        log_norm = ops.cross_entropy_sample(logits.detach(), target, smoothing, -100, w, backend)[2]
        grad = torch.ones(5, device=device)
        arguments = (grad, logits.detach(), target, log_norm, smoothing, -100, w, backend)
        torch.library.opcheck(ops.cross_entropy_sample_backward.default, arguments)


def test_targets_out_of_range(place):
    backend, device = place
    logits, target, _ = (x.to(device) for x in case((4, 6)))
    for bad in (6, -1, -101):
        target[2] = bad
        if device == "cpu":
            with pytest.raises(ValueError, match=rf"target holds {bad}; expected class indices in \[0, 6\), or ignore_index=-100"):
                cross_entropy_sample(logits, target, backend=backend)
        else:
            out = cross_entropy_sample(logits, target, backend=backend)
            assert torch.isnan(out.loss).tolist() == torch.isnan(out.grad_norm).tolist() == [False, False, True, False]


Z, Y = torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)
BAD = {
    "not_a_tensor": (lambda: cross_entropy_sample([1.0], Y), TypeError, "logits is list; expected a torch.Tensor"),
    "integer_logits": (lambda: cross_entropy_sample(Z.int(), Y), TypeError, "logits are torch.int32"),
    "probabilities": (lambda: cross_entropy_sample(Z, Z), TypeError, r"target is torch.float32; expected class indices .* \.argmax\(\)"),
    "int32": (lambda: cross_entropy_sample(Z, Y.int()), TypeError, r"target is torch.int32; .*\.long\(\)"),
    "shape": (lambda: cross_entropy_sample(Z, Y[:3]), ValueError, r"target has shape \(3,\) for logits of shape \(4, 6\); expected \(4,\)"),
    "scalar_logits": (lambda: cross_entropy_sample(Z.sum(), Y), ValueError, "expected a class dimension"),
    "smoothing": (lambda: cross_entropy_sample(Z, Y, label_smoothing=1.5), ValueError, r"label_smoothing is 1.5; .*\[0, 1\]"),
    "weight": (lambda: cross_entropy_sample(Z, Y, weight=torch.ones(5)), ValueError, r"weight is \(5,\) .*expected 6 "),
    "no_classes": (lambda: cross_entropy_sample(Z[:, :0], Y), ValueError, "at least one class"),
    "device": (lambda: cross_entropy_sample(Z, Y.to("meta")), ValueError, "target is on meta but logits are on cpu"),
    "backend": (lambda: cross_entropy_sample(Z, Y, backend="fpga"), ValueError, "backend is 'fpga'"),
    "direct_layout": (
        lambda: torch.ops.sam_kernels.cross_entropy_sample(Z.t(), Y[:1].expand(6), 0.0, -100, None, ""), RuntimeError, "adjacent",
    ),
    "direct_statistics": (
        lambda: torch.ops.sam_kernels.cross_entropy_sample_backward(Z[:, 0].contiguous(), Z, Y, Z[:, 0], 0.0, -100, None, ""),
        RuntimeError, "log_norm must be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
