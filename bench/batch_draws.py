"""Draws of samples against torch.multinomial, and Gibbs weights against torch's softmax: matched first, in interleaved rounds.

torch.multinomial returns positions, ours how often each sample was drawn and what makes sums over them unbiased. Without replacement it is
compared with ``top_k``, which draws as it does, with replacement with the other schemes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sam_kernels.profiling.match import assert_elementwise
from sam_kernels.profiling.timing import ratios, spread, timed, timed_rounds

SIZES = ((256, 128), (1_000_000, 250_000))
WEIGHTS = (128, 1_000_000)
SCHEMES = ("systematic", "multinomial", "bernoulli", "top_k")
WITH, WITHOUT = "torch.multinomial", "torch.multinomial, without replacement"
OURS, SOFTMAX = "gibbs_weights", "torch.softmax"
LAM = 1.0
SIGMAS = 6.0  # by which a number of draws may miss its expectation
IN_A_ROW = 100_000  # elements that one timing works on at least, call after call


def peer_of(scheme: str) -> str:
    return WITHOUT if scheme == "top_k" else WITH


def values(n: int) -> Tensor:
    """Norms, as skewed as those of gradients are."""
    return torch.randn(n, generator=torch.Generator().manual_seed(0)).exp()


def assert_draw(scheme: str, weights: Tensor, k: int, backend: str) -> None:
    """The bits of the specification, the right number of draws, and the right share of them among the heavier half."""
    from sam_kernels import ops

    found, truth = (ops.draw(weights, k, scheme, torch.tensor([5, 7]), backend=name) for name in (backend, "reference"))
    counts, wide = found.counts.double(), weights.double()
    same = all(torch.equal(a, b) for a, b in zip(found[:3], truth[:3], strict=True))
    assert same, f"{scheme}, {len(weights)} weights: other bits than those of the reference"
    assert scheme == "bernoulli" or counts.sum() == k, f"{scheme}: drew {counts.sum():.0f} times, asked for {k}"
    assert scheme not in ("bernoulli", "top_k") or counts.max() <= 1, f"{scheme}: drew a sample {counts.max():.0f} times"
    if scheme == "top_k":
        return  # its expectation has no formula
    expected = k * wide / wide.sum()
    if scheme == "systematic":
        assert (counts - expected).abs().max() <= 1 + 1e-6, "systematic: a count is more than 1 away from its expectation"
    if scheme == "bernoulli":
        expected = expected.clamp(max=1)
    heavy = wide > wide.median()
    miss = (counts[heavy].sum() - expected[heavy].sum()).abs()
    assert miss <= SIGMAS * expected[heavy].sum().sqrt(), f"{scheme}: {miss:.0f} draws off among the heavier half"


def measure(n: int, k: int, backend: str) -> dict[str, Any]:
    from sam_kernels import ops

    weights = values(n)
    for scheme in SCHEMES:
        assert_draw(scheme, weights, k, backend)
    calls: dict[str, Callable[[], Any]] = {
        WITH: partial(torch.multinomial, weights, k, replacement=True),
        WITHOUT: partial(torch.multinomial, weights, k, replacement=False),
        **{scheme: partial(ops.draw, weights, k, scheme, backend=backend) for scheme in SCHEMES},
    }
    found = compared(calls, n, {scheme: peer_of(scheme) for scheme in SCHEMES})
    return {"batches": "draw", "label": f"{k:,} of {n:,}".replace(",", " "), "n": n, "backend": backend, **found}


def measure_weights(n: int, backend: str) -> dict[str, Any]:
    from sam_kernels import ops

    norms = values(n)
    got, plain, truth = (
        ops.gibbs_weights(norms, LAM, backend=backend).weights,
        *(torch.softmax(LAM * norms.to(dtype), 0) for dtype in (torch.float32, torch.float64)),
    )
    assert_elementwise(f"gibbs_weights, {n}", [got], [plain], [truth], torch.float32)
    calls = {SOFTMAX: lambda: torch.softmax(LAM * norms, 0), OURS: lambda: ops.gibbs_weights(norms, LAM, backend=backend)}
    return {"batches": "weights", "label": f"{n:,}".replace(",", " "), "n": n, "backend": backend, **compared(calls, n, {OURS: SOFTMAX})}


def compared(calls: dict[str, Callable[[], Any]], n: int, peers: dict[str, str]) -> dict[str, Any]:
    """Times, and of ours what the peer of each takes over it."""
    rounds = timed_rounds({name: timed(call, max(1, IN_A_ROW // n)) for name, call in calls.items()})
    info: dict[str, Any] = {name: {"us": spread(rounds.totals(name), 1e6)} for name in calls}
    for name, peer in peers.items():
        info[name]["peer_over_ours"] = ratios(rounds.totals(peer), rounds.totals(name))
    return {"rounds": len(rounds.totals(next(iter(calls)))), "providers": info}
