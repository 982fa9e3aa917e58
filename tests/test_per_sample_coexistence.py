"""The context beside other things: checkpointing, autocast, functional calls, hooks, modes; and what it keeps in memory."""

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from per_sample_models import LAYERS, MODELS, data, randomized
from per_sample_oracle import B, assert_grads, check, combined, error, losses, oracle, run, squares
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam_kernels import per_sample
from sam_kernels.per_sample import grad_norms
from sam_kernels.per_sample.layers import Layer

forms = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
kinds = pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])


class Recomputed(nn.Module):
    def __init__(self, body: nn.Module, reentrant: bool | None) -> None:
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)


def recomputed(reentrant: bool) -> tuple[nn.Module, Tensor]:
    case, _ = MODELS["vit"]
    model = case.model(torch.float64)
    model.blocks = nn.Sequential(*[Recomputed(block, reentrant) for block in model.blocks])
    return model, case.input(torch.float64)


@kinds
def test_checkpointing(reentrant: bool) -> None:
    model, x = recomputed(reentrant)
    check(model, x, None)


@kinds
@forms
@pytest.mark.parametrize("how", ["after the context", "torch.autograd.backward"])
def test_a_recomputation_outside_of_the_context(how: str, weighted: bool, reentrant: bool) -> None:
    """It runs without the context's eyes: right, or refused, never a part of the norm."""
    model, x = recomputed(reentrant)
    try:
        with grad_norms(model, B, weighted=weighted) as norms:
            loss = losses(model(x)).mean()
            if how == "torch.autograd.backward":
                torch.autograd.backward(loss)
        if how == "after the context":
            loss.backward()
        got = norms.squared
    except (RuntimeError, NotImplementedError):
        return
    assert error(got, squares(oracle(model, x))) <= 1e-12


@kinds
@forms
def test_a_layer_used_twice_in_a_recomputation(weighted: bool, reentrant: bool) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), Recomputed(nn.Sequential(shared, nn.Tanh(), shared), reentrant))
    with pytest.raises(NotImplementedError, match=r"1\.body\.0\.weight"):
        _ = run(model, data((B, 4)), weighted=weighted).squared


@kinds
def test_frozen_batchnorm_in_a_recomputation(reentrant: bool) -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    model = randomized(nn.Sequential(nn.Linear(4, 4), Recomputed(body, reentrant), nn.Linear(4, 3))).double()
    x = data((B, 4), torch.float64)
    want, value = oracle(model.eval(), x), losses(model(x)).mean().item()
    before = {name: b.clone() for name, b in model.named_buffers() if "running" in name}
    with grad_norms(model.train(), B, batchnorm="frozen") as norms:
        loss = losses(model(x)).mean()
        loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers() if name in before)
    assert abs(loss.item() - value) <= 1e-12 * abs(value)
    assert error(norms.squared, squares(want)) <= 1e-12


# ---- autocast


def rows_under_autocast(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    rows = []
    for row in x.split(1):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(model(row)).sum()
        loss.backward()
        rows.append([p.grad.double() for p in model.parameters()])
    model.zero_grad()
    return {name: torch.stack(g) for (name, _), g in zip(model.named_parameters(), zip(*rows, strict=True), strict=True)}


@forms
@pytest.mark.parametrize("name", ["vit", "resnet", "convnext"])
def test_autocast(name: str, weighted: bool) -> None:
    """Beside the same forward for every sample alone, and a little further from fp64."""
    case, _ = MODELS[name]
    model, x = case.model(), case.input()
    want = rows_under_autocast(model, x)
    with torch.autocast("cpu", torch.bfloat16), grad_norms(model, B, weighted=weighted) as norms:
        y = model(x)
        losses(y).mean().backward()
    assert y.dtype == torch.bfloat16 and norms.norm.dtype == torch.float32
    assert error(norms.norm, squares(want).sqrt()) <= 1e-2
    assert error(norms.norm, squares(oracle(model, x)).sqrt()) <= 3e-2
    w = torch.tensor([0.5, 0.0, -2.0]) if weighted else torch.full((B,), 1 / B)
    if weighted:
        norms.weighted_backward(w)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert_grads(model, combined(want, w), 3e-2)


def test_autocast_leaves_fp64_alone() -> None:
    case, _ = MODELS["convnext"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float64
        norms = run(model, x)
    assert error(norms.squared, squares(oracle(model, x))) <= 1e-12


# ---- functional calls, modes, hooks


class Functional(nn.Module):
    """Parameters of modules that are never called."""

    def __init__(self, ids: torch.dtype) -> None:
        super().__init__()
        self.ids = ids
        self.fc, self.norm, self.embed, self.conv = nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(6, 4), nn.Conv1d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(weight=self.fc.weight, input=x)
        h = F.layer_norm(h, weight=self.norm.weight, normalized_shape=(4,)) + self.fc.bias.detach()
        h = h + F.embedding(torch.arange(3, dtype=self.ids).expand(len(x), -1), self.embed.weight, padding_idx=-4)
        return F.conv1d(h.mT, self.conv.weight, padding="same", bias=self.conv.bias)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32], ids=str)
def test_functional_calls_of_parameters(ids: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = randomized(Functional(ids)).double(), data((B, 3, 4), torch.float64)
    for p in (model.fc.bias, model.norm.bias):
        p.requires_grad_(False)
    check(model, x, None)


@forms
def test_functional_call(weighted: bool) -> None:
    case, _ = MODELS["vit"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    with grad_norms(model, B, weighted=weighted) as norms:
        losses(torch.func.functional_call(model, dict(model.named_parameters()), x)).mean().backward()
    assert error(norms.squared, squares(oracle(model, x))) <= 1e-12


@forms
def test_passes_without_gradients_do_not_count(weighted: bool) -> None:
    case, _ = MODELS["resnet"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    with grad_norms(model, B, weighted=weighted) as norms:
        with torch.no_grad():
            model(x[:2])
        with torch.inference_mode():
            model(x[:1])
        loss = losses(model(x)).mean()
    model(x)  # and after the context nothing is intercepted
    loss.backward()
    assert error(norms.squared, squares(oracle(model, x))) <= 1e-12


def test_hooks_run_as_ever() -> None:
    case, _ = MODELS["vit"]
    model, x, seen = case.model(torch.float64), case.input(torch.float64), []
    want = oracle(model, x)
    model.head.register_forward_hook(lambda *_: seen.append("forward"))
    model.head.register_full_backward_hook(lambda *_: seen.append("backward"))
    model.head.weight.register_post_accumulate_grad_hook(lambda _: seen.append("parameter"))
    norms = run(model, x)
    assert sorted(seen) == ["backward", "forward", "parameter"] and error(norms.squared, squares(want)) <= 1e-12


def test_gradients_add_up_over_contexts() -> None:
    """Micro-batches: norms of each, gradients of both; a part that one of them does not reach counts as nothing."""
    case, _ = MODELS["vit"]
    model, x = case.model(torch.float64), case.input(torch.float64, samples=5)
    want = oracle(model, x)
    got = torch.cat([run(model, part, reduction="sum").squared for part in x.split(3)])
    assert error(got, squares(want)) <= 1e-12
    assert_grads(model, combined(want, torch.ones(5)), 1e-12)
    model.unused = nn.Linear(3, 3).double()
    model.zero_grad()
    norms = run(model, x, weighted=True)
    model.unused.weight.grad = torch.ones(3, 3).double()
    assert error(norms.squared, squares(want)) <= 1e-12
    norms.weighted_backward(torch.ones(5))
    assert model.unused.weight.grad is None and model.head.weight.grad is not None


@forms
def test_equal_inputs_give_equal_bits(weighted: bool) -> None:
    case, _ = MODELS["convnext"]
    model, x = case.model(), case.input()
    first, again = (run(model, x, weighted=weighted).squared for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[:1], first[1:2])


# ---- memory


class Tap(nn.Module):
    """Values and gradients in memory whose end is seen."""

    def __init__(self, seen: list[weakref.ref]) -> None:
        super().__init__()
        self.seen = seen

    def copy(self, x: Tensor) -> Tensor:
        memory = x.detach().numpy().copy()
        self.seen.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    def forward(self, x: Tensor) -> Tensor:
        return Copied.apply(x, self)


class Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tap: Tap) -> Tensor:
        ctx.tap = tap
        return tap.copy(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return ctx.tap.copy(g), None


@forms
@pytest.mark.parametrize("name", ["linear 3d direct", "conv2d", "embedding", "layer_norm", "group_norm"])
def test_nothing_outlives_the_context(name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector: no cycle may hold activations. Weighted, they are kept themselves, not as copies."""
    monkeypatch.setattr(Layer, "method", property(lambda _: "direct"))  # not "keep", which holds the samples' gradients instead
    seen: list[weakref.ref] = []
    tap, layer = Tap(seen), LAYERS[name].model()
    x = LAYERS[name].input().numpy()
    model = nn.Sequential(layer, tap)
    gc.disable()
    try:
        tensor = torch.from_numpy(x)
        norms = run(model, tensor, weighted=weighted)
        del tensor
        norms.squared  # noqa: B018
        if weighted:
            norms.weighted_backward(torch.ones(B))
        alive = [ref() is not None for ref in seen]
        gradient_itself = weighted and "norm" not in name  # normalization layers keep two rows a sample
        assert alive == [False, gradient_itself], f"{'values and gradients':} alive: {alive}"
        model.zero_grad()
        del norms
        assert not any(ref() is not None for ref in seen), "kept alive by a cycle"
    finally:
        gc.enable()


def test_functional_forms_under_autocast() -> None:
    """As torch's own function: the lower precision, whatever the operands are in."""
    weight, sink = torch.randn(3, 4, requires_grad=True), torch.zeros(2, requires_grad=True)
    x = torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = per_sample.linear(x.bfloat16(), weight, sink=sink)
        assert y.dtype == F.linear(x, weight).dtype == torch.bfloat16
    y.float().sum().backward()
    want = 3 * x.bfloat16().float().square().sum(1)
    assert weight.grad.dtype == torch.float32 and ((sink.grad - want).abs() <= 1e-2 * want).all()
