"""draw on every backend: bits against the reference, integers against an oracle in plain Python, and statistics at fixed seeds.

Statistical bounds are five standard errors. What takes hundreds of draws is left out in Triton's interpreter, where a draw takes some
hundred milliseconds; it draws the bits of the reference.
"""

import itertools
import math
import random
from bisect import bisect_right
from fractions import Fraction

import pytest
import torch
from conftest import _params, require_ops

from sam_kernels.ops import draw
from sam_kernels.ops.draw_checks import SCHEMES
from sam_kernels.ops.draw_reference import arrived, exponential, grid, integers

TESTED = ("draw",)
INF, NAN = float("inf"), float("nan")
KINDS = ("plain", "zeros", "bad", "all_bad", "all_zero", "huge", "subnormal", "equal", "spread")
SIZES = (1, 2, 7, 128, 1025, 40000)
HALVES = (torch.float32, torch.bfloat16, torch.float16)
COUNTED = SCHEMES[:2]  # schemes that draw exactly k
MASK = 0xFFFFFFFF
TRITON = pytest.mark.parametrize("place", [p for p in _params() if p.values[0][0] == "triton"], indirect=True)
FAST = pytest.mark.parametrize("place", [p for p in _params() if p.values[0] != ("triton", "cpu")], indirect=True)


def slow(place):
    return place == ("triton", "cpu")


def weights_of(size, kind="plain", dtype=torch.float32):
    source = torch.Generator().manual_seed(size)
    w = torch.rand(size, generator=source, dtype=torch.float64) + 0.01
    where = torch.randint(3, (size,), generator=source) > 0
    info = torch.finfo(dtype)
    if kind == "bad":
        w[where] = torch.tensor([INF, NAN, -1.0, -INF, 0.0, -NAN], dtype=torch.float64).repeat(size)[: int(where.sum())]
    elif kind == "all_bad":
        w = torch.tensor([NAN, -1.0, 0.0, INF, -0.0], dtype=torch.float64).repeat(size)[:size]
    elif kind == "zeros":
        w[where] = torch.tensor([0.0, -0.0], dtype=torch.float64).repeat(size)[: int(where.sum())]
    elif kind == "all_zero":
        w = torch.zeros_like(w)
    elif kind == "huge":
        w[size // 2] = info.max
    elif kind == "subnormal":
        w = (w * 40).floor() * info.smallest_normal * info.eps
    elif kind == "equal":
        w = torch.full_like(w, 0.3)
    elif kind == "spread":
        w = torch.exp(60 * w - 50)
    return w.to(dtype)


def ks(size):
    return sorted({0, 1, size // 4, size, 3 * size})


def state_of(seed, offset=0, device="cpu"):
    return torch.tensor([seed, offset], device=device)


def drawn(place, w, k, scheme, seed, offset=0, **options):
    """The draw on a backend, brought to the CPU."""
    backend, device = place
    out = draw(w.to(device), k, scheme, state_of(seed, offset, device), backend=backend, **options)
    return type(out)(*(x if x is None else x.cpu() for x in out))


def dtypes_of(place):
    return (*HALVES, torch.float64) if place[0] in ("reference", "cpp") else HALVES


# The oracle: Python integers, no torch.


def philox(key, counter):
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & MASK, a >> 32 ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def number(seed, offset, j):
    words = philox((seed & MASK, seed >> 32 & MASK), (j // 2, 0, MASK, offset & MASK))
    return words[2 * (j % 2) + 1] << 32 | words[2 * (j % 2)]


def oracle_integers(values, lowest):
    """floor(w 2^s), the largest with 63 - L bits; ``lowest``: the exponent of the smallest normal number, below which all is 0."""
    usable = [math.isfinite(w) and w >= 2.0**lowest for w in values]
    values = (
        [Fraction(w) if ok else Fraction(0) for w, ok in zip(values, usable, strict=True)] if any(usable) else [Fraction(1)] * len(values)
    )
    largest, length = max(values), 0
    while 2**length < len(values):
        length += 1
    exponent = math.frexp(float(largest))[1] - 1
    scale = Fraction(2) ** (62 - length - exponent)
    return [math.floor(w * scale) for w in values]


def oracle(values, k, scheme, seed, offset, lowest):
    """(counts, inclusion weights as floats)"""
    q = oracle_integers(values, lowest)
    n, total, cdf = len(q), sum(q), list(itertools.accumulate(q))
    counts, expected = [0] * n, [Fraction(k * x, total) for x in q]
    if k and scheme in COUNTED:
        start = number(seed, offset, 0) * total >> 64
        points = [(m * total + start) // k for m in range(k)]
        if scheme == "multinomial":
            points = [number(seed, offset, j) * total >> 64 for j in range(k)]
        for point in points:
            counts[bisect_right(cdf, point)] += 1
    elif k and scheme == "bernoulli":
        counts = [int(number(seed, offset, i) * total >> 64 < k * x) for i, x in enumerate(q)]
        expected = [min(Fraction(1), p) for p in expected]
    elif k:
        uniform = [(2 * (number(seed, offset, i) >> 12) + 1) / 2**53 for i in range(n)]
        arrival = sorted((-math.log(u) / x if x else INF, i) for i, (u, x) in enumerate(zip(uniform, q, strict=True)))
        for time, i in arrival[:k]:
            counts[i] = int(time < INF)
        last = arrival[k][0] if k < n else INF
        expected = [-math.expm1(-x * last) if x else 1.0 for x in q]
    return counts, [float(c / p) if c else 0.0 for c, p in zip(counts, expected, strict=True)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_equal_bits(place, size, scheme):
    """The reference on CPU is the specification; what any draw must satisfy is checked beside it, on the reference too."""
    size = min(size, 4500) if slow(place) else size
    cases = list(itertools.product(KINDS, dtypes_of(place), ks(size)))
    step = 31 if slow(place) else 3 if size > 100 else 1
    for seed, (kind, dtype, k) in enumerate(cases[::step]):
        w = weights_of(size, kind, dtype)
        out = drawn(place, w, k, scheme, seed - 5 << 29, (1 << 32) + seed)
        want = drawn(("reference", "cpu"), w, k, scheme, seed - 5 << 29, seed)
        assert all(torch.equal(a, b) for a, b in zip(out[:3], want[:3], strict=True)), (kind, dtype, k)
        w = w.to(torch.promote_types(dtype, torch.float32))
        normal = w.abs() >= torch.finfo(w.dtype).smallest_normal
        usable = torch.isfinite(w) & (w > 0) & normal
        assert out.counts.dtype == out.flag.dtype == torch.int32
        assert out.inclusion.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert out.flag == (2 if not usable.any() else int((~usable & (normal | w.isnan())).any())), "-0 is a zero as any other"
        assert not usable.any() or not out.counts[~usable].any(), "a weight of zero was drawn"
        assert torch.equal(out.inclusion > 0, out.counts > 0) and torch.isfinite(out.inclusion).all()
        available = int((integers(w)[0] > 0).sum())
        most = {"top_k": min(k, available), "bernoulli": size}.get(scheme, k)
        assert out.counts.sum() == most or (scheme == "bernoulli" and out.counts.sum() <= most)
        assert out.counts.min() >= 0 and (scheme in COUNTED or out.counts.max() <= 1)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle(place, kind):
    types = {1: torch.float32, 6: torch.bfloat16, 33: torch.float16, 17: torch.float32, 19: torch.float64}
    types = dict([list(types.items())[KINDS.index(kind) % 4]]) if slow(place) else types
    for size, dtype in ((size, dtype) for size, dtype in types.items() if dtype in dtypes_of(place)):
        w = weights_of(size, kind, dtype)
        lowest = -1022 if dtype == torch.float64 else -126
        assert integers(w)[0].tolist() == oracle_integers(w.tolist(), lowest)
        for scheme, k in itertools.product(SCHEMES, ks(size)[2:3] if slow(place) else ks(size)[1:]):
            seed = (size * 0x9E3779B97F4A7C15 + k) % 2**63
            out = drawn(place, w, k, scheme, seed, -3 - k)
            counts, inclusion = oracle(w.tolist(), k, scheme, seed, -3 - k, lowest)
            assert out.counts.tolist() == counts
            tolerance = 1e-14 if dtype == torch.float64 else torch.finfo(torch.float32).eps
            assert out.inclusion.tolist() == pytest.approx(inclusion, rel=tolerance, abs=0)


def test_exponential_and_its_distribution_function():
    """Against math.log and math.expm1, at both ends and where the reduction of the argument changes its case."""
    fixed = [0, 1, 4095, 4096, 2**63, 2**64 - 1, 2**63 - 1, int(1.625 * 2**63), int(1.625 * 2**63) - 4096, int(1.625 * 2**40)]
    numbers = fixed + [number(7, 0, j) >> j % 64 for j in range(3000)]
    high, low = torch.tensor([x >> 32 for x in numbers]), torch.tensor([x & MASK for x in numbers])
    want = [-math.log((2 * (x >> 12) + 1) / 2**53) for x in numbers]
    assert exponential((high, low)).tolist() == pytest.approx(want, rel=3e-15, abs=0)
    x = torch.cat([torch.logspace(-300, 2.84, 3000, dtype=torch.float64), torch.tensor([0.0, 699.9, 700.0, 1e308, INF])])
    assert arrived(x).tolist() == pytest.approx([-math.expm1(-v) for v in x.tolist()], rel=1e-15, abs=0)
    assert arrived(torch.tensor([NAN], dtype=torch.float64)).item() == 1


def test_subnormal_weights_are_zero(place):
    """Of fp32, fp64 and bf16; those of fp16 are ordinary numbers where they are computed."""
    for dtype in dtypes_of(place):
        info = torch.finfo(dtype)
        w = torch.full((200,), -info.smallest_normal * info.eps, dtype=dtype).abs()
        w[10], w[20] = info.smallest_normal, -info.smallest_normal * info.eps
        for scheme in SCHEMES:
            out = drawn(place, w, 500, scheme, 5)
            assert out.flag == (1 if dtype == torch.float16 else 0)  # -0 is no negative number
            assert dtype == torch.float16 or out.counts.nonzero().flatten().tolist() == [10]
            assert drawn(place, w[:10], 5, scheme, 5).flag == (0 if dtype == torch.float16 else 2)


def test_denormals_may_be_flushed():
    w = torch.tensor([1e-40, 1.2e-38, 1.1e-38, 0.0, 1.3e-38])
    for dtype, backend in itertools.product((torch.float32, torch.float64), ("reference", "cpp")):
        require_ops(backend, "cpu", TESTED)
        x = w.to(dtype) * (1.0 if dtype == torch.float32 else 1e-270)
        found = [draw(x, 1000, "systematic", state_of(3), backend=backend)]
        try:
            assert torch.set_flush_denormal(True)
            found.append(draw(x, 1000, "systematic", state_of(3), backend=backend))
        finally:
            torch.set_flush_denormal(False)
        assert all(torch.equal(a, b) for a, b in zip(found[0][:3], found[1][:3], strict=True)), backend


def test_a_draw_that_fails_takes_nothing_from_the_generator():
    generator = torch.Generator().manual_seed(1)
    before, global_before = generator.get_state(), torch.get_rng_state()
    for wrong in ({"backend": "fpga"}, {"backend": "cuda"}, {"backend": "triton", "weights": torch.ones(4, dtype=torch.float64)}):
        arguments = {"weights": torch.ones(4), "k": 1, **wrong}
        for source in (generator, None):
            with pytest.raises((ValueError, RuntimeError), match="backend"):
                draw(generator=source, **arguments)
    with pytest.raises(TypeError, match=r"torch\.sparse_coo; expected a dense tensor"):
        draw(torch.ones(4).to_sparse(), 1)
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), global_before)


@FAST
def test_systematic_counts_are_within_one_and_unbiased(place):
    w, repeats = weights_of(23, "zeros"), 600
    q = oracle_integers(w.tolist(), -126)
    total = sum(q)
    for k in (3, 23, 70):
        mean = torch.zeros(23, dtype=torch.float64)
        for seed in range(repeats if k == 23 else 20):
            counts = drawn(place, w, k, "systematic", seed).counts
            assert all(abs(c * total - k * x) < total for c, x in zip(counts.tolist(), q, strict=True))
            mean += counts
        if k == 23:
            share = torch.tensor([float(Fraction(k * x, total)) for x in q], dtype=torch.float64)
            part = share - share.floor()
            assert ((mean / repeats - share).abs() <= 5 * (part * (1 - part) / repeats).sqrt() + 1e-12).all()


def test_multinomial_fits_its_probabilities(place):
    w, k = weights_of(40, "bad"), 20000
    p = torch.where(torch.isfinite(w) & (w > 0), w.double(), 0)
    p, possible = p / p.sum(), p > 0
    free = int(possible.sum()) - 1
    for seed in (1, 2, 3):
        counts = drawn(place, w, k, "multinomial", seed).counts.double()
        chi_square = ((counts - k * p)[possible].square() / (k * p)[possible]).sum()
        assert abs(chi_square - free) <= 5 * (2 * free) ** 0.5


@FAST
def test_successive_sampling(place):
    """Which is first and which are among the first two, in a race of five, against the enumeration of all orders."""
    w, repeats = torch.tensor([1.0, 5.0, 0.0, 2.0, 0.5]), 600
    p = (w / w.sum()).double()
    both = torch.zeros(5, dtype=torch.float64)
    for i, j in itertools.permutations(range(5), 2):
        both[[i, j]] += p[i] * p[j] / (1 - p[i])
    for k, want in ((1, p), (2, both)):
        found = sum(drawn(place, w, k, "top_k", seed).counts.double() for seed in range(repeats)) / repeats
        assert ((found - want).abs() <= 5 * (want * (1 - want) / repeats).sqrt() + 1e-12).all()


@FAST
def test_bernoulli_frequencies(place):
    w, k, repeats = weights_of(31, "spread"), 9, 800
    want = (k * w.double() / w.double().sum()).clamp(max=1)
    assert (want == 1).any(), "one of them is certain"
    found = sum(drawn(place, w, k, "bernoulli", seed).counts.double() for seed in range(repeats)) / repeats
    assert ((found - want).abs() <= 5 * (want * (1 - want) / repeats).sqrt() + 1e-9).all()
    assert torch.equal(found == 1, want == 1)


@FAST
@pytest.mark.parametrize("scheme", SCHEMES)
def test_sums_over_the_drawn_are_unbiased(place, scheme):
    w, repeats = weights_of(20, "bad"), 600
    x = torch.randn(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 2
    counted = torch.isfinite(w) & (w > 0)
    sums = torch.stack([(drawn(place, w, 4, scheme, seed).inclusion.double() * x).sum() for seed in range(repeats)])
    assert (sums.mean() - x[counted].sum()).abs() <= 5 * sums.std() / repeats**0.5
    assert sums.std() > 0.1


def test_indices(place):
    w = weights_of(50, "zeros")
    for k in (0, 1, 12, 50, 150):
        for scheme in SCHEMES[:3]:
            out = drawn(place, w, k, scheme, 4, indices=True)
            want = [i for i, c in enumerate(out.counts.tolist()) for _ in range(c)]
            assert out.indices.dtype == torch.int64
            assert out.indices.tolist() == want + [50] * ((min(k, 50) if scheme == "top_k" else k) - len(want))
    assert drawn(place, w, 50, "top_k", 4, indices=True).indices[-1] == 50, "there are zeros, so some are missing"


def test_the_smallest_sizes(place):
    backend, device = place
    for scheme in SCHEMES:
        empty = drawn(place, torch.ones(0), 0, scheme, 1, indices=scheme != "bernoulli")
        assert [x.shape for x in empty[:3]] == [(0,), (0,), ()] and empty.flag == 0
        for value in (0.5, NAN):
            for k in (0, 1, 5):
                out = drawn(place, torch.tensor([value]), k, scheme, 1)
                count = k if scheme in COUNTED else min(k, 1)
                assert out.counts.tolist() == [count] and out.inclusion.tolist() == [float(count > 0)]
    strided = weights_of(40).to(device)[::3].requires_grad_()
    a, b = (draw(x, 5, generator=state_of(1, 0, device), backend=backend) for x in (strided, strided.detach().clone()))
    assert torch.equal(a.counts, b.counts) and not a.inclusion.requires_grad


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_million(place, scheme):
    n = 6000 if slow(place) else 1_000_000
    w, k = weights_of(n, "zeros"), n // 4
    out, want = (drawn(where, w, k, scheme, 11) for where in (place, ("reference", "cpu")))
    assert all(torch.equal(a, b) for a, b in zip(out[:3], want[:3], strict=True))
    q, _ = integers(w)
    share = (k * q.double() / q.sum()).clamp(max=1 if scheme == "bernoulli" else INF)
    if scheme == "bernoulli":
        assert abs(out.counts.sum() - share.sum()) <= 5 * (share * (1 - share)).sum() ** 0.5
    else:
        assert out.counts.sum() == k
    if scheme == "systematic":
        assert ((out.counts - share).abs() < 1 + 1e-9).all()
    if scheme == "multinomial":
        cells = torch.stack([x.reshape(-1, n // 20).sum(1) for x in (out.counts.double(), share)])
        assert ((cells[0] - cells[1]).square() / cells[1]).sum() <= 20 + 5 * 40**0.5


def test_parts_of_several_tiles(place, monkeypatch):
    """Lists of millions, in which a program of Triton has more than one tile; here by allowing it few programs."""
    if place[0] == "triton":
        monkeypatch.setattr("sam_kernels.backends.triton.draw_parts.PARTS", 2)
    w, k = weights_of(6000, "zeros"), 1500
    for scheme in SCHEMES:
        out, want = (drawn(where, w, k, scheme, 12) for where in (place, ("reference", "cpu")))
        assert all(torch.equal(a, b) for a, b in zip(out[:3], want[:3], strict=True)), scheme


@TRITON
@pytest.mark.parametrize("k", [0, 1, 700, 1000, 1499, 1500, 2000])
def test_ties_of_a_race_in_triton(place, k):
    from draw_probe import race_kernel

    n, device = 1500, place[1]
    w, source = torch.ones(n, device=device), torch.Generator().manual_seed(k)
    keys = torch.tensor([0.5, 2.0, 5e-324, INF], dtype=torch.float64)[torch.randint(4, (n,), generator=source)].to(device)
    counts, inclusion, found = torch.zeros(n, dtype=torch.int32, device=device), w.clone(), keys[:1].clone()
    race_kernel[(2,)](keys, w, counts, inclusion, found, n, k, 1024, TILE=1024)
    order = torch.argsort(keys, stable=True)
    assert found == (keys[order[k]] if k < n else INF)
    want = torch.zeros(n, device=device).index_fill_(0, order[:k], 1) * torch.isfinite(keys)
    assert torch.equal(counts, want.int())


def spans():
    """(total, start, k): small ones, where points meet the boundaries between weights, and large ones."""
    source = random.Random(5)
    for most in (3, 40, 1 << 20, (1 << 63) - 1):
        for k in (1, 2, 7, 30, 1000, (1 << 31) - 1):
            total = source.randint(1, most)
            yield from ((total, start, k) for start in {0, total - 1, source.randrange(total)})


def test_points_meet_boundaries_in_the_reference(monkeypatch):
    for total, start, k in spans():
        if k <= 1000:
            assert grid(k, torch.tensor(total), torch.tensor(start)).tolist() == [(m * total + start) // k for m in range(k)]
    monkeypatch.setattr("sam_kernels.ops.draw_reference.mulhi", lambda number, total: torch.zeros_like(number[0]))
    w = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    assert drawn(("reference", "cpu"), w, 4, "systematic", 1).counts.tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert drawn(("reference", "cpu"), w, 4, "multinomial", 1).counts.tolist() == [0, 4, 0, 0, 0, 0, 0]


@TRITON
def test_points_meet_boundaries_in_triton(place):
    from draw_probe import points_kernel

    from sam_kernels.backends.triton.draw_parts import throw_kernel

    device, source = place[1], random.Random(6)
    for total, start, k in spans():
        points = [(m * total + start) // k for m in (source.randrange(k) for _ in range(10))]
        upto = [0, 1, total - 1, total, *points, *(p + 1 for p in points), *(source.randint(0, total) for _ in range(8))]
        below = torch.zeros(32, dtype=torch.int64, device=device)
        given = (torch.tensor(x, device=device) for x in (upto, total, start))
        points_kernel[(1,)](*given, below, len(upto), k, TILE=32)
        assert below.tolist() == [min(k, max(0, -(-(k * c - start) // total))) for c in upto]
    sums, cdf = torch.tensor([3], device=device), torch.tensor([0, 1, 1, 3, 3], device=device)
    counts = torch.zeros(5, dtype=torch.int32, device=device)
    throw_kernel[(1,)](state_of(1, 0, device), sums, cdf, counts, 5, 999, 3, 1, TILE=1024, PARTS=16)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0] and counts.sum() == 999 and abs(counts[1] - 333) < 75


def test_ties_of_a_race_in_the_reference(monkeypatch):
    monkeypatch.setattr("sam_kernels.ops.draw_reference.exponential", lambda number: torch.ones(len(number[0]), dtype=torch.float64))
    out = drawn(("reference", "cpu"), torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), 3, "top_k", 1)
    assert out.counts.tolist() == [1, 0, 1, 1, 0]


def test_generators(place):
    backend, device = place
    w = weights_of(2000).to(device)

    def run(generator=None, scheme="multinomial"):
        return draw(w, 600, scheme, generator, backend=backend).counts.tolist()

    sources = [torch.Generator(device).manual_seed(s) for s in (5, 5, 6)]
    first, second = [run(g) for g in sources], [run(g) for g in sources]
    assert first[0] == first[1] != first[2] and second[0] == second[1] != first[0]
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append((run(), run()))
    assert runs[0] == runs[1] != runs[2] and runs[0][0] != runs[0][1]
    for scheme in SCHEMES[slow(place) * 3 :]:
        state = state_of(9, 40, device)
        first, second = run(state, scheme), run(state, scheme)
        assert state.tolist() == [9, 42] and first != second
        assert first == run(state_of(9, 40, device), scheme) and second == run(state_of(9, 41, device), scheme)
        others = [(10, 40), (9 + (1 << 32), 40), (9 - (1 << 63), 40), (41, 8), (40, 9)]
        assert len({tuple(run(state_of(*other, device), scheme)) for other in others} | {tuple(first)}) == 6
        assert run(state_of(9, 40 + (1 << 32), device), scheme) == first, "32 bits of the offset are read"


def test_successive_draws_are_independent(place):
    backend, device = place
    n = 4000
    state = state_of(1, 0, device)
    rows = [draw(torch.ones(n, device=device), n // 2, "bernoulli", state, backend=backend).counts.cpu().double() for _ in range(4)]
    rows.append(drawn(place, torch.ones(n), n // 2, "bernoulli", 2).counts.double())
    rows.append(rows[0].roll(1))
    for a, b in itertools.combinations(rows, 2):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) <= 5 / n**0.5


def test_rerun_and_opcheck(place):
    backend, device = place
    w, state = weights_of(33, "bad").to(device), state_of(3, 4, device)
    for scheme in SCHEMES:
        a, b = (torch.ops.sam_kernels.draw(w, 12, scheme, state, backend) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and state.tolist() == [3, 4]
        torch.library.opcheck(torch.ops.sam_kernels.draw.default, (w, 12, scheme, state, backend))


def test_equal_bits_for_any_threads():
    require_ops("cpp", "cpu", TESTED)
    w, before = weights_of(300_000, "zeros"), torch.get_num_threads()
    for scheme in SCHEMES:
        runs = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                runs.append(drawn(("cpp", "cpu"), w, 90_000, scheme, 3))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0][:3], run[:3], strict=True))


def test_compiled_in_one_piece(place):
    backend, device = place
    torch._dynamo.reset()

    def chosen(w, state):
        out = draw(w * 2, 5, "top_k", state, indices=True, backend=backend)
        return out.indices + 1, out.inclusion.sum()

    compiled = torch.compile(chosen, backend="eager", fullgraph=True)
    w, states = weights_of(30).to(device), [state_of(8, 0, device) for _ in range(2)]
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(chosen(w, states[0]), compiled(w, states[1]), strict=True))
    assert states[0].tolist() == states[1].tolist() == [8, 2]


S, STATE = torch.ones(4), torch.tensor([1, 2])
DIRECT = torch.ops.sam_kernels.draw
META = torch.ones(4, device="meta")
BAD = {
    "not_a_tensor": (lambda: draw([1.0], 1), TypeError, "weights is list; expected a torch.Tensor"),
    "integer": (lambda: draw(S.int(), 1), TypeError, "weights are torch.int32; expected a floating-point"),
    "matrix": (lambda: draw(S[None], 1), ValueError, r"weights have shape \(1, 4\); expected one weight per sample"),
    "scalar": (lambda: draw(S[0], 1), ValueError, r"weights have shape \(\)"),
    "k_bool": (lambda: draw(S, True, generator=STATE), TypeError, "k is True; expected an int"),
    "k_float": (lambda: draw(S, 1.5, generator=STATE), TypeError, "k is 1.5; expected an int"),
    "k_negative": (lambda: draw(S, -1, generator=STATE), ValueError, "k is -1 for 4 weights; expected 0 <= k"),
    "k_large": (lambda: draw(S, 1 << 31, generator=STATE), ValueError, "k is 2147483648 for 4 weights"),
    "nothing_to_draw_from": (lambda: draw(S[:0], 1, generator=STATE), ValueError, "k is 1 for 0 weights; .* nothing to draw from"),
    "scheme": (lambda: draw(S, 1, "stratified", STATE), ValueError, "scheme is 'stratified'; expected one of"),
    "indices": (lambda: draw(S, 1, "bernoulli", STATE, indices=True), ValueError, "indices with scheme 'bernoulli'.*counts.nonzero"),
    "generator": (lambda: draw(S, 1, generator=7), TypeError, r"generator is int; expected a torch.Generator, an int64 tensor"),
    "generator_device": (lambda: draw(META, 1, generator=torch.Generator()), ValueError, "generator is on cpu but weights are on meta"),
    "state_device": (lambda: draw(META, 1, generator=STATE), ValueError, r"generator is a tensor \(2,\) .*on cpu; expected .* on meta"),
    "state_shape": (lambda: draw(S, 1, generator=STATE[:1]), ValueError, r"generator is a tensor \(1,\) of torch.int64"),
    "state_dtype": (lambda: draw(S, 1, generator=STATE.int()), ValueError, r"generator is a tensor \(2,\) of torch.int32"),
    "state_strided": (lambda: draw(S, 1, generator=STATE.repeat(2)[::2]), ValueError, r"generator is a tensor .*contiguous int64 \[2\]"),
    "backend": (lambda: draw(S, 1, generator=STATE, backend="fpga"), ValueError, "backend is 'fpga'"),
    "no_kernel": (lambda: draw(S, 1, generator=STATE, backend="cuda"), RuntimeError, "backend 'cuda' cannot run draw"),
    "direct_matrix": (lambda: DIRECT(S[None], 1, "top_k", STATE, ""), RuntimeError, "weights must be"),
    "direct_strided": (lambda: DIRECT(S[::2], 1, "top_k", STATE, ""), RuntimeError, "weights must be .*contiguous"),
    "direct_integer": (lambda: DIRECT(S.int(), 1, "top_k", STATE, ""), RuntimeError, "weights must be .*floating"),
    "direct_scheme": (lambda: DIRECT(S, 1, "topk", STATE, ""), RuntimeError, "scheme must be one of"),
    "direct_k": (lambda: DIRECT(S, -1, "top_k", STATE, ""), RuntimeError, "k and n in"),
    "direct_k_large": (lambda: DIRECT(S, 1 << 31, "top_k", STATE, ""), RuntimeError, "k and n in"),
    "direct_empty": (lambda: DIRECT(S[:0], 1, "top_k", STATE, ""), RuntimeError, "nothing to draw from"),
    "direct_state": (lambda: DIRECT(S, 1, "top_k", STATE[:1], ""), RuntimeError, r"state must be \(seed, offset\)"),
    "direct_state_dtype": (lambda: DIRECT(S, 1, "top_k", STATE.int(), ""), RuntimeError, "state must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
    assert STATE.tolist() == [1, 2] and S.tolist() == [1, 1, 1, 1], "something was written before the error"
