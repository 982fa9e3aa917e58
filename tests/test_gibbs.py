"""gibbs_weights on every backend against fp64 softmax."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_kernels.ops import gibbs_weights

TESTED = ("gibbs_weights",)
INF, NAN = float("inf"), float("nan")
SIZES = (1, 2, 7, 128, 2049, 40000)


def truth(norms, lam, relative):
    """(weights, effective size, log of the sum, flag) in fp64, of the finite norms; all count as 0 where none is finite."""
    s, finite = norms.double(), torch.isfinite(norms)
    flag = 0 if finite.all() else 1 if finite.any() else 2
    used = s[finite] if flag < 2 else torch.zeros_like(s)
    if relative and flag < 2:
        used = used / used.mean() if used.mean() > 0 else torch.zeros_like(used)
    p = torch.zeros_like(s)
    p[finite if flag < 2 else slice(None)] = torch.softmax(lam * used, 0)
    return p, 1 / p.square().sum(), torch.logsumexp(lam * used, 0), flag


def check(out, norms, lam, relative):
    p, ess, log_partition, flag = truth(norms, lam, relative)
    exponent = lam * norms.double()[torch.isfinite(norms)].abs().max().item() if torch.isfinite(norms).any() else 0.0
    if relative and flag < 2:
        exponent = lam * len(norms)
    eps = torch.finfo(out.weights.dtype).eps
    tolerance = (8 + 4 * min(exponent, 90.0)) * eps  # an exponent x is rounded by x eps / 2
    assert out.flag.item() == flag and out.flag.dtype == torch.int32
    torch.testing.assert_close(out.weights.double(), p, rtol=tolerance, atol=1e-37, check_device=False)
    torch.testing.assert_close(out.effective_size.double(), ess, rtol=2 * tolerance, atol=0, check_device=False)
    torch.testing.assert_close(out.log_partition.double(), log_partition, rtol=8 * eps, atol=8 * eps, check_device=False)


def norms_of(size, kind="plain"):
    s = torch.rand(size, generator=torch.Generator().manual_seed(size)) * 3
    if kind == "dropped":
        s[::3] = torch.tensor([INF, NAN, -INF]).repeat(size // 3 + 1)[: len(s[::3])]
    return {"bad": torch.full_like(s, NAN), "zero": torch.zeros_like(s)}.get(kind, s)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("kind", ["plain", "dropped", "bad", "zero"])
@pytest.mark.parametrize("size", SIZES)
def test_values(place, size, kind, relative):
    backend, device = place
    halves = [torch.bfloat16, torch.float16] if size == 128 else []
    for dtype in (torch.float32, *halves, *([torch.float64] if backend in ("reference", "cpp") else [])):
        norms = norms_of(size, kind).to(dtype)
        for lam in (0.0, 0.7, 20.0):
            out = gibbs_weights(norms.to(device), lam, relative, backend=backend)
            assert out.weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            check(type(out)(*(x.cpu() for x in out)), norms, lam, relative)


@pytest.mark.parametrize("relative", [False, True])
def test_lam_on_the_device(place, relative):
    backend, device = place
    norms = norms_of(128).to(device).requires_grad_()
    number = gibbs_weights(norms, 0.5, relative, backend=backend)
    for lam in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64)):
        tensor = gibbs_weights(norms, lam.to(device), relative, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(number, tensor, strict=True))
    assert not any(x.requires_grad for x in number)
    for bad in (-1.0, INF, NAN):
        out = gibbs_weights(norms, torch.tensor(bad, device=device), relative, backend=backend)
        assert torch.isnan(out.weights).all() and torch.isnan(out.effective_size)


def test_extremes(place):
    backend, device = place
    big = torch.tensor([1e38, 3e38, 2e38, INF], device=device)
    out = gibbs_weights(big, 1e5, backend=backend)
    assert out.weights.tolist() == [0, 1, 0, 0] and out.effective_size == 1 and out.flag == 1
    out = gibbs_weights(big, 1.0, True, backend=backend)
    check(type(out)(*(x.cpu() for x in out)), big.cpu(), 1.0, True)
    tiny = torch.tensor([1e-30, 3e-30], device=device)
    out = gibbs_weights(tiny, 2.0, True, backend=backend)
    assert out.weights[1].item() == pytest.approx(1 / (1 + math.exp(-2.0)), rel=1e-6)
    empty = gibbs_weights(big[:0], 1.0, True, backend=backend)
    assert empty.weights.shape == (0,) and [x.item() for x in empty[1:]] == [0, 0, 0]
    strided = torch.arange(10.0, device=device)[::3]
    assert torch.equal(gibbs_weights(strided, 1.0, backend=backend).weights, gibbs_weights(strided.clone(), 1.0, backend=backend).weights)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.floats(0, 100, width=32), st.sampled_from([INF, NAN])), min_size=1, max_size=80),
    lam=st.sampled_from([0.0, 0.01, 1.0]), relative=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_any_norms(values, lam, relative, dtype):
    norms = torch.tensor(values, dtype=dtype)
    if relative and 0 < norms[torch.isfinite(norms)].double().mean() < 1e-30:
        return  # a mean that fp32 does not hold
    for backend in ("reference", "cpp"):
        check(gibbs_weights(norms, lam, relative, backend=backend), norms, lam, relative)


def test_equal_bits_on_a_rerun_and_for_any_threads():
    norms, before, runs = norms_of(1_000_000), torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(gibbs_weights(norms, 1.5, True, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    check(runs[0], norms, 1.5, True)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_rerun_and_opcheck(place):
    backend, device = place
    norms = norms_of(300, "dropped").to(device)
    a, b = (gibbs_weights(norms, 0.5, True, backend=backend) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for lam in (None, torch.tensor([0.5], device=device)):
        torch.library.opcheck(torch.ops.sam_kernels.gibbs_weights.default, (norms[:9].clone(), 0.5, lam, True, backend))


S = torch.ones(4)
BAD = {
    "not_a_tensor": (lambda: gibbs_weights([1.0], 1.0), TypeError, "norms is list; expected a torch.Tensor"),
    "integer": (lambda: gibbs_weights(S.int(), 1.0), TypeError, "norms are torch.int32"),
    "matrix": (lambda: gibbs_weights(S[None], 1.0), ValueError, r"norms have shape \(1, 4\); .*flatten"),
    "negative": (lambda: gibbs_weights(S, -1.0), ValueError, "lam is -1.0; expected a finite number >= 0"),
    "nan": (lambda: gibbs_weights(S, NAN), ValueError, "lam is nan"),
    "infinite": (lambda: gibbs_weights(S, INF), ValueError, "lam is inf"),
    "two_lams": (lambda: gibbs_weights(S, S), ValueError, r"lam is \(4,\) .*expected one floating-point number on cpu"),
    "device": (lambda: gibbs_weights(S, torch.ones(1, device="meta")), ValueError, "on meta; expected"),
    "backend": (lambda: gibbs_weights(S, 1.0, backend="fpga"), ValueError, "backend is 'fpga'"),
    "direct": (lambda: torch.ops.sam_kernels.gibbs_weights(S[None], 1.0, None, False, ""), RuntimeError, "norms must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
