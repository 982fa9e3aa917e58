"""SAM around a compiled model, inside a compiled function, and under torch's switches for deterministic runs."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import skip_or_fail
from problems import MOMENTUM, batch, closure_of, model, same, train, weights
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sam_kernels.optim import SAM, StableSAM, frozen_batchnorm
from sam_kernels.registry import OPS

STEPS = 4
BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": ("sgd", MOMENTUM),
    "adamw": ("adamw", {"lr": 0.01}),
    "generic": (torch.optim.RMSprop, {"lr": 0.01}),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpp", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    for op in OPS.values():
        if request.param not in op.implementations:
            skip_or_fail(request.param, op.missing.get(request.param, "not built"))
    return request.param


def phases(net: nn.Module, opt: SAM, step: int) -> None:
    for phase in (opt.first_step, opt.second_step):
        closure_of(net, step)()
        phase(zero_grad=True)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("habit", ["phases", "closure"])
@pytest.mark.parametrize("kind", [SAM, StableSAM])
def test_a_compiled_model_trains_as_the_eager_one_and_is_compiled_once(kind: type[SAM], habit: str, base: str, backend: str) -> None:
    eager, inner = model(dtype=torch.float32), model(dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(inner, backend=counter, fullgraph=True)
    cls, options = BASES[base]
    for net in (eager, compiled):
        opt = kind(net.parameters(), cls, backend=backend, **options)
        for step in range(STEPS):
            if habit == "phases":
                phases(net, opt, step)
            else:
                opt.step(closure_of(net, step))
            if net is compiled and step == 0:
                torch._dynamo.config.error_on_recompile = True
        torch._dynamo.config.error_on_recompile = False
    assert counter.frame_count == 1, "one graph for every pass of every step"
    assert same(eager, inner)


@pytest.fixture(autouse=True)
def recompiling_is_allowed_again() -> Iterator[None]:
    yield
    torch._dynamo.config.error_on_recompile = False


def training_step(net: nn.Module, opt: SAM, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    opt.first_step(zero_grad=True)
    nn.functional.cross_entropy(net(x), y).backward()
    opt.second_step(zero_grad=True)
    return loss.detach()


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_function_with_the_whole_step_compiles_with_the_model_in_one_piece(base: str, backend: str) -> None:
    eager, net = model(dtype=torch.float32), model(dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(training_step, backend=counter)
    cls, options = BASES[base]
    opts = [SAM(n.parameters(), cls, backend=backend, **options) for n in (eager, net)]
    frames = []
    for step in range(STEPS):
        x, y = batch(step, net)
        losses = training_step(eager, opts[0], x, y), compiled(net, opts[1], x, y)
        assert torch.equal(*losses)
        frames.append(counter.frame_count)
    assert same(eager, net)
    forwards = [graph for graph in counter.graphs if any("linear" in str(node.target) for node in graph.graph.nodes)]
    assert len(forwards) == 2, "one graph for each pass"
    for graph in forwards:
        targets = [str(node.target) for node in graph.graph.nodes]
        assert sum("conv2d" in t for t in targets) == 1 and sum("linear" in t for t in targets) == 2, "the forward was cut"
    assert frames[-1] == frames[1], f"compiled again in later steps: {frames}"


def test_a_schedule_does_not_compile_the_whole_step_again(backend: str) -> None:
    """The options of a step are data. As constants of a graph they would cost a compilation per step, until dynamo gives up."""
    eager, net = model(dtype=torch.float32), model(dtype=torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(training_step, backend=counter)
    opts = [SAM(n.parameters(), "sgd", backend=backend, **MOMENTUM) for n in (eager, net)]
    frames = []
    for step in range(5):
        x, y = batch(step, net)
        for opt in opts:
            opt.param_groups[0].update(lr=0.1 * 0.9**step, rho=0.05 * 0.8**step)
        training_step(eager, opts[0], x, y), compiled(net, opts[1], x, y)
        frames.append(counter.frame_count)
    assert same(eager, net)
    assert frames[-1] == frames[1], f"compiled again in later steps: {frames}"


def test_step_with_a_closure_inside_a_compiled_function(backend: str) -> None:
    net, other = model(dtype=torch.float32), model(dtype=torch.float32)
    opt, eager = (SAM(n.parameters(), "sgd", backend=backend, **MOMENTUM) for n in (net, other))
    compiled = torch.compile(lambda: opt.step(closure_of(net, 0)), backend="aot_eager")
    for _ in range(3):
        assert torch.equal(compiled(), eager.step(closure_of(other, 0)))
    assert same(net, other)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", [SAM, StableSAM])
def test_deterministic_algorithms(kind: type[SAM], base: str, backend: str) -> None:
    """New memory is filled with NaN under this switch: what an optimizer reads before it writes would show."""
    nets = [model(dtype=torch.float32) for _ in range(3)]
    cls, options = BASES[base]
    assert torch.utils.deterministic.fill_uninitialized_memory
    for net, strict in zip(nets, (False, True, True), strict=True):
        torch.use_deterministic_algorithms(strict)
        try:
            train(net, kind(net.parameters(), cls, backend=backend, max_norm=0.5, **options), STEPS)
        finally:
            torch.use_deterministic_algorithms(False)
    assert same(nets[0], nets[1]) and same(nets[1], nets[2])
    assert all(torch.isfinite(w).all() for w in weights(nets[0]))


def normed(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3)).to(dtype)


@pytest.mark.parametrize("habit", ["phases", "closure"])
def test_frozen_batchnorm_in_a_compiled_model(habit: str, backend: str) -> None:
    """Two graphs, one that counts and one that does not, and no third; the eager numbers, buffers and all."""
    eager = normed()
    inner = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(inner, backend=counter, fullgraph=True)
    for net in (eager, compiled):
        opt = SAM(net.parameters(), "sgd", model=net, backend=backend, lr=0.1)
        for step in range(STEPS):
            if habit == "closure":
                opt.step(closure_of(net, step))
            else:
                closure_of(net, step)()
                opt.first_step(zero_grad=True)
                with frozen_batchnorm(net):
                    closure_of(net, step)()
                opt.second_step(zero_grad=True)
    assert all(torch.equal(a, b) for a, b in zip(eager.state_dict().values(), inner.state_dict().values(), strict=True))
    assert int(inner[1].num_batches_tracked) == STEPS
    assert counter.frame_count == 2
