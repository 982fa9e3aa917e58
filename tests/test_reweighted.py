"""Reweighted SAM against its equations on fp64 tensors, one sample at a time; then what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import problems
import pytest
import torch
import torch.nn.functional as F
from conftest import require_ops
from tolerance import assert_loop
from torch import Tensor, nn

from sam_kernels import ops
from sam_kernels.optim import SAM, ReweightedSAM, rules
from sam_kernels.registry import OPS

B, STEPS = 12, 20
OPTIONS: dict[str, Any] = {"rho": 0.05, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}


@pytest.fixture(params=["reference", "cpp", "triton", None])
def backend(request: pytest.FixtureRequest) -> str | None:
    name = request.param
    if name is not None:
        require_ops(name, "cpu", OPS)
    return name


def sample_gradients(net: nn.Module, x: Tensor, y: Tensor) -> list[list[Tensor]]:
    params = list(net.parameters())
    return [list(torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), params)) for i in range(len(y))]


def norms_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([sum(g.square().sum() for g in gradients).sqrt() for gradients in sample_gradients(net, x, y)])


def logit_norms(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x).softmax(1) - F.one_hot(y, 3)).norm(dim=1).detach()


def plain_loop(
    net: nn.Module, weigh: Callable[[Tensor], Tensor], steps: int, norms: Callable[..., Tensor] = norms_of, stable: bool = False,
    adaptive: bool = False,
) -> None:  # fmt: skip
    """``weigh``: norms -> weights."""
    params = list(net.parameters())
    buffers = [torch.zeros_like(p) for p in params]
    for step in range(steps):
        x, y = problems.batch(step, net)
        p = weigh(norms(net, x, y))
        rows = sample_gradients(net, x, y)
        g = [sum(p[i] * rows[i][k] for i in range(B)) for k in range(len(params))]
        c = [w.detach().abs() if adaptive else torch.ones_like(w) for w in params]
        scale = OPTIONS["rho"] / (torch.cat([(a * b).flatten() for a, b in zip(c, g, strict=True)]).norm() + 1e-12)
        clean = [w.detach().clone() for w in params]
        with torch.no_grad():
            for w, a, b in zip(params, c, g, strict=True):
                w += scale * a * a * b
        h = list(torch.autograd.grad(F.cross_entropy(net(x), y), params))
        factor = torch.cat([a.flatten() for a in g]).norm() / torch.cat([a.flatten() for a in h]).norm() if stable else 1.0
        with torch.no_grad():
            for w, w0, d, buffer in zip(params, clean, h, buffers, strict=True):
                buffer.mul_(OPTIONS["momentum"]).add_(factor * d + OPTIONS["weight_decay"] * w0)
                w.copy_(w0 - OPTIONS["lr"] * buffer)


def losses_of(net: nn.Module, step: int, logits: bool = False) -> Callable[..., Any]:
    x, y = problems.batch(step, net)

    def losses(index: Tensor | None = None) -> Any:
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return ops.cross_entropy_sample(net(xb), yb) if logits else F.cross_entropy(net(xb), yb, reduction="none")

    return losses


def train(net: nn.Module, steps: int, **options: Any) -> ReweightedSAM:
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, model=net, **{**OPTIONS, **options})
    for step in range(steps):
        loss = optimizer.step(losses_of(net, step, options.get("estimator") == "logits"), batch_size=B)
        assert loss.dim() == 0 and not loss.requires_grad
    return optimizer


def softmax(lam: float, relative: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda s: torch.softmax(lam * (s / s.mean() if relative else s), 0)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact": ({"weigh": softmax(1.5)}, {"lam": 1.5}),
    "relative": ({"weigh": softmax(3.0, True)}, {"lam": 3.0, "relative": True}),
    "device_lam": ({"weigh": softmax(1.5)}, {"lam": torch.tensor(1.5, dtype=torch.float64)}),
    "none": ({"weigh": softmax(0.0)}, {"lam": 0.0}),
    "worst": ({"weigh": lambda s: F.one_hot(s.argmax(), B).to(s)}, {"lam": 1e7}),
    "logits": ({"weigh": softmax(4.0), "norms": logit_norms}, {"lam": 4.0, "estimator": "logits"}),
    "stable": ({"weigh": softmax(1.5), "stable": True}, {"lam": 1.5, "descent": rules.Stable()}),
    "adaptive": ({"weigh": softmax(1.5), "adaptive": True}, {"lam": 1.5, "adaptive": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["reference", "cpp"])  # the backends that have fp64
def test_twenty_steps(case: str, name: str) -> None:
    loop, options = CASES[case]
    net, twin = problems.model(), problems.model()
    plain_loop(twin, steps=STEPS, **loop)
    train(net, STEPS, backend=name, **options)
    assert_loop(case, list(net.parameters()), list(twin.parameters()))


def test_in_fp32_on_every_backend(backend: str | None) -> None:
    net, twin = problems.model(dtype=torch.float32), problems.model()
    optimizer = train(net, 2, lam=1.5, backend=backend)
    plain_loop(twin, softmax(1.5), 1)
    norms = norms_of(twin, *problems.batch(1, twin))
    torch.testing.assert_close(optimizer.sample_norms.double(), norms, rtol=1e-4, atol=0)  # of weights that have gone their own way
    torch.testing.assert_close(optimizer.sample_weights.weights.double(), torch.softmax(1.5 * norms, 0), rtol=1e-3, atol=0)


def test_lam_zero_is_sam() -> None:
    net, twin = problems.model(), problems.model()
    train(net, STEPS, lam=0.0)
    optimizer = SAM(twin.parameters(), torch.optim.SGD, **OPTIONS)
    for step in range(STEPS):
        optimizer.step(problems.closure_of(twin, step))
    assert_loop("sam", list(net.parameters()), list(twin.parameters()))


def test_many_probes_see_the_norms(backend: str | None) -> None:
    """The root mean square over probes has the norm as its limit; r probes leave a relative spread of about 1 / sqrt(2 r)."""
    net, probes = problems.model(dtype=torch.float32), 20 if backend == "triton" else 800
    clean = [p.detach().clone() for p in net.parameters()]
    torch.manual_seed(3)
    options = {"estimator": "finite_difference", "probes": probes, "delta": 1e-3}
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, rho=0.0, lr=0.0, backend=backend, **options)
    optimizer.step(losses_of(net, 0), batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)), "probes leave their mark on the weights"
    truth = norms_of(problems.model(), *problems.batch(0, problems.model()))
    relative = (optimizer.sample_norms.double() - truth).abs() / truth
    assert relative.mean() < 3 * (2 * probes) ** -0.5 and relative.max() < 8 * (2 * probes) ** -0.5


def test_probes_are_reproducible_and_replay_dropout() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        net = nn.Sequential(problems.model(), nn.Dropout(0.5)).train()
        seen: list[Tensor] = []
        hook = net[1].register_forward_hook(lambda _m, _x, y, seen=seen: seen.append((y == 0).clone()))
        optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, estimator="finite_difference", probes=2, **OPTIONS)
        optimizer.step(losses_of(net, 0), batch_size=B)
        hook.remove()
        assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]), "a mask of its own in a probe"
        assert not torch.equal(seen[0], seen[3]), "the second pass draws fresh masks"
        runs.append([*net.parameters(), optimizer.sample_norms])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("change", ["data", "double", "channels_last"])
def test_probes_follow_parameters_that_move(change: str) -> None:
    net = problems.model(dtype=torch.float32)
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, estimator="finite_difference", rho=0.05, lr=0.0)
    optimizer.step(losses_of(net, 0), batch_size=B)
    if change == "data":
        for p in net.parameters():
            p.data = p.detach() * 0.5
    elif change == "double":
        net.double()
    else:
        net.to(memory_format=torch.channels_last)
    clean = [p.detach().clone() for p in net.parameters()]
    optimizer.step(losses_of(net, 1), batch_size=B)
    assert all(torch.equal(p, w) and p.dtype == w.dtype for p, w in zip(net.parameters(), clean, strict=True))
    norms = norms_of(net, *problems.batch(1, net))
    assert optimizer.sample_norms.max() < 8 * norms.max()


def test_probes_refuse_half_weights() -> None:
    net = problems.model(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"delta=0\.0001 drowns"):
        ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, estimator="finite_difference", **OPTIONS)


def test_exact_refuses_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = problems.model()
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match="estimator 'logits' with several ranks"):
        optimizer.step(losses_of(net, 0), batch_size=B)


def test_exact_refuses_parameters_out_of_sight() -> None:
    net, alone = problems.model(), nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="parameter 6 of group 0"):
        ReweightedSAM([*net.parameters(), alone], torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    optimizer.add_param_group({"params": [alone]})
    with pytest.raises(ValueError, match="parameter 0 of group 1"):
        optimizer.step(losses_of(net, 0), batch_size=B)


def test_batchnorm_counts_one_pass() -> None:
    for estimator in ("exact", "finite_difference"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
        train(net, 3, lam=1.0, estimator=estimator, batchnorm="contribution")
        assert net[2].num_batches_tracked == 3


def test_composes_with_every_base_and_two_dtypes() -> None:
    for base in ("adamw", "lion", torch.optim.RMSprop):
        net = problems.model()
        optimizer = ReweightedSAM(net.parameters(), base, lam=1.0, model=net, lr=0.01)
        first = optimizer.step(losses_of(net, 0), batch_size=B)
        for _ in range(10):
            last = optimizer.step(losses_of(net, 0), batch_size=B)
        assert last < first
    copied = copy.deepcopy(optimizer)
    assert copied.batch == optimizer.batch


def test_other_networks_keep_their_gradients() -> None:
    """Parameters that the optimizer does not own: frozen ones do not count, trainable ones keep what they have from pass 1."""
    net = problems.model()
    head, body = net[5], net[:5]
    optimizer = ReweightedSAM(head.parameters(), torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    marks = [torch.full_like(p, 7.0) for p in body.parameters()]
    for p, mark in zip(body.parameters(), marks, strict=True):
        p.requires_grad_(False)
        p.grad = mark
    optimizer.step(losses_of(net, 0), batch_size=B)
    assert all(p.grad is mark and bool((mark == 7).all()) for p, mark in zip(body.parameters(), marks, strict=True))
    x, y = problems.batch(0, net)
    fresh = problems.model()
    for p in fresh[:5].parameters():
        p.requires_grad_(False)
    rows = [torch.autograd.grad(F.cross_entropy(fresh(x[i : i + 1]), y[i : i + 1]), list(fresh[5].parameters())) for i in range(B)]
    torch.testing.assert_close(optimizer.sample_norms, torch.stack([sum(g.square().sum() for g in row).sqrt() for row in rows]))


# ---- what is refused, with nothing written

BAD_STEPS: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], type[Exception], str]] = {
    "no_batch_size": (lambda net: losses_of(net, 0), {}, ValueError, "batch_size is None"),
    "wrong_batch_size": (lambda net: losses_of(net, 0), {"batch_size": 7}, ValueError, "not a multiple of batch_size=7"),
    "reduced": (lambda net: lambda index=None: losses_of(net, 0)().mean(), {"batch_size": B}, ValueError, "reduced already"),
    "ignores_index": (lambda net: lambda: losses_of(net, 0)(), {"batch_size": B}, TypeError, "cannot be called both as"),
    "no_graph": (lambda net: lambda index=None: losses_of(net, 0)().detach(), {"batch_size": B}, RuntimeError, "without a graph"),
    "not_a_tensor": (lambda net: lambda index=None: 3.0, {"batch_size": B}, TypeError, "returned float"),
    "per_token": (lambda net: lambda index=None: losses_of(net, 0)()[:, None].expand(B, 2), {"batch_size": B}, ValueError, "average over"),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_bad_losses(case: str) -> None:
    make, options, error, message = BAD_STEPS[case]
    net = problems.model()
    clean = [p.detach().clone() for p in net.parameters()]
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    with pytest.raises(error, match=message):
        optimizer.step(make(net), **options)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)) and not optimizer.state
    optimizer.step(losses_of(net, 0), batch_size=B)  # and it goes on


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"lam": -1.0}, ValueError, "lam is -1.0; expected a finite number >= 0"),
    ({"lam": float("inf")}, ValueError, "lam is inf"),
    ({"lam": 1.0, "estimator": "loss"}, ValueError, "estimator is 'loss'; expected one of"),
    ({"lam": 1.0, "probes": 0}, ValueError, "probes is 0"),
    ({"lam": 1.0, "delta": 0.0}, ValueError, "delta is 0.0"),
    ({"lam": 1.0, "batchnorm": "frozen"}, ValueError, "batchnorm is 'frozen'; .*evaluation mode"),
    ({"lam": torch.tensor(-1.0)}, ValueError, "lam is -1.0"),
    ({"lam": torch.tensor(1)}, ValueError, "lam is a tensor of shape .* torch.int64"),
    ({"lam": 1.0, "model": None}, ValueError, "pass model="),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    net = problems.model()
    with pytest.raises(error, match=message):
        ReweightedSAM(net.parameters(), torch.optim.SGD, **{"model": net, **options}, **OPTIONS)


def test_logits_need_the_norms_and_phases_are_refused() -> None:
    net = problems.model()
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, estimator="logits", **OPTIONS)
    with pytest.raises(TypeError, match="cross_entropy_sample"):
        optimizer.step(losses_of(net, 0), batch_size=B)
    with pytest.raises(RuntimeError, match=r"step\(losses"):
        optimizer.first_step()
    plain = SAM(net.parameters(), torch.optim.SGD, **OPTIONS)
    with pytest.raises(ValueError, match="leave it out"):
        plain.step(problems.closure_of(net, 0), batch_size=B)


def test_a_failing_probe_restores() -> None:
    net = problems.model()
    clean = [p.detach().clone() for p in net.parameters()]
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, estimator="finite_difference", **OPTIONS)

    def losses(index: Tensor | None = None) -> Tensor:
        raise KeyError("no data")

    with pytest.raises(KeyError):
        optimizer.step(losses, batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    optimizer.step(losses_of(net, 0), batch_size=B)


def test_a_sample_that_is_not_finite_skips_the_step() -> None:
    net = problems.model()
    clean = [p.detach().clone() for p in net.parameters()]
    optimizer = ReweightedSAM(net.parameters(), torch.optim.SGD, lam=1.0, model=net, **OPTIONS)
    x, y = problems.batch(0, net)
    x[3, 0, 0, 0] = float("nan")
    optimizer.step(lambda index=None: F.cross_entropy(net(x), y, reduction="none"), batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    assert optimizer.sample_weights.flag == 1 and optimizer.sample_weights.weights[3] == 0
