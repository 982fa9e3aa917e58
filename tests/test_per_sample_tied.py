"""A linear layer whose weight is the table of an embedding: the norm of the sum of two gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from per_sample_models import data
from per_sample_oracle import B, Place, check, error, everywhere, on, oracle, refused, run, squares
from torch import Tensor, nn

from sam_kernels import per_sample

T, V, D = 5, 6, 4
forms = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


class Tied(nn.Module):
    def __init__(self, padding_idx: int | None = None, bias: bool = False, pool: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.between = nn.Embedding(V, D, padding_idx), nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=bias)
        self.head.weight, self.pool = self.words.weight, pool

    def forward(self, ids: Tensor) -> Tensor:
        x = self.between(self.words(ids)).tanh()
        return self.head(x.mean(1) if self.pool else x)


class Functional(Tied):
    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.between(self.words(ids)).tanh(), self.words.weight)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "module": (Tied, (T,)),
    "functional": (Functional, (T,)),
    "padding": (lambda: Tied(padding_idx=2), (T,)),
    "bias": (lambda: Tied(bias=True), (T,)),
    "one output a sample": (lambda: Tied(pool=True), (T,)),
    "ids of two dimensions": (Tied, (2, T)),
    "one id": (Tied, ()),
}


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[name]
    return make().to(dtype), data((B, *shape), ids=V)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_gradients(name: str, dtype: torch.dtype, place: Place) -> None:
    model, ids = made(name, dtype)
    check(model, ids, on(place, model))


@forms
@pytest.mark.parametrize("name", MODELS)
def test_norms_by_layer(name: str, weighted: bool) -> None:
    model, ids = made(name)
    norms = run(model, ids, weighted=weighted, per_layer=True)
    ends = {name: g for name, g in oracle(model, ids).items() if not name.startswith("between")}  # the bias of the head too
    assert error(norms.per_layer["words"], squares(ends)) <= 1e-12
    assert "tied to an embedding" in norms.explain()


@pytest.mark.parametrize("method", ["direct", "gram"])
@forms
def test_methods_in_fp32(weighted: bool, method: str) -> None:
    model, ids = made("module", torch.float32)
    assert error(run(model, ids, weighted=weighted, method=method).squared, squares(oracle(model, ids))) <= 1e-5


@forms
def test_noise(weighted: bool) -> None:
    model, ids = made("module")
    rows = torch.cat([g.flatten(1) for g in oracle(model, ids).values()], 1)
    noise = run(model, ids, weighted=weighted).gradient_noise()
    torch.testing.assert_close(noise.trace, rows.var(0).sum())


def test_under_autocast() -> None:
    model, ids = made("module", torch.float32)
    want = squares(oracle(model, ids, lambda y: y.double().square().flatten(1).sum(1)))
    for weighted in (False, True):
        with per_sample.grad_norms(model, B, reduction="sum", weighted=weighted) as norms:
            with torch.autocast("cpu", torch.bfloat16):
                out = model(ids)
            out.double().square().sum().backward()
            with torch.autocast("cpu", torch.bfloat16):  # where the loop reads them is no matter
                inside = norms.squared
        assert error(inside, want) <= 5e-2 and torch.equal(inside, norms.squared)


class Reversed(Tied):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.between(F.one_hot(ids, D).to(self.between.weight.dtype))
        return F.linear(x, self.words.weight) @ self.words(ids).mT


class Thrice(Tied):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.between(self.words(ids))
        return self.head(x) + self.head(2 * x)


class Lookups(Tied):
    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids) + self.words(ids.flip(1))


@forms
@pytest.mark.parametrize("kind", [Reversed, Thrice, Lookups])
def test_other_pairs_are_refused(kind: type[Tied], weighted: bool) -> None:
    model = kind()
    with refused(model, NotImplementedError, r"words\.weight is used by two calls"):
        run(model, data((B, T), ids=4), weighted=weighted)


def test_a_head_that_the_loss_does_not_reach() -> None:
    """Only the embedding counts then."""
    model, ids = made("functional")
    with per_sample.grad_norms(model, B, reduction="sum") as norms:
        x = model.between(model.words(ids))
        F.linear(x, model.words.weight)
        x.square().sum().backward()
    got = norms.squared
    rows = [torch.autograd.grad(model.between(model.words(row)).square().sum(), [*model.between.parameters(), model.words.weight])
            for row in ids.split(1)]  # fmt: skip
    want = torch.stack([sum(g.square().sum() for g in grads) for grads in rows])
    assert error(got, want) <= 1e-12


@forms
def test_gradients_that_cancel_have_no_negative_square(weighted: bool) -> None:
    """<e, w> - |e|^2 with e = w[id]: the gradients of the two uses are each other's opposite."""
    for seed in range(10):
        torch.manual_seed(seed)
        table = nn.Embedding(8, 33)
        ids, factor = torch.randint(0, 8, (B, 16)), torch.rand(B, 16)
        with per_sample.grad_norms(table, B, reduction="sum", weighted=weighted) as norms:
            e = table(ids)
            own = F.linear(e, table.weight).gather(2, ids[..., None])[..., 0]
            (factor * (own - e.square().sum(-1))).sum().backward()
        assert (norms.squared >= 0).all() and not norms.norm.isnan().any()


@pytest.mark.parametrize("what", ["ids", "input"])
def test_what_a_tied_norm_is_made_of_must_not_change_before_it_is_read(what: str) -> None:
    model, ids, kept = Tied(), torch.randint(0, V, (B, T)), []
    model.between.register_forward_hook(lambda *args: kept.append(args[-1]))
    with per_sample.grad_norms(model, B, weighted=True) as norms:
        model.head.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        model(ids).square().mean().backward()
    with torch.no_grad():
        (ids if what == "ids" else kept[-1]).zero_()
    with pytest.raises(RuntimeError, match="modified in place after the forward; the norm of a tied weight"):
        norms.squared  # noqa: B018
