"""Per-sample norms against one sample at a time: every form of every layer, whole models, and batch normalization."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from per_sample_models import LAYERS, MODELS, TINY, Case, Transformer, data, randomized, resnet
from per_sample_oracle import BOUND, B, Place, check, contributions, error, everywhere, on, oracle, run, squares, tiny
from torch import Tensor, nn

from sam_kernels import per_sample
from sam_kernels.per_sample.conv import Conv
from sam_kernels.per_sample.layers import Layer
from sam_kernels.per_sample.linear import Linear

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


@everywhere
@both
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, dtype: torch.dtype, place: Place) -> None:
    model = LAYERS[name].model(dtype)
    check(model, LAYERS[name].input(dtype), on(place, model))


@tiny
@pytest.mark.parametrize("name", TINY)
def test_layer_on_every_backend(name: str, place: Place) -> None:
    model = LAYERS[name].model()
    check(model, LAYERS[name].input(samples=2), on(place, model))


@everywhere
@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_bf16(name: str, place: Place) -> None:
    model, x = LAYERS[name].model(torch.bfloat16), LAYERS[name].input(torch.bfloat16)
    backend, x = on(place, model), x.to(place[1])
    want = squares(oracle(model, x)).sqrt()
    norms = run(model, x, backend=backend)
    assert norms.norm.dtype == torch.float32 and error(norms.norm, want) <= 1e-2
    assert all(p.grad is None or p.grad.dtype == torch.bfloat16 for p in model.parameters())
    norms = run(model, x, backend=backend, weighted=True)
    assert error(norms.norm, want) <= 1e-2
    norms.weighted_backward(torch.ones(B, device=x.device))
    assert all(p.grad.dtype == torch.bfloat16 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_that_of_the_model(name: str, dtype: torch.dtype, weighted: bool) -> None:
    """Up to a few roundings of it: InstanceNorm and BatchNorm round between what they normalize and their scale."""
    model, x = LAYERS[name].model(dtype), LAYERS[name].input(dtype)
    x = x * 1e-3 if name == "rms_norm" else x  # there eps counts
    plain = LAYERS[name].model(dtype)
    want = plain(x)
    with per_sample.grad_norms(model, B, weighted=weighted):
        got = model(x)
    worst = (got - want).abs().max().item() / want.abs().max().item()
    assert got.dtype == want.dtype and worst <= 4 * torch.finfo(dtype).eps
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


# ---- random shapes


def some(low: int = 1, high: int = 4) -> st.SearchStrategy[int]:
    return st.integers(low, high)


few = settings(max_examples=15, deadline=None, derandomize=True)
CPU = [None, "reference", "cpp"]


@pytest.mark.parametrize("backend", CPU)
@few
@given(b=some(), middle=st.lists(some(), max_size=2), d=some(1, 20), p=some(1, 20), bias=st.booleans())
def test_linear_of_any_shape(backend: str | None, b: int, middle: list[int], d: int, p: int, bias: bool) -> None:
    model = Case(lambda: nn.Linear(d, p, bias=bias), ()).model(torch.float64)
    check(model, data((b, *middle, d), torch.float64), on((backend, "cpu"), model))


@pytest.mark.parametrize("backend", CPU)
@few
@given(st.data())
def test_convolution_of_any_shape(backend: str | None, draw: st.DataObject) -> None:
    dims, groups = draw.draw(some(1, 3)), draw.draw(some(1, 3))
    kernel, stride, dilation, padding = ([draw.draw(some(low, 3)) for _ in range(dims)] for low in (1, 1, 1, 0))
    reach = [max(d * (k - 1) + 1 - 2 * p, 1, (p if p else 1)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [n + draw.draw(some(0, 4)) for n in reach]
    channels = [groups * draw.draw(some(1, 3)) for _ in range(2)]
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = Case(lambda: kind(*channels, kernel, stride, padding, dilation, groups, draw.draw(st.booleans())), ()).model(torch.float64)
    check(model, data((draw.draw(some()), channels[0], *size), torch.float64), on((backend, "cpu"), model))


@pytest.mark.parametrize("backend", CPU)
@few
@given(b=some(), middle=st.lists(some(), max_size=2), rows=some(1, 6), d=some(), padding=st.booleans())
def test_embedding_of_any_shape(backend: str | None, b: int, middle: list[int], rows: int, d: int, padding: bool) -> None:
    model = Case(lambda: nn.Embedding(rows + 1, d, padding_idx=rows if padding else None), ()).model(torch.float64)
    check(model, data((b, *middle), ids=rows), on((backend, "cpu"), model))  # the last row is never looked up


@pytest.mark.parametrize("backend", CPU)
@few
@given(b=some(), middle=st.lists(some(2, 4), max_size=2), groups=some(), depth=some(2, 5), kind=st.sampled_from(["layer", "rms", "group"]))
def test_normalization_of_any_shape(backend: str | None, b: int, middle: list[int], groups: int, depth: int, kind: str) -> None:
    width = groups * depth
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "group": partial(nn.GroupNorm, groups)}[kind]
    model = Case(lambda: make(width), ()).model(torch.float64)
    shape = (b, width, *middle) if kind == "group" else (b, *middle, width)
    check(model, data(shape, torch.float64), on((backend, "cpu"), model), bound=1e-10)  # a group of two: nearly constant outputs


# ---- methods


@tiny
@pytest.mark.parametrize("method", ["direct", "gram", "pixel_gram"])
@pytest.mark.parametrize("name", ["linear 3d direct", "linear 3d gram", "conv2d groups", "conv2d stride that leaves a rest", "conv1d same"])
def test_methods_agree(name: str, method: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("linear") and method == "pixel_gram":
        method = "gram"
    model = LAYERS[name].model()
    backend = on(place, model)
    monkeypatch.setattr(Layer, "method", property(lambda _: method))
    check(model, LAYERS[name].input(samples=2), backend)


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv"))])
def test_weighted_gradient_out_of_inputs_and_output_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small layers of ``test_layer`` mostly keep each sample's gradient; the large ones of real models do not."""
    monkeypatch.setattr(Layer, "method", property(lambda _: "direct"))
    check(LAYERS[name].model(torch.float64), LAYERS[name].input(torch.float64), None)


@everywhere
@pytest.mark.parametrize(("name", "shape"), [("linear", (8, 64)), ("conv1d", (64, 24)), ("conv2d", (64, 6, 6))])
def test_gradients_that_cancel_have_no_negative_norm(name: str, shape: tuple[int, ...], place: Place) -> None:
    """Equal positions whose gradients sum to 0, as those of keys do in attention: a Gram form may leave either sign."""
    wide = {"linear": lambda: nn.Linear(64, 64, bias=False), "conv1d": lambda: nn.Conv1d(64, 64, 1, bias=False)}
    model = Case(wide.get(name, lambda: nn.Conv2d(64, 64, 3, bias=False)), ()).model()
    backend, along = on(place, model), 1 if name == "linear" else -1
    x = data((8, *shape)).to(place[1])
    x = x[:, :1].expand(-1, 8, -1) if name == "linear" else x.flatten(2)[..., :1].expand(-1, -1, x[0, 0].numel()).reshape(x.shape)

    def loss(y: Tensor) -> Tensor:
        c = data(y.shape).to(y) if name == "linear" else data(y.flatten(2).shape).to(y)
        return ((c - c.mean(along, keepdim=True)) * (y if name == "linear" else y.flatten(2))).flatten(1).sum(1)

    norms = run(model, x, loss, backend=backend)
    assert norms.norm.isfinite().all(), f"squared norms {norms.squared.tolist()}"
    assert norms.norm.max() <= 1


def test_the_cheapest_method_of_a_linear_layer() -> None:
    """By the rule of operations, gram iff T + 1 < 2 d p / (d + p), where the direct products are not the gradient anyway."""
    for t, d, p in [(3, 12, 10), (11, 12, 10), (9, 12, 10), (10, 12, 10), (1, 2, 9), (1, 1, 1)]:
        layer = Linear.of(torch.empty(2, t, d), torch.empty(p, d), (2, True, False, None, False, None))
        assert replace(layer, cpu=False).method == ("gram" if t + 1 < 2 * d * p / (d + p) else "direct")
    for t, d, p, method in [(1, 1024, 1024, "gram"), (65, 192, 768, "gram"), (512, 1024, 1024, "direct")]:
        assert Linear.of(torch.empty(1, t, d), torch.empty(p, d), (1, True, False, None, False, None)).method == method


def test_explain_names_modules_and_methods() -> None:
    for t, method in ((1, "gram"), (90, "direct")):
        model = nn.Sequential(nn.Linear(9, 8, bias=False), nn.GroupNorm(1, t))
        with per_sample.grad_norms(model, 2) as norms:
            model(data((2, t, 9)))
        head, linear, norm = norms.explain().splitlines()
        assert head.startswith("module")
        assert linear.startswith("0 ") and f" {method} " in linear.partition("positions")[2]
        assert norm.startswith("1 ") and "group norm" in norm
    model = Transformer(image=True)
    names = {name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    table = run(model, data((2, 3, 8, 8))).explain().splitlines()[1:]
    assert {line.split()[0] for line in table} == names and len(table) == len(names)


def test_the_cheapest_method_of_a_convolution() -> None:
    def of(t: int, c: int, p: int, k: int) -> Conv:
        w = torch.empty(p, c, k, k)
        return Conv.of(torch.empty(2, c, t + k - 1, t + k - 1), w, (2, True, True, None, False, None), 1, 0, 1, 1)

    assert of(32, 3, 8, 3).method == "direct" and of(4, 512, 512, 3).method == "pixel_gram"
    assert all(of(*shape).costs()[of(*shape).method] == min(of(*shape).costs().values()) for shape in [(8, 16, 16, 1), (2, 9, 99, 5)])


# ---- whole models


@everywhere
@both
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, dtype: torch.dtype, place: Place) -> None:
    case, loss = MODELS[name]
    model = case.model(dtype)
    check(model, case.input(dtype), on(place, model), loss)


@pytest.mark.parametrize("name", MODELS)
def test_model_with_frozen_parts(name: str) -> None:
    case, loss = MODELS[name]
    model = case.model(torch.float64).eval()
    for k, p in enumerate(model.parameters()):
        p.requires_grad_(k % 3 != 1)
    check(model, case.input(torch.float64), None, loss)


def test_channels_last_and_expanded_inputs() -> None:
    model = resnet().double().to(memory_format=torch.channels_last)
    check(model, data((B, 3, 8, 8), torch.float64).to(memory_format=torch.channels_last), None)
    check(nn.Linear(4, 3).double(), data((B, 1, 4), torch.float64).expand(-1, 5, -1), None)
    check(nn.Linear(4, 3).double(), data((4, 5, B), torch.float64).permute(2, 1, 0), None)


class Video(nn.Module):
    """Several images of each sample in one batch of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x.flatten(0, 1))).mean((2, 3))).view(len(x), -1)


@everywhere
def test_images_that_belong_to_one_sample(place: Place) -> None:
    model = Video().double()
    check(model, data((B, 4, 2, 5, 5), torch.float64), on(place, model))


# ---- batch normalization


@everywhere
@both
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batchnorm_contribution(kind: type[nn.Module], dtype: torch.dtype, place: Place) -> None:
    if kind is nn.BatchNorm1d:
        model, x = nn.Sequential(nn.Linear(5, 4, bias=False), kind(4), nn.Linear(4, 3)), data((B + 2, 5), dtype)
    else:
        model, x = resnet(kind), data((B + 2, 3, 8, 8), dtype)
    model = randomized(model).to(dtype)
    want = contributions(model, x)
    assert error(squares(oracle(model.eval(), x)), squares(want)) > 0.1  # it is another quantity
    check(model.train(), x, on(place, model), want=want, batchnorm="contribution")
    plain, again = copy.deepcopy(model), copy.deepcopy(model)
    plain(x.to(place[1]))
    run(again, x.to(place[1]), batchnorm="contribution")
    for got, there in zip(again.buffers(), plain.buffers(), strict=True):
        assert (got - there).abs().max().item() <= BOUND[dtype] * there.abs().max().item()


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_frozen(affine: bool) -> None:
    model = randomized(resnet(partial(nn.BatchNorm2d, affine=affine))).double()
    x = data((B, 3, 8, 8), torch.float64)
    before = {name: b.clone() for name, b in model.named_buffers()}
    check(model.train(), x, None, want=oracle(model.eval(), x), batchnorm="frozen")
    model.train()
    run(model, x, batchnorm="frozen")
    assert before and all(torch.equal(b, before[name]) for name, b in model.named_buffers() if "running" in name)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_batchnorm_in_training_is_refused(options: dict[str, bool]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, **options))
    policy = "frozen" if "track_running_stats" in options else "error"
    with pytest.raises(ValueError, match="contribution"), per_sample.grad_norms(model, B, batchnorm=policy):
        model(data((B, 5)))
    assert all(p.grad is None for p in model.parameters())
