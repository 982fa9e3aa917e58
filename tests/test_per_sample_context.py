"""What the context offers: reductions and scales, the weighted gradient, norms by layer, gradient noise, functions with a sink."""

import math

import pytest
import torch
import torch.nn.functional as F
from per_sample_models import MODELS, data, randomized
from per_sample_oracle import B, Place, assert_grads, combined, error, losses, on, oracle, run, squares, tiny
from torch import Tensor, nn

from sam_kernels import per_sample
from sam_kernels.per_sample.layers import Wants
from sam_kernels.per_sample.linear import Linear

W = torch.tensor([0.5, 0.0, -2.0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [None, 3.0, torch.tensor(0.25), torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64)], ids=str)
def test_scale_and_reduction(reduction: str, scale: float | Tensor | None) -> None:
    case, _ = MODELS["vit"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    by = torch.as_tensor(1.0 if scale is None else scale).double().expand(B)
    want = {name: g * by.view(-1, *[1] * (g.dim() - 1)) for name, g in oracle(model, x).items()}
    assert error(run(model, x, reduction=reduction, scale=scale).squared, squares(want)) <= 1e-12
    model.zero_grad()
    norms = run(model, x, reduction=reduction, scale=scale, weighted=True)
    assert error(norms.squared, squares(want)) <= 1e-12
    norms.weighted_backward(W)
    assert_grads(model, combined(want, W), 1e-12)


def test_weighted_backward_again_and_accumulated() -> None:
    case, loss = MODELS["gpt"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    want = oracle(model, x, loss)
    earlier = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = earlier[name].clone()
    norms = run(model, x, loss, weighted=True)
    assert all(torch.equal(p.grad, earlier[name]) for name, p in model.named_parameters())
    norms.weighted_backward(W, accumulate=True)
    assert_grads(model, {name: g + earlier[name] for name, g in combined(want, W).items()}, 1e-12)
    norms.weighted_backward(W)
    assert_grads(model, combined(want, W), 1e-12)
    other = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float16, requires_grad=True)
    norms.weighted_backward(other)
    assert_grads(model, combined(want, other), 1e-12)
    norms.weighted_backward(W, accumulate=True)
    assert_grads(model, combined(want, W + other.detach()), 1e-12)
    norms.weighted_backward(torch.zeros(B))
    assert all(p.grad.eq(0).all() for p in model.parameters())
    assert error(norms.squared, squares(want)) <= 1e-12


def test_the_weighted_form_computes_no_weight_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Wants] = []
    plain = Linear.backward
    monkeypatch.setattr(Linear, "backward", lambda self, g, saved, wants: (asked.append(wants), plain(self, g, saved, wants))[1])
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for weighted in (True, False):
        asked.clear()
        run(model, data((B, 4)), weighted=weighted)
        assert [(w.x, w.weight, w.bias) for w in asked] == [(True, not weighted, not weighted), (False, not weighted, not weighted)]


@pytest.mark.parametrize("weighted", [False, True])
def test_per_layer(weighted: bool) -> None:
    case, loss = MODELS["gpt"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    norms, want = run(model, x, loss, per_layer=True, weighted=weighted, scale=2.0), oracle(model, x, loss)
    names = {name.rpartition(".")[0] for name in want}
    assert norms.per_layer.keys() == names
    for name in names:
        own = squares({k: 2 * g for k, g in want.items() if k.rpartition(".")[0] == name})
        assert ((norms.per_layer[name] - own).abs().max() / own.max()).item() <= 1e-10, name


class Bare(nn.Module):
    """Two layers whose parameters belong to one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a).tanh(), self.b)


def test_per_layer_of_a_module_with_two_layers() -> None:
    model = Bare()
    norms = run(model, data((B, 5)), per_layer=True)
    worst = error(sum(norms.per_layer.values()), norms.squared.double())
    assert worst <= 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"weighted": True}, {"reduction": "sum"}, {"scale": 3.0}, {"scale": W + 3, "weighted": True}], ids=str
)
def test_gradient_noise(options: dict) -> None:
    case, loss = MODELS["gpt"]
    model, x = case.model(torch.float64), case.input(torch.float64, samples=B)
    by = torch.as_tensor(options.get("scale", 1.0)).double().expand(B)
    rows = torch.cat([g.flatten(1) for g in oracle(model, x, loss).values()], 1) * by[:, None]
    trace = rows.var(0).sum()  # unbiased
    square = rows.mean(0).square().sum() - trace / B  # unbiased as well: E|mean|^2 = |true|^2 + trace / B
    trace_got, scale_got = run(model, x, loss, **options).gradient_noise()
    assert math.isclose(trace_got.item(), trace.item(), rel_tol=1e-10)
    assert math.isclose(scale_got.item(), (trace / square).item(), rel_tol=1e-9)


# ---- functions with a sink


@tiny
def test_functions_with_a_sink(place: Place) -> None:
    """A small network of functions alone; one sink for all of them."""
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 2), "group": nn.GroupNorm(2, 4), "linear": nn.Linear(4, 4)})
    model.update({"embed": nn.Embedding(6, 4), "layer": nn.LayerNorm(4), "rms": nn.RMSNorm(4)})
    backend, m = on(place, model), randomized(model)
    x, ids = data((2, 3, 4, 4)).to(place[1]), torch.tensor([[0, 1, 0], [5, 5, 2]], device=place[1])

    def forward(ps, x: Tensor, ids: Tensor, **k) -> Tensor:
        y = ps.group_norm(ps.conv(x, m["conv"].weight, m["conv"].bias, 2, 1, **k), 2, m["group"].weight, m["group"].bias, 1e-3, **k)
        y = ps.layer_norm(
            ps.linear(y.flatten(2).mT, m["linear"].weight, m["linear"].bias, **k), (4,), m["layer"].weight, m["layer"].bias, **k
        )
        e = ps.rms_norm(ps.embedding(ids, m["embed"].weight, 1, **k), (4,), m["rms"].weight, **k)
        return losses(torch.cat([y, e], 1))

    class Plain:
        conv, group_norm, layer_norm, linear, rms_norm, embedding = F.conv2d, F.group_norm, F.layer_norm, F.linear, F.rms_norm, F.embedding

    sink = torch.zeros(2, device=place[1], requires_grad=True)
    forward(per_sample, x, ids, sink=sink, backend=backend).sum().backward()
    got = {name: p.grad for name, p in m.named_parameters()}
    want = []
    for b in range(2):
        grads = torch.autograd.grad(forward(Plain, x[b : b + 1], ids[b : b + 1]).sum(), [*m.parameters()])
        want.append(sum(g.double().square().sum() for g in grads).cpu())
    assert error(sink.grad, torch.stack(want)) <= 1e-5
    grads = torch.autograd.grad(forward(Plain, x, ids).sum(), [*m.parameters()])
    assert all(error(a.norm(), b.double().cpu().norm()) <= 1e-5 for a, b in zip(got.values(), grads, strict=True))


@pytest.mark.parametrize("sink", [torch.zeros(B), torch.zeros(B, 1, requires_grad=True), torch.zeros((), requires_grad=True)], ids=str)
def test_sinks_that_are_none(sink: Tensor) -> None:
    with pytest.raises(ValueError, match="sink"):
        per_sample.linear(data((B, 4)), torch.ones(3, 4), sink=sink)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "inputs"), [((3, 0, 4), 4), ((3, 0), 0), ((3, 2, 0), 0)])
def test_layers_without_elements(shape: tuple[int, ...], inputs: int, weighted: bool) -> None:
    """Sequences of no positions have no gradient; a layer of no features has that of its bias alone."""
    layer, x = nn.Linear(inputs, 2), torch.zeros(shape)
    with per_sample.grad_norms(layer, batch_size=3, weighted=weighted, reduction="sum") as norms:
        layer(x).sum().backward()
    rows = x.numel() // 3 if inputs else shape[1] if len(shape) == 3 else 1
    assert norms.squared.tolist() == [2.0 * rows**2] * 3
    if weighted:
        norms.weighted_backward(torch.ones(3))
    assert layer.bias.grad.tolist() == [3.0 * rows] * 2 and layer.weight.grad.shape == layer.weight.shape
