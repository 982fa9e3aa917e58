"""Captured steps: replays give the bits of eager steps, leave no trace of the warm-up, and refuse what they would get wrong.

Without a GPU the graph is that of cpu_graph.py; with one the same tests run on CUDA graphs.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from cpu_graph import CpuRecorder, NoHost
from problems import MOMENTUM, batch
from torch import Tensor, nn

import sam_kernels
from sam_kernels import cuda_graph, ops
from sam_kernels.optim import ASAM, AUSAM, ESAM, SAM, AdaSAM, MicroBatchSAM, ReweightedSAM, StableSAM

PLACES = [("cpp", "cpu")]
if torch.cuda.is_available():
    PLACES += [pytest.param(place, marks=pytest.mark.gpu) for place in (("triton", "cuda"), (None, "cuda"))]
EXACT = {"lam": 1.0, "relative": True}


@pytest.fixture(autouse=True)
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda_graph.RECORDERS, "cpu", CpuRecorder)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Net(nn.Module):
    """With running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.dropout(self.norm(self.conv(x)).tanh().flatten(1), 0.1, self.training))


def net_on(device: str, kind: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return kind().to(device)


def habit_of(net: nn.Module, opt: SAM) -> Callable[[Tensor, Tensor], Tensor]:
    """A whole step of the kind that the batch rule wants."""

    def closure_step(x: Tensor, y: Tensor) -> Tensor:
        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        return opt.step(closure)

    def losses_step(x: Tensor, y: Tensor) -> Tensor:
        def losses(index: Tensor | None = None) -> Any:
            xb, yb = (x, y) if index is None else (x[index], y[index])
            return ops.cross_entropy_sample(net(xb), yb)

        return opt.step(losses, batch_size=len(y))

    return closure_step if type(opt.batch).__name__ == "WholeBatch" else losses_step


def two_phases(net: nn.Module, opt: SAM) -> Callable[[Tensor, Tensor], Tensor]:
    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        opt.first_step(zero_grad=True)
        nn.functional.cross_entropy(net(x), y).backward()
        opt.second_step(zero_grad=True)
        return loss

    return step


SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {"lr": 0.1},
    "momentum": {**MOMENTUM, "nesterov": True},
    "no_model": {**MOMENTUM, "model": None},
    "asam": {"kind": ASAM, **MOMENTUM},
    "stable": {"kind": StableSAM, **MOMENTUM},
    "clipped": {**MOMENTUM, "max_norm": 0.1},
    "unnormalized": {**MOMENTUM, "normalize": False},
    "adamw": {"base": "adamw", "lr": 0.01},
    "lion": {"base": "lion", "lr": 0.01},
    "adasam": {"kind": AdaSAM, "lr": 0.01},
    "groups": {"lr": 0.1, "momentum": 0.9, "groups": [{"rho": 0.1, "lr": 0.05}, {"rho": 0.0}, {"weight_decay": 0.1}]},
    "tensors": {"lr": 0.1, "momentum": 0.9, "capturable": True, "as_tensors": True},
    "two_phases": {**MOMENTUM, "habit": two_phases},
    "exact": {"kind": ReweightedSAM, **MOMENTUM, **EXACT, "batchnorm": "contribution"},
    "exact_drawn": {"kind": ReweightedSAM, **MOMENTUM, **EXACT, "batchnorm": "contribution", "draw": 5},
    "logits": {"kind": ReweightedSAM, **MOMENTUM, "lam": 1.0, "estimator": "logits"},
    "m_sam": {"kind": MicroBatchSAM, **MOMENTUM, "shards": 3},
    "m_sam_stable_adamw": {"kind": MicroBatchSAM, "base": "adamw", "lr": 0.01, "shard_size": 5, "descent": "stable"},
}


def build(net: nn.Module, setting: str, backend: str) -> tuple[SAM, Callable[[Tensor, Tensor], Tensor]]:
    options = dict(SETTINGS[setting])
    kind, base, groups, habit = (options.pop(key, x) for key, x in (("kind", SAM), ("base", "sgd"), ("groups", [{}]), ("habit", habit_of)))
    if options.get("descent") == "stable":
        options["descent"] = sam_kernels.optim.rules.Stable()
    params = list(net.parameters())
    dealt = [{"params": params[i :: len(groups)], **group} for i, group in enumerate(groups)]
    if options.pop("as_tensors", False):
        options.update(lr=torch.tensor(options["lr"], device=params[0].device), rho=torch.tensor(0.05, device=params[0].device))
    bases = {} if kind is AdaSAM else {"base_optimizer": base}
    opt = kind(dealt, **bases, **{"model": net, "backend": backend, **options})
    return opt, habit(net, opt)


def scheduled(opt: SAM, step: int) -> None:
    """Other lr and rho for the next step, numbers or in place."""
    for group in opt.param_groups:
        for key, factor in (("lr", 0.8), ("rho", 1.3)):
            group[key] = group[key].mul_(factor) if isinstance(group[key], Tensor) else group[key] * factor


def trained(
    setting: str, place: tuple[str, str], captured: bool, before: int = 0, steps: int = 4
) -> tuple[list[Tensor], list[Tensor], SAM]:
    """Losses, and weights, buffers and state, after ``before`` eager steps and ``steps`` that are captured or not."""
    backend, device = place
    net = net_on(device)
    opt, eager = build(net, setting, backend)
    batches = [batch(i, net) for i in range(before + steps)]
    for i in range(before):
        eager(*batches[i])
    step = sam_kernels.capture(eager, opt, *batches[before]) if captured else eager
    losses = []
    for i in range(before, before + steps):
        losses.append(step(*batches[i]).detach().clone())
        scheduled(opt, i)
    state = opt.state_dict()["state"]
    kept = [x for entry in state.values() for _, x in sorted(entry.items()) if isinstance(x, Tensor)]
    return losses, [*net.parameters(), *net.buffers(), *kept], opt


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_replays_have_the_bits_of_eager_steps(setting: str, before: int, place: tuple[str, str]) -> None:
    """From the first step on and after others, with lr and rho changing, dropout drawing and running statistics moving."""
    losses, after, _ = trained(setting, place, captured=True, before=before)
    expected_losses, expected, _ = trained(setting, place, captured=False, before=before)
    assert len(after) == len(expected) and all(map(torch.equal, after, expected))
    assert all(map(torch.equal, losses, expected_losses))


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_eager_steps_never_wait_for_the_device(setting: str, place: tuple[str, str]) -> None:
    backend, device = place
    net = net_on(device)
    step = build(net, setting, backend)[1]
    x, y = batch(0, net)
    for _ in range(2):
        step(x, y)
    if device == "cpu":
        with NoHost():
            step(x, y)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            step(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- what a capture leaves


def everything(net: nn.Module, opt: SAM) -> list[Any]:
    entries = len(opt.state)
    state = opt.state_dict()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    tensors = [x.clone() for x in (*net.state_dict().values(), torch.get_rng_state(), *grads)]
    tensors += torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kept = [x.clone() for entry in state["state"].values() for _, x in sorted(entry.items())]
    numbers = [entries, sum(p.grad is None for p in net.parameters()), opt.grad_norm is None, opt.sample_norms is None]
    return [*tensors, *kept, *numbers, repr(state["param_groups"]), opt.capturable]


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("setting", ["momentum", "no_model", "adamw", "groups", "tensors", "exact"])
def test_a_capture_changes_nothing(setting: str, before: int, place: tuple[str, str]) -> None:
    backend, device = place
    net = net_on(device)
    opt, step = build(net, setting, backend)
    for i in range(before):
        step(*batch(i, net))
    kept = everything(net, opt)
    sam_kernels.capture(step, opt, *batch(0, net))
    assert equal(kept, everything(net, opt))


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("call", [1, 2, 3, 4, 7])  # of the network, two to a step: warm-up, then the capture
def test_a_step_that_raises_leaves_everything_as_it_was(call: int, place: tuple[str, str]) -> None:
    backend, device = place
    net = net_on(device)
    opt, step = build(net, "momentum", backend)
    step(*batch(0, net))
    kept, calls = everything(net, opt), []

    def failing(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise ZeroDivisionError

    handle = net.register_forward_pre_hook(failing)
    with pytest.raises(ZeroDivisionError):
        sam_kernels.capture(step, opt, *batch(0, net))
    handle.remove()
    assert len(calls) == call and equal(kept, everything(net, opt)) and opt._phase == "clean"
    step(*batch(1, net))


def test_a_checkpoint_between_capture_and_replay_loses_no_state() -> None:
    """state_dict() takes entries away that no update has written."""
    net = net_on("cpu")
    opt, step = build(net, "momentum", "cpp")
    captured = sam_kernels.capture(step, opt, *batch(0, net))
    assert not opt.state_dict()["state"]
    captured(*batch(0, net))
    expected = trained("momentum", ("cpp", "cpu"), captured=False, steps=1)[2].state_dict()["state"]
    found = opt.state_dict()["state"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k]["momentum_buffer"], expected[k]["momentum_buffer"]) for k in found)


def test_eager_steps_in_between() -> None:
    mixed, plain = net_on("cpu"), net_on("cpu")
    (opt, step), (_, eager) = build(mixed, "momentum", "cpp"), build(plain, "momentum", "cpp")
    captured = sam_kernels.capture(step, opt, *batch(0, mixed))
    torch.manual_seed(1)
    for i in range(6):
        (captured if i % 3 else step)(*batch(i, mixed))
    torch.manual_seed(1)
    for i in range(6):
        eager(*batch(i, plain))
    assert all(map(torch.equal, mixed.parameters(), plain.parameters()))


def test_state_put_into_the_optimizer_is_taken_over() -> None:
    found = []
    for graph in (True, False):
        net = net_on("cpu")
        opt, step = build(net, "momentum", "cpp")
        step = sam_kernels.capture(step, opt, *batch(0, net)) if graph else step
        step(*batch(0, net))
        p = net.out.weight
        opt.state[p]["momentum_buffer"] = torch.ones_like(p)
        step(*batch(1, net))
        found.append(p.detach())
    assert torch.equal(*found)


def changed_momentum(opt: SAM, net: nn.Module) -> None:
    opt.state[net.out.weight]["momentum_buffer"] = torch.ones_like(net.out.weight)


def forgotten(opt: SAM, net: nn.Module) -> None:
    opt.state.clear()


def one_forgotten(opt: SAM, net: nn.Module) -> None:
    del opt.state[net.out.weight]


def doubled(opt: SAM, net: nn.Module) -> None:
    net.double()


def laid_out(opt: SAM, net: nn.Module) -> None:
    net.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("setting", ["momentum", "adamw"])
@pytest.mark.parametrize("change", [changed_momentum, forgotten, one_forgotten, doubled, laid_out])
def test_what_was_changed_before_a_capture_counts(change: Any, setting: str) -> None:
    found = []
    for graph in (True, False):
        net = net_on("cpu")
        opt, step = build(net, setting, "cpp")
        for i in range(2):
            step(*batch(i, net))
        if not (change is changed_momentum and setting == "adamw"):
            change(opt, net)
        step = sam_kernels.capture(step, opt, *batch(2, net)) if graph else step
        for i in range(3):
            step(*batch(i, net))
        found.append(net.out.weight.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_the_plain_base_finds_no_state_of_a_warm_up(base: Any) -> None:
    found = []
    for graph in (True, False):
        net = net_on("cpu")
        opt = SAM(net.parameters(), base, lr=0.1, model=net, **({"momentum": 0.9, "dampening": 0.5} if base is torch.optim.SGD else {}))
        if graph:
            sam_kernels.capture(habit_of(net, opt), opt, *batch(0, net))
        nn.functional.cross_entropy(net(batch(0, net)[0]), batch(0, net)[1]).backward()
        opt.base_optimizer.step()
        found.append(net.out.weight.detach())
    assert torch.equal(*found)


def test_a_replay_leaves_what_an_eager_step_leaves() -> None:
    net = net_on("cpu")
    opt, step = build(net, "logits", "cpp")
    fast = sam_kernels.capture(step, opt, *batch(0, net))
    assert opt.sample_norms is None and opt.grad_norm is None and net.out.weight.grad is None
    torch.manual_seed(3)
    fast(*batch(1, net))
    graph = [opt.sample_norms.clone(), opt.grad_norm.clone(), net.out.weight.grad.clone()]
    x, y = batch(2, net)
    step(x[:5], y[:5])
    assert opt.sample_norms.shape == (5,)
    other = net_on("cpu")
    opt2, eager = build(other, "logits", "cpp")
    torch.manual_seed(3)
    eager(*batch(1, other))
    assert all(map(torch.equal, graph, [opt2.sample_norms, opt2.grad_norm, other.out.weight.grad]))
    fast(*batch(1, net))
    assert opt.sample_norms.shape == (12,)


def test_inputs_with_a_graph_leave_none_behind() -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")
    x, y = batch(0, net)
    scale = torch.ones((), requires_grad=True)
    fast = sam_kernels.capture(step, opt, x, y)
    fast(x * scale, y)
    assert not any(own.requires_grad for own in fast._inputs)


def test_a_step_that_writes_its_inputs_finds_them_as_given() -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")

    def shifting(x: Tensor, y: Tensor) -> Tensor:
        seen.append(y.clone())
        y.add_(1).remainder_(3)
        return step(x, y)

    seen: list[Tensor] = []
    sam_kernels.capture(shifting, opt, *batch(0, net), warmup=4)
    assert all(y.equal(batch(0, net)[1]) for y in seen[:4])


def test_lr_and_rho_that_come_back_are_followed() -> None:
    found = []
    for graph in (True, False):
        net = net_on("cpu")
        opt, step = build(net, "momentum", "cpp")
        step = sam_kernels.capture(step, opt, *batch(0, net)) if graph else step
        for i, (lr, rho) in enumerate([(0.1, 0.05), (0.4, 0.5), (0.1, 0.05)]):
            opt.param_groups[0].update(lr=lr, rho=rho)
            step(*batch(i, net))
        found.append(net.out.weight.detach())
    assert torch.equal(*found)


def test_gradients_from_before_are_not_part_of_the_graph() -> None:
    """Who sets them to None later would free what replays write to."""
    net = net_on("cpu")
    opt, _ = build(net, "momentum", "cpp")
    seen = []

    def step(x: Tensor, y: Tensor) -> None:
        seen.append(net.out.weight.grad)
        for phase in (opt.first_step, opt.second_step):
            opt.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(net(x), y).backward()
            phase()

    sam_kernels.capture(step, opt, *batch(0, net), warmup=2)
    assert [x is None for x in seen] == [True, False, True]


def test_schedulers_and_version_counters() -> None:
    net = net_on("cpu")
    opt, step = build(net, "momentum", "cpp")
    captured = sam_kernels.capture(step, opt, *batch(0, net))
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    before = net.out.weight._version
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3):
            captured(*batch(i, net))
            scheduler.step()
    assert net.out.weight._version >= before + 3 and isinstance(opt.param_groups[0]["lr"], float)
    assert opt.param_groups[0]["lr"] == MOMENTUM["lr"] / 8


def test_outputs_are_the_graphs_own_and_memory_goes_with_it() -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")
    captured = sam_kernels.capture(lambda x, y: {"loss": step(x, y), "n": 3}, opt, *batch(0, net))
    one = captured(*batch(0, net))
    kept, first = one["loss"], one["loss"].item()
    assert not kept.requires_grad and one["n"] == 3
    assert captured(*batch(1, net))["loss"] is kept and kept.item() != first
    held = ref(captured)
    del captured
    gc.collect()
    assert held() is None


# ---- what is refused


REFUSED: dict[str, tuple[Callable[[nn.Module], SAM], str]] = {
    "generic": (lambda net: SAM(net.parameters(), torch.optim.RMSprop, lr=0.1), "base RMSprop is not fused"),
    "reference": (lambda net: SAM(net.parameters(), "sgd", lr=0.1, backend="reference"), "reference backend"),
    "esam coins": (lambda net: ESAM(net.parameters(), "sgd", lr=0.1, beta=0.5, gamma=1.0), "tosses its coins on the host"),
    "esam": (lambda net: ESAM(net.parameters(), "sgd", lr=0.1, beta=1.0, gamma=0.5), "rewinds torch's generators"),
    "ausam": (lambda net: AUSAM(net.parameters(), "sgd", lr=0.1, num_samples=12), "counts its passes"),
    "probes": (
        lambda net: ReweightedSAM(net.parameters(), "sgd", lr=0.1, lam=1.0, estimator="finite_difference"),
        "rewinds torch's generators",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_would_get_wrong_is_refused_before_anything_runs(name: str) -> None:
    make, message = REFUSED[name]
    net = net_on("cpu")

    def never(x: Tensor, y: Tensor) -> None:
        raise AssertionError("run")

    with pytest.raises(ValueError, match=message):
        sam_kernels.capture(never, make(net), *batch(0, net))


def test_esam_without_host_decisions_is_captured() -> None:
    net = net_on("cpu")
    opt = ESAM(net.parameters(), "sgd", lr=0.1, beta=1.0, gamma=1.0)
    sam_kernels.capture(habit_of(net, opt), opt, *batch(0, net))(*batch(1, net))


def test_wrong_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")
    x, y = batch(0, net)
    for error, message, call in (
        (TypeError, "step is int", lambda: sam_kernels.capture(3, opt)),
        (TypeError, "optimizer is SGD", lambda: sam_kernels.capture(step, torch.optim.SGD(net.parameters()))),
        (TypeError, r"inputs\[1\] is int", lambda: sam_kernels.capture(step, opt, x, 3)),
        (ValueError, "warmup is 1", lambda: sam_kernels.capture(step, opt, x, y, warmup=1)),
        (ValueError, "without a step of the optimizer", lambda: sam_kernels.capture(lambda: None, opt)),
    ):
        with pytest.raises(error, match=message):
            call()
    opt.perturb_signs(opt.draw_noise(), 0.1)
    with pytest.raises(RuntimeError, match="perturbed"):
        sam_kernels.capture(step, opt, x, y)
    opt.restore()
    monkeypatch.delitem(cuda_graph.RECORDERS, "cpu")
    with pytest.raises(ValueError, match="parameters are on cpu; expected one CUDA device"):
        sam_kernels.capture(step, opt, x, y)


def test_a_step_that_leaves_the_weights_perturbed_is_refused() -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")
    kept = everything(net, opt)

    def leaves(x: Tensor, y: Tensor) -> None:
        step(x, y)
        nn.functional.cross_entropy(net(x), y).backward()
        opt.first_step()

    with pytest.raises(RuntimeError, match="perturbed"):
        sam_kernels.capture(leaves, opt, *batch(0, net))
    assert equal(kept, everything(net, opt))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_step_that_waits_for_the_device_is_refused(place: tuple[str, str]) -> None:
    backend, device = place
    net = net_on(device)
    opt, step = build(net, "sam", backend)
    kept = everything(net, opt)
    with pytest.raises(RuntimeError, match="step waits for the device"):
        sam_kernels.capture(lambda x, y: step(x, y).item(), opt, *batch(0, net))
    assert equal(kept, everything(net, opt))
    torch.rand(1, device=device)
    sam_kernels.capture(step, opt, *batch(0, net))(*batch(1, net))  # nothing is left behind


def test_a_buffer_that_every_step_replaces_is_refused() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            return self.inner(x)

    net = net_on("cpu", Average)
    opt, step = build(net, "sam", "cpp")
    mean = net.mean
    with pytest.raises(ValueError, match="buffer 'mean' of Average"):
        sam_kernels.capture(step, opt, *batch(0, net))
    assert net.mean is mean and mean.item() == 0


def test_a_step_that_writes_lr_is_refused() -> None:
    net = net_on("cpu")
    opt, step = build(net, "momentum", "cpp")
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)

    def both(x: Tensor, y: Tensor) -> None:
        step(x, y)
        scheduler.step()

    with pytest.raises(ValueError, match=r"lr of group 0 is changed inside of step\(\)"):
        sam_kernels.capture(both, opt, *batch(0, net))


def test_a_second_optimizer_in_the_step_is_refused() -> None:
    net = net_on("cpu")
    opt, step = build(net, "momentum", "cpp")
    w = nn.Parameter(torch.ones(3))
    other = torch.optim.SGD([w], lr=0.1)

    def both(x: Tensor, y: Tensor) -> None:
        step(x, y)
        other.step()

    with pytest.raises(ValueError, match=r"step\(\) also steps a SGD"):
        sam_kernels.capture(both, opt, *batch(0, net))


def test_gradients_of_others_are_refused() -> None:
    net = net_on("cpu")
    opt = SAM(net.out.parameters(), "sgd", lr=0.1, model=net)
    with pytest.raises(ValueError, match="weight of Conv2d gets a gradient in step"):
        sam_kernels.capture(habit_of(net, opt), opt, *batch(0, net))
    net.conv.requires_grad_(False)
    net.norm.requires_grad_(False)
    sam_kernels.capture(habit_of(net, opt), opt, *batch(0, net))


def loaded(opt: SAM, net: nn.Module) -> None:
    opt.load_state_dict(opt.state_dict())


def cast(opt: SAM, net: nn.Module) -> None:
    net.out.weight.data = net.out.weight.data.clone()


def grown(opt: SAM, net: nn.Module) -> None:
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def momentum(opt: SAM, net: nn.Module) -> None:
    opt.param_groups[0]["momentum"] = 0.5


def not_finite(opt: SAM, net: nn.Module) -> None:
    opt.param_groups[0]["lr"] = float("nan")


def negative(opt: SAM, net: nn.Module) -> None:
    opt.param_groups[0].update(lr=0.5, rho=-0.1)


def halfway(opt: SAM, net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    opt.first_step()


def evaluated(opt: SAM, net: nn.Module) -> None:
    net.eval()


def frozen(opt: SAM, net: nn.Module) -> None:
    net.out.bias.requires_grad_(False)


def clipped(opt: SAM, net: nn.Module) -> None:
    opt.max_norm = 0.1


def other_rule(opt: SAM, net: nn.Module) -> None:
    opt.descent = sam_kernels.optim.rules.Stable()


def other_buffer(opt: SAM, net: nn.Module) -> None:
    net.norm.running_mean = torch.zeros(4)


def moved_buffer(opt: SAM, net: nn.Module) -> None:
    net.norm.running_mean.data = torch.zeros(4)


def offloaded(opt: SAM, net: nn.Module) -> None:
    for entry in opt.state.values():
        entry["momentum_buffer"].data = entry["momentum_buffer"].data.clone()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (evaluated, RuntimeError, "is in evaluation mode, and was captured in training mode"),
        (frozen, RuntimeError, "requires_grad of a parameter"),
        (clipped, RuntimeError, "max_norm of the optimizer is 0.1"),
        (other_rule, RuntimeError, "descent of the optimizer is Stable"),
        (other_buffer, RuntimeError, "buffer or a frozen parameter of the model was replaced"),
        (moved_buffer, RuntimeError, "buffer or a frozen parameter of the model was replaced"),
        (offloaded, RuntimeError, "capture again"),
        (loaded, RuntimeError, "capture again"),
        (cast, RuntimeError, "capture again"),
        (grown, RuntimeError, "capture again"),
        (momentum, RuntimeError, "momentum of group 0 is 0.5, and was 0.9"),
        (not_finite, ValueError, "lr of group 0 is nan"),
        (negative, ValueError, "rho of group 0 is -0.1"),
        (halfway, RuntimeError, "perturbed"),
    ],
)
def test_a_replay_refuses_an_optimizer_that_is_another_than_was_captured(change: Any, error: Any, message: str) -> None:
    net = net_on("cpu")
    opt, step = build(net, "momentum", "cpp")
    captured = sam_kernels.capture(step, opt, *batch(0, net))
    captured(*batch(0, net))
    change(opt, net)
    kept = [x.clone() for x in net.state_dict().values()]
    live = [x.tensor.clone() for x in captured._options._live]
    with pytest.raises(error, match=message):
        captured(*batch(1, net))
    assert all(map(torch.equal, kept, net.state_dict().values()))
    assert all(torch.equal(a, b.tensor) for a, b in zip(live, captured._options._live, strict=True))


def test_a_replaced_tensor_option_is_refused() -> None:
    net = net_on("cpu")
    opt, step = build(net, "tensors", "cpp")
    captured = sam_kernels.capture(step, opt, *batch(0, net))
    opt.param_groups[0]["lr"] = torch.tensor(0.5)
    with pytest.raises(RuntimeError, match="another object"):
        captured(*batch(1, net))


def test_other_inputs_are_refused() -> None:
    net = net_on("cpu")
    opt, step = build(net, "sam", "cpp")
    x, y = batch(0, net)
    captured = sam_kernels.capture(step, opt, x, y)
    for error, message, inputs in (
        (TypeError, "1 inputs given", (x,)),
        (ValueError, "fixed shapes", (x[:5], y[:5])),
        (ValueError, r"inputs\[0\] is \(12, 1, 6, 6\) torch.float16", (x.half(), y)),
        (ValueError, r"inputs\[1\] is list", (x, [1])),
    ):
        with pytest.raises(error, match=message):
            captured(*inputs)
