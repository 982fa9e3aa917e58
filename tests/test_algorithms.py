"""Published algorithms written with ascend_ and descend_ alone, against their equations on one flat fp64 vector.

This is the test of the architecture: a new algorithm is a row of coefficients, not a kernel. Each one runs on every backend; where a
backend has no fp64, in fp32 against the fp64 equations under the project's error rule with the reference as plain torch.
"""

from collections.abc import Callable

import pytest
import torch
from tolerance import assert_elementwise, assert_loop
from torch import Tensor

from sam_kernels.ops import Combination, ascend_, descend_
from sam_kernels.ops.coefficients import GRAM

SHAPES = [(4, 3), (5,), (2, 2, 3)]
SIZES = [12, 5, 12]
LR, RHO, MU, WD, STEPS = 0.05, 0.1, 0.9, 0.01, 12
SGD = {"base": "sgd", "lr": LR, "momentum": MU, "weight_decay": WD}

_generator = torch.Generator().manual_seed(3)
MATRIX = torch.randn(29, 29, generator=_generator, dtype=torch.float64) / 29**0.5
START = torch.randn(29, generator=_generator, dtype=torch.float64)


def gradient(w: Tensor, step: int) -> Tensor:
    """Gradient of a smooth non-convex function that changes from step to step, like a mini-batch loss."""
    with torch.enable_grad():
        w = w.detach().clone().requires_grad_()
        matrix = MATRIX.to(w.dtype).roll(step, 0)
        loss = (torch.tanh(matrix @ w).square().sum() + 0.1 * (w * w).sum() + (matrix[0] @ w).sin()) / 3
        return torch.autograd.grad(loss, w)[0]


def split(flat: Tensor) -> list[Tensor]:
    return [x.clone().view(s) for x, s in zip(flat.split(SIZES), SHAPES, strict=True)]


def join(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


class Fused:
    """The state that an optimizer would own, and the gradient at the current weights."""

    def __init__(self, backend: str, dtype: torch.dtype, device: str) -> None:
        self.backend, kind = backend, {"dtype": dtype, "device": device}
        self.w = [x.to(**kind) for x in split(START)]
        self.stash, self.m, self.q = ([torch.full_like(x, float("nan")) for x in self.w] for _ in range(3))
        self.steps = torch.zeros(3, device=device)
        self.gram = torch.full((6,), float("nan"), **kind)
        self.q_steps = torch.zeros(1, device=device)

    def grad(self, step: int) -> list[Tensor]:
        flat = gradient(join(self.w), step)
        return split(flat)

    def ascend(self, g: list[Tensor] | None, **options: object) -> None:
        self.norm = ascend_(self.w, g, self.stash, rho=RHO, gram=self.gram, backend=self.backend, **options)

    def descend(self, h: list[Tensor] | None, **options: object) -> None:
        options = {"stash": self.stash, **SGD, "m": self.m, "steps": self.steps, "gram": self.gram, **options}
        descend_(self.w, h, backend=self.backend, **options)


def sgd(w: Tensor, u: Tensor, m: Tensor | None, decay_at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    u = u + WD * (w if decay_at is None else decay_at)
    m = u if m is None else MU * m + u
    return w - LR * m, m


def perturb(w: Tensor, d: Tensor) -> Tensor:
    return w + RHO * d / (d.norm() + 1e-12)


# ---- each algorithm: (fused loop, equations)


def wsam_fused(x: Fused) -> None:
    gamma = 0.9
    a = gamma / (1 - gamma)
    rule = Combination(u={"g": 1.0}, direct={"h": a, "g": -a})
    for t in range(STEPS):
        g = x.grad(t)
        x.ascend(g)
        x.descend(x.grad(t), g=g, coefficients=rule)


def wsam_equations() -> Tensor:
    w, m, a = START.clone(), None, 0.9 / (1 - 0.9)
    for t in range(STEPS):
        g = gradient(w, t)
        h = gradient(perturb(w, g), t)
        w, m = sgd(w, g, m)
        w = w - LR * a * (h - g)
    return w


def gsam_fused(x: Fused) -> None:
    alpha = 0.4
    rule = Combination(u={"h": (1.0, 0.0, alpha), "g": -alpha})
    for t in range(STEPS):
        g = x.grad(t)
        x.ascend(g)
        x.descend(x.grad(t), g=g, coefficients=rule)


def gsam_equations() -> Tensor:
    w, m = START.clone(), None
    for t in range(STEPS):
        g = gradient(w, t)
        h = gradient(perturb(w, g), t)
        orthogonal = g - (g @ h) / (h @ h) * h
        w, m = sgd(w, h - 0.4 * orthogonal, m)
    return w


def looksam_fused(x: Fused) -> None:
    k, alpha = 3, 0.7
    refresh = Combination(u={"h": 1.0}, q={"h": 1.0, "g": (0.0, 0.0, 0.0, -1.0)})
    reuse = Combination(u={"g": 1.0, "q": (0.0, 0.0, 0.0, 0.0, alpha)})
    for t in range(STEPS):
        g = x.grad(t)
        if t % k == 0:
            x.ascend(g)
            x.descend(x.grad(t), g=g, q=x.q, coefficients=refresh, given=("gg",))
        else:
            x.descend(None, stash=None, g=g, q=x.q, coefficients=reuse, given=("qq",))


def looksam_equations() -> Tensor:
    w, m, kept = START.clone(), None, None
    for t in range(STEPS):
        g = gradient(w, t)
        if t % 3 == 0:
            h = gradient(perturb(w, g), t)
            kept = h - (g @ h) / (g @ g) * g
            u = h
        else:
            u = g + 0.7 * g.norm() / kept.norm() * kept
        w, m = sgd(w, u, m)
    return w


def momentum_sam_fused(x: Fused) -> None:
    for t in range(STEPS):  # weights live perturbed between steps; the stash holds the clean ones
        x.descend(x.grad(t), stash=x.stash if t else None, decay_at="perturbed")
        x.ascend(None, q=x.m, direction=(0.0, -1.0))
    x.w = x.stash


def momentum_sam_equations() -> Tensor:
    at, w, v = START.clone(), START.clone(), None
    for t in range(STEPS):
        h = gradient(at, t)
        w, v = sgd(w, h, v, decay_at=at)
        at = perturb(w, -v)
    return w


def friendly_fused(x: Fused) -> None:
    for q in x.q:
        q.zero_()
    for t in range(STEPS):
        x.ascend(x.grad(t), q=x.q, direction=(1.0, -0.8), ema=(0.6, 0.4), q_steps=x.q_steps)
        x.descend(x.grad(t))


def friendly_equations() -> Tensor:
    w, m, mean = START.clone(), None, None
    for t in range(STEPS):
        g = gradient(w, t)
        d = g if mean is None else g - 0.8 * mean
        mean = g if mean is None else 0.6 * mean + 0.4 * g
        w, m = sgd(w, gradient(perturb(w, d), t), m)
    return w


def stable_fused(x: Fused) -> None:
    for t in range(STEPS):
        x.ascend(x.grad(t))
        x.descend(x.grad(t), match_norm=True, given=("gg",), sq_norm=x.norm)


def stable_equations() -> Tensor:
    w, m = START.clone(), None
    for t in range(STEPS):
        g = gradient(w, t)
        h = gradient(perturb(w, g), t)
        w, m = sgd(w, g.norm() / h.norm() * h, m)
    return w


def vsam_reuse_fused(x: Fused) -> None:
    refresh = Combination(u={"h": 1.0}, q={"h": 1.0, "g": -1.0})
    for t in range(STEPS):
        g = x.grad(t)
        if t % 4 == 0:
            x.ascend(g)
            x.descend(x.grad(t), g=g, q=x.q, coefficients=refresh)
        else:
            x.descend(None, stash=None, g=g, q=x.q, coefficients=Combination(u={"g": 1.0, "q": 0.7 ** (t % 4)}))


def vsam_reuse_equations() -> Tensor:
    w, m, kept = START.clone(), None, None
    for t in range(STEPS):
        g = gradient(w, t)
        if t % 4 == 0:
            u = gradient(perturb(w, g), t)
            kept = u - g
        else:
            u = g + 0.7 ** (t % 4) * kept
        w, m = sgd(w, u, m)
    return w


ALGORITHMS: dict[str, tuple[Callable[[Fused], None], Callable[[], Tensor]]] = {
    "decoupled_wsam": (wsam_fused, wsam_equations),
    "gsam": (gsam_fused, gsam_equations),
    "looksam": (looksam_fused, looksam_equations),
    "momentum_sam": (momentum_sam_fused, momentum_sam_equations),
    "friendly_sam": (friendly_fused, friendly_equations),
    "stable_sam": (stable_fused, stable_equations),
    "vsam_reuse": (vsam_reuse_fused, vsam_reuse_equations),
}


def run(name: str, backend: str, dtype: torch.dtype, device: str) -> Tensor:
    fused = Fused(backend, dtype, device)
    with torch.no_grad():
        ALGORITHMS[name][0](fused)
    return join(fused.w)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_against_the_equations(name: str, place: tuple[str, str]) -> None:
    backend, device = place
    truth = ALGORITHMS[name][1]()
    assert (truth - START).norm() > 0.5, "the loop barely moved: this test could not fail"
    if backend in ("reference", "cpp"):
        got = run(name, backend, torch.float64, device)
        assert_loop(name, [got], [truth])
    got, plain = run(name, backend, torch.float32, device), run(name, "reference", torch.float32, "cpu")
    assert_elementwise(name, [got], [plain], [truth], torch.float32)


def test_gram_names_are_the_documented_order() -> None:
    assert GRAM == ("gg", "gh", "hh", "gq", "hq", "qq")
