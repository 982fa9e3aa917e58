"""What must be refused, by name and before anything is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from per_sample_models import LAYERS, data
from per_sample_oracle import B, error, losses, oracle, refused, run, squares
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sam_kernels import per_sample
from sam_kernels.per_sample import grad_norms
from sam_kernels.registry import OPS

forms = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


class Uses(nn.Module):
    """A layer before, a parameter ``p [4, 4]`` that is used somehow, a layer after."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.use = nn.Linear(4, 4), nn.Linear(4, 3), use
        self.p = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.use(self, self.before(x)))


# ---- parameters in other uses


class Double(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(_ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


USES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "t": lambda m, h: h @ m.p.t(),
    "times": lambda m, h: m.p[0] * h,
    "einsum": lambda m, h: torch.einsum("bd,de->be", h, m.p),
    "matmul": lambda m, h: h @ m.p,
    "plus": lambda m, h: h + m.p[0],
    "in place": lambda m, h: h.clone().add_(m.p.sum()),
    "cat": lambda m, h: torch.cat([h, m.p])[: len(h)],
    "keyword": lambda m, h: torch.addmm(input=h, mat1=h, mat2=m.p),
    "computed weight": lambda m, h: F.linear(h, 2 * m.p),
    "aten": lambda m, h: torch.ops.aten.mm(h, m.p),
    "embedding_bag": lambda m, h: h + F.embedding_bag(torch.zeros(len(h), 1, dtype=torch.int64), m.p),
    "bilinear": lambda m, h: F.bilinear(h, h, m.p[None].expand(4, -1, -1)),
    "conv_transpose": lambda m, h: F.conv_transpose1d(h[:, :, None], m.p[:, :, None])[:, :, 0],
    "torch.layer_norm": lambda m, h: torch.layer_norm(h, (4,), m.p[0]),
}


@forms
@pytest.mark.parametrize("use", USES)
def test_a_parameter_in_another_function(use: str, weighted: bool) -> None:
    model = Uses(USES[use])
    with refused(model, NotImplementedError, r"parameters p\b"):
        run(model, data((B, 4)), weighted=weighted)


class Row(Uses):
    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(use)
        self.p.requires_grad_(False)
        self.row = nn.Parameter(torch.randn(B, 4))


def assigned(m: nn.Module, h: Tensor) -> Tensor:
    both = torch.stack([h, h])
    both[0] = m.row
    return both.sum(0)


SCRIPTED = torch.jit.CompilationUnit("def f(x):\n    return x * 2\n").f
UNSEEN: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "assigned into a tensor": lambda m, h: assigned(m, h),
    "in an autograd function": lambda m, h: h + Double.apply(m.row),
    "input of a layer": lambda m, h: h + F.linear(m.row, m.before.weight.detach()),
    "input of a trained layer": lambda m, h: h.detach() + m.mid(m.row),
    "in a scripted function": lambda m, h: h + SCRIPTED(m.row),
}


@forms
@pytest.mark.parametrize("use", UNSEEN)
def test_a_gradient_that_goes_by_is_noticed(use: str, weighted: bool) -> None:
    """Where no call shows the parameter, or shows it as data: refused in the forward, or when the norms are read."""
    model = Row(UNSEEN[use])
    model.mid = nn.Linear(4, 4)
    with pytest.raises((NotImplementedError, RuntimeError, ValueError), match="row"):
        run(model, data((B, 4)), weighted=weighted).squared  # noqa: B018


@forms
def test_weight_norm_and_a_regulariser(weighted: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 3)))
    with refused(model, NotImplementedError, r"1\.parametrizations\.weight"):
        run(model, data((B, 4)), weighted=weighted)
    model = net()
    with refused(model, NotImplementedError, r"0\.weight"), grad_norms(model, B, weighted=weighted):
        (losses(model(data((B, 4)))).mean() + 1e-3 * sum(p.square().sum() for p in model.parameters())).backward()


@pytest.mark.parametrize("options", [{"sparse": True}, {"scale_grad_by_freq": True}], ids=str)
def test_embeddings_that_are_refused(options: dict[str, bool]) -> None:
    model = nn.Sequential(nn.Embedding(6, 4, **options))
    with refused(model, NotImplementedError, f"{next(iter(options))}"):
        run(model, data((B, 5), ids=6))


# ---- batches


@pytest.mark.parametrize("name", ["linear", "linear 3d direct", "conv2d", "embedding", "layer_norm", "group_norm", "batch_norm2d eval"])
def test_a_batch_of_another_size(name: str) -> None:
    model = nn.Sequential(LAYERS[name].model())
    with refused(model, ValueError, r"^0: .*batch_size"):
        run(model, LAYERS[name].input(samples=4), size=3)


def test_inputs_that_do_not_start_with_the_batch() -> None:
    for model, x in (
        (net(), data((5, B, 4))),  # sequence first
        (nn.Sequential(nn.Embedding(6, 4)), torch.arange(5)),  # looked up once for all samples
        (nn.Sequential(nn.Conv1d(4, 2, 3)), data((4, 6))),  # no batch at all
        (nn.Sequential(nn.LayerNorm((5, 4))), data((5, 4))),
    ):
        with refused(model, ValueError, "^0: .*expected"):
            run(model, x, size=B, loss=lambda y: y.sum()[None])


# ---- arguments, order of calls


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"model": "net"}, TypeError, "model is str"), ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size is 2.0"), ({"reduction": "none"}, ValueError, "reduction is 'none'"),
        ({"batchnorm": "eval"}, ValueError, "batchnorm is 'eval'"), ({"scale": torch.ones(B + 1)}, ValueError, "scale has shape"),
        ({"backend": "fpga"}, ValueError, "backend is 'fpga'"), ({"backend": "cuda"}, RuntimeError, "backend 'cuda'"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments(options: dict[str, Any], kind: type[Exception], match: str) -> None:
    model = net()
    with refused(model, kind, match), grad_norms(**{"model": model, "batch_size": B, **options}):
        losses(model(data((B, 4)))).mean()
        pytest.fail("the forward went through")


def test_a_backend_that_lacks_one_layer_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPS["linear_grad_norms"].implementations, "reference")
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 2))
    with refused(model, RuntimeError, "reference"):
        run(model, data((B, 4)), backend="reference")


def test_norms_too_early() -> None:
    model = net()
    with grad_norms(model, B, weighted=True) as norms:
        with pytest.raises(RuntimeError, match="no layer"):
            _ = norms.norm
        losses(model(data((B, 4)))).mean()
        for read in (lambda: norms.squared, lambda: norms.gradient_noise(), lambda: norms.weighted_backward(torch.ones(B))):
            with pytest.raises(RuntimeError, match="backward"):
                read()
    assert "linear" in norms.explain() and all(p.grad is None for p in model.parameters())


BAD: list[tuple[Any, type[Exception]]] = [
    (torch.ones(B + 1), ValueError), (torch.ones(B, 1), ValueError), (torch.tensor(1.0), ValueError), (torch.tensor([1, 2, 3]), TypeError),
    (torch.tensor([1.0, float("nan"), 0.0]), ValueError), (torch.tensor([1.0, 0.0, float("inf")]), ValueError), ([1.0] * B, TypeError),
    (torch.ones(B, dtype=torch.bool), TypeError),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "kind"), BAD, ids=str)
def test_weights(weights: Any, kind: type[Exception]) -> None:
    model = net()
    norms = run(model, data((B, 4)), weighted=True)
    with refused(model, kind, "weights"):
        norms.weighted_backward(weights)


def test_what_was_not_asked_for() -> None:
    model = net()
    norms = run(model, data((B, 4)))
    with refused(model, RuntimeError, "weighted=True"):
        norms.weighted_backward(torch.ones(B))
    with pytest.raises(RuntimeError, match="per_layer=True"):
        _ = norms.per_layer
    with pytest.raises(RuntimeError, match="zero_grad"):
        run(model, data((B, 4))).gradient_noise()
    with pytest.raises(ValueError, match="2 samples"):
        run(model, data((1, 4))).gradient_noise()


def test_one_context_at_a_time() -> None:
    model, x = net(), data((B, 4))
    with grad_norms(model, B) as norms:
        with pytest.raises(RuntimeError, match="outer context"), grad_norms(net(), B):
            pass
        losses(model(x)).mean().backward()
    assert error(norms.squared, squares(oracle(model, x))) <= 1e-5
    with refused(model, ZeroDivisionError, "division"), grad_norms(model, B):
        model(x)
        _ = 1 / 0
    model.zero_grad()
    assert error(run(model, x).squared, squares(oracle(model, x))) <= 1e-5


@forms
def test_one_forward_and_one_backward(weighted: bool) -> None:
    model, x = net(), data((B, 4))
    with refused(model, NotImplementedError, r"0\.weight"), grad_norms(model, B, weighted=weighted):
        model(x)
        model(x)
    with pytest.raises(NotImplementedError, match=r"0\.weight"), grad_norms(model, B, weighted=weighted):
        losses(model(x)).mean().backward()
        model(x)
    with pytest.raises(RuntimeError), grad_norms(model, B, weighted=weighted) as norms:  # the norm of a sum is not the sum of norms
        loss = losses(model(x)).mean()
        loss.backward(retain_graph=True)
        loss.backward()
        _ = norms.squared


def test_an_input_that_was_modified_in_place() -> None:
    model, x = net(), data((B, 4))
    norms = run(model, x, weighted=True)
    x.mul_(2)
    with refused(model, RuntimeError, "^0: .*in place"):
        norms.weighted_backward(torch.ones(B))


def test_a_copy_of_the_parameters_is_not_the_model() -> None:
    model = net()
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    with refused(model, RuntimeError, "no layer"), grad_norms(model, B) as norms:
        losses(torch.func.functional_call(model, copies, data((B, 4)))).mean().backward()
        _ = norms.squared
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="no layer"):
        _ = run(model, data((B, 4)).requires_grad_()).squared


def test_verify_finds_what_no_layer_sees() -> None:
    torch.manual_seed(0)
    good, x, y = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(6, 4), torch.randint(0, 3, (6,))
    shared = nn.Embedding(6, 4)  # as many positions as samples
    kept = torch.ones_like(good[0].weight)
    good[0].weight.grad = kept

    def losses(index: Tensor | None = None, rows: Callable[[Tensor], Tensor] = lambda z: z) -> Tensor:
        at = slice(None) if index is None else index
        return F.cross_entropy(good(rows(x[at])), y[at], reduction="none")

    per_sample.verify(good, losses, 6)
    assert good[0].weight.grad is kept and bool((kept == 1).all())
    with pytest.raises(RuntimeError, match="sample 0: its gradient has norm"):
        per_sample.verify(good, lambda index=None: losses(index, lambda z: z - z.mean(0)), 6)
    both = nn.ModuleList([good, shared])
    table = torch.arange(6)

    def positions(index: Tensor | None = None) -> Tensor:
        at = slice(None) if index is None else index
        return F.cross_entropy(good(x[at, None] + shared(table)).mean(1), y[at], reduction="none")

    with pytest.raises((RuntimeError, ValueError)):
        per_sample.verify(both, positions, 6)
    assert shared.weight.grad is None
