"""Parameters of one sample's shape that are expanded over the batch."""

from collections.abc import Callable

import pytest
import torch
from per_sample_models import data
from per_sample_oracle import B, Place, check, error, everywhere, on, oracle, refused, run, squares
from torch import Tensor, nn

T, D = 5, 4
forms = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


class Uses(nn.Module):
    """A parameter, and a layer behind its use and before it."""

    def __init__(self, shape: tuple[int, ...], use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.p, self.use = nn.Linear(D, D), nn.Linear(D, 3), nn.Parameter(torch.randn(shape)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.use(self.before(x), self.p).tanh())


USES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "positions": ((1, T, D), lambda h, p: h + p.expand(len(h), -1, -1)),
    "positions without a batch dimension": ((T, D), lambda h, p: h + p.expand(len(h), T, D)),
    "sizes as a tuple": ((1, T, D), lambda h, p: h + p.expand(h.shape)),
    "class token": ((1, 1, D), lambda h, p: torch.cat((p.expand(len(h), -1, -1), h), 1)),
    "over positions too": ((1, 1, D), lambda h, p: h * p.expand(len(h), T, -1)),
    "one number": ((1,), lambda h, p: h * p.expand(len(h), T, D)),
    "a number for every position": ((T, 1), lambda h, p: h * p.expand(len(h), -1, D)),
}


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use", USES)
def test_norms_and_gradients(use: str, dtype: torch.dtype, place: Place) -> None:
    model = Uses(*USES[use]).to(dtype)
    check(model, data((B, T, D), dtype), on(place, model))


def test_it_is_explained() -> None:
    norms = run(Uses(*USES["positions"]), data((B, T, D)))
    assert "1x5x4 expanded over the batch" in norms.explain()


REFUSED: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], str]] = {
    "over positions alone": ((1, D), lambda h, p: h + p.expand(T, -1), r"expand\(\) of \(1, 4\) to \(5, -1\)"),
    "its own batch": ((B, T, D), lambda h, p: h + p.expand(B, T, D), r"expand\(\) of \(3, 5, 4\)"),
    "twice": ((1, T, D), lambda h, p: h * p.expand(len(h), -1, -1) + p.expand(len(h), -1, -1), "p is used by two calls"),
    "without it": ((1, T, D), lambda h, p: h + p, r"write p\.expand"),
}


@forms
@pytest.mark.parametrize("use", REFUSED)
def test_what_is_refused(use: str, weighted: bool) -> None:
    shape, function, message = REFUSED[use]
    model = Uses(shape, function)
    with refused(model, (NotImplementedError, ValueError), message):
        run(model, data((B, T, D)), weighted=weighted)


def test_a_frozen_parameter_is_expanded_as_usual() -> None:
    model, x = Uses((1, D), lambda h, p: h + p.expand(T, -1)), data((B, T, D))
    model.p.requires_grad_(False)
    assert error(run(model, x).squared, squares(oracle(model, x))) <= 1e-5
