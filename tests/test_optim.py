"""The optimizer against its equations and against torch."""

from typing import Any

import pytest
import torch
from problems import MOMENTUM, STEPS, closure_of, groups_of, loss_of, model, plain_loop, same, train, weights
from tolerance import assert_elementwise, assert_loop
from torch import nn

from sam_kernels.ops import Combination
from sam_kernels.optim import SAM, StableSAM, rules

SETTINGS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{"lr": 0.1}], {}),
    "momentum": ([MOMENTUM], {}),
    "nesterov": ([{**MOMENTUM, "nesterov": True}], {}),
    "dampening": ([{**MOMENTUM, "dampening": 0.2}], {}),
    "maximize": ([{**MOMENTUM, "lr": 0.01, "maximize": True}], {}),
    "asam": ([{**MOMENTUM, "rho": 0.5, "adaptive": True, "eta": 0.01}], {}),
    "groups": ([{**MOMENTUM, "rho": 0.1}, {"lr": 0.05, "rho": 0.0}, {**MOMENTUM, "adaptive": True, "eta": 0.1, "rho": 0.3}], {}),
    "unnormalized": ([MOMENTUM], {"normalize": False}),
    "stable": ([MOMENTUM], {"stable": True}),
    "stable_asam": ([{**MOMENTUM, "rho": 0.5, "adaptive": True, "eta": 0.01}], {"stable": True}),
    "clipped": ([MOMENTUM], {"max_norm": 0.2}),
    "stable_clipped": ([MOMENTUM], {"stable": True, "max_norm": 0.2}),
}


def build(net: nn.Module, options: list[dict[str, Any]], extra: dict[str, Any], backend: str | None) -> SAM:
    extra = dict(extra)
    descent = rules.Stable() if extra.pop("stable", False) else None
    return SAM(groups_of(net, options), torch.optim.SGD, descent=descent, backend=backend, **extra)


@pytest.mark.parametrize("setting", SETTINGS)
def test_many_steps_against_the_equations(setting: str, place: tuple[str, str]) -> None:
    backend, device = place
    options, extra = SETTINGS[setting]
    truth = model()
    plain_loop(truth, options, STEPS, **extra)
    assert not same(truth, model())
    if backend in ("reference", "cpp"):
        net = model(device=device)
        train(net, build(net, options, extra, backend))
        assert_loop(setting, weights(net), weights(truth))
    fused, plain = model(dtype=torch.float32, device=device), model(dtype=torch.float32, device=device)
    train(fused, build(fused, options, extra, backend))
    plain_loop(plain, options, STEPS, **extra)
    assert_elementwise(setting, weights(fused), weights(plain), weights(truth), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, MOMENTUM, {**MOMENTUM, "nesterov": True}, {**MOMENTUM, "dampening": 0.3}, {**MOMENTUM, "maximize": True}]
)
def test_rho_zero_is_torch_sgd_bit_for_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = model(dtype=dtype), model(dtype=dtype)
    options = {"lr": 0.01, **options}
    opt, base = SAM(ours.parameters(), torch.optim.SGD, rho=0.0, backend="cpp", **options), torch.optim.SGD(theirs.parameters(), **options)
    for step in range(STEPS):
        opt.step(closure_of(ours, step))
        base.zero_grad()
        closure_of(theirs, step)()
        base.step()
        assert same(ours, theirs), f"bits differ after step {step}"
    if "momentum" in options:
        a, b = opt.state_dict()["state"], base.state_dict()["state"]
        assert all(torch.equal(a[k]["momentum_buffer"], b[k]["momentum_buffer"]) for k in b)


def test_both_habits_give_equal_bits_and_the_clean_loss(place: tuple[str, str]) -> None:
    backend, device = place
    one, two = (model(dtype=torch.float32, device=device) for _ in range(2))
    a, b = (StableSAM(net.parameters(), "sgd", backend=backend, **MOMENTUM) for net in (one, two))
    for step in range(3):
        before = loss_of(one, step).item()
        loss = a.step(closure_of(one, step))
        assert loss.item() == before
        closure_of(two, step)()
        b.first_step(zero_grad=True)
        assert all(p.grad is None for p in two.parameters())
        closure_of(two, step)()
        h = [p.grad.clone() for p in two.parameters()]
        b.second_step()
        assert all(torch.equal(p.grad, x) for p, x in zip(one.parameters(), h, strict=True)), ".grad must hold h"
        b.zero_grad()
        assert same(one, two)


def test_restore_is_exact_and_storage_stays(place: tuple[str, str]) -> None:
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    opt = SAM(net.parameters(), "sgd", backend=backend, **MOMENTUM)
    clean, storage = weights(net), [p.data_ptr() for p in net.parameters()]
    closure_of(net, 0)()
    opt.first_step()
    assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    radius = torch.cat([(p.detach() - w).reshape(-1) for p, w in zip(net.parameters(), clean, strict=True)]).norm().item()
    assert abs(radius - 0.05) < 1e-3 * 0.05
    opt.restore()
    opt.restore()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    train(net, opt, 2)
    assert storage == [p.data_ptr() for p in net.parameters()]


def test_grad_norm_is_global_over_groups(place: tuple[str, str]) -> None:
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    opt = SAM(groups_of(net, [{"rho": 0.1}, {"rho": 0.0}]), "sgd", lr=0.1, backend=backend)
    assert opt.grad_norm is None
    closure_of(net, 0)()
    expected = torch.cat([p.grad.reshape(-1).double() for p in net.parameters()]).norm()
    clean = weights(net)
    opt.first_step()
    assert abs(opt.grad_norm.item() - expected.item()) <= 1e-6 * expected.item()
    moved = [not torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)]
    assert moved == [i % 2 == 0 for i in range(len(clean))]
    counted = torch.cat([(p.detach() - w).reshape(-1) for p, w in zip(net.parameters(), clean, strict=True)]).norm()
    assert abs(counted.item() - 0.1) < 1e-3 * 0.1, "the group with rho = 0 must not count in the norm"


@pytest.mark.parametrize("base", [torch.optim.NAdam, torch.optim.RMSprop, "subclass", "instance"])
def test_any_other_base_is_restore_then_step(base: Any, place: tuple[str, str]) -> None:
    backend, device = place

    class Own(torch.optim.SGD):
        pass

    net, loop = (model(dtype=torch.float32, device=device) for _ in range(2))
    kind = {"subclass": Own, "instance": torch.optim.Adagrad}.get(base, base)
    inner = kind(loop.parameters(), lr=0.01)
    given = kind(net.parameters(), lr=0.01) if base == "instance" else Own if base == "subclass" else base
    opt = SAM(net.parameters(), given, backend=backend, **({} if base == "instance" else {"lr": 0.01}))
    follower = SAM(loop.parameters(), torch.optim.SGD, lr=0.0, backend=backend)  # for the perturbation alone
    for step in range(4):
        opt.step(closure_of(net, step))
        loop.zero_grad()
        closure_of(loop, step)()
        follower.first_step(zero_grad=True)
        closure_of(loop, step)()
        follower.restore()
        inner.step()
        assert same(net, loop)
    assert opt.state_dict()["state"].keys() == inner.state_dict()["state"].keys()


def test_stable_with_a_generic_base(place: tuple[str, str]) -> None:
    backend, device = place

    class Own(torch.optim.SGD):
        pass

    fused, generic = (model(dtype=torch.float32, device=device) for _ in range(2))
    plain, truth = model(dtype=torch.float32), model()
    for net, base in ((fused, torch.optim.SGD), (generic, Own)):
        train(net, StableSAM(net.parameters(), base, max_norm=0.3, backend=backend, **MOMENTUM))
    for net in (plain, truth):
        plain_loop(net, [MOMENTUM], STEPS, stable=True, max_norm=0.3)
    for net in (fused, generic):
        assert_elementwise("stable", weights(net), weights(plain), weights(truth), torch.float32)


def test_descent_whose_basis_needs_g(place: tuple[str, str]) -> None:
    """u = (1 + g.h/|h|^2 / 2) h reads g only through a norm; a direct term stands beside an update that reads h alone."""
    backend, device = place
    g, h = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    for rule, expected in (
        (Combination(u={"h": (1.0, 0.0, 0.5)}), 1 - 0.1 * (1 + 0.5 * (g @ h) / (h @ h)) * h),
        (Combination(u={"h": 1.0}, direct={"h": 2.0}), 1 - 0.1 * 3 * h),
    ):
        w = torch.ones(2, device=device, requires_grad=True)
        opt = SAM([w], "sgd", lr=0.1, descent=rules.Descent(rule), backend=backend)
        w.grad = g.to(device)
        opt.first_step(zero_grad=True)
        w.grad = h.to(device)
        opt.second_step()
        assert torch.allclose(w.detach().cpu(), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_descent_that_reads_g(fused: bool, place: tuple[str, str]) -> None:
    """GSAM as a descent rule, on the fused and on the generic path: the first gradient is kept, whoever overwrites ``.grad``."""
    backend, device = place

    class Own(torch.optim.SGD):
        pass

    rule = rules.Descent(Combination(u={"h": (1.0, 0.0, 0.3), "g": -0.3}))
    nets = {keep: model(dtype=torch.float32, device=device) for keep in (False, True)}
    for keep, net in nets.items():
        opt = SAM(net.parameters(), torch.optim.SGD if fused else Own, descent=rule, lr=0.1, backend=backend)
        for step in range(3):
            net.zero_grad()
            closure_of(net, step)()
            opt.first_step(zero_grad=not keep)
            for p in net.parameters():
                if keep:
                    p.grad.zero_()
            closure_of(net, step)()
            opt.second_step(zero_grad=True)
    assert same(nets[False], nets[True])
    truths = {dtype: model(dtype=dtype) for dtype in (torch.float32, torch.float64)}
    for net in truths.values():
        follower = SAM(net.parameters(), "sgd", lr=0.1)
        for step in range(3):
            g = torch.autograd.grad(loss_of(net, step), list(net.parameters()))
            for p, x in zip(net.parameters(), g, strict=True):
                p.grad = x
            follower.first_step()
            h = torch.autograd.grad(loss_of(net, step), list(net.parameters()))
            follower.restore()
            c = sum((a * b).sum() for a, b in zip(g, h, strict=True)) / sum((b * b).sum() for b in h)
            with torch.no_grad():
                for p, a, b in zip(net.parameters(), g, h, strict=True):
                    p -= 0.1 * ((1 + 0.3 * c) * b - 0.3 * a)
    assert_elementwise("gsam", weights(nets[False]), *(weights(truths[d]) for d in truths), torch.float32)


@pytest.mark.parametrize("backend", ["reference", "cpp"])  # the backends that have fp64
def test_mixed_dtypes_share_one_norm(backend: str) -> None:
    device = "cpu"
    torch.manual_seed(0)
    a, b = torch.randn(7, device=device, requires_grad=True), torch.randn(5, device=device, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, device=device, dtype=torch.float64)
    opt = StableSAM([a, b], "sgd", rho=0.3, adaptive=True, eta=0.1, lr=0.1, max_norm=10.0, backend=backend)

    def closure() -> torch.Tensor:
        loss = (a[:5].double().tanh() * b - target).square().sum() + a.square().sum()
        loss.backward()
        return loss

    w = torch.cat([a.detach().double(), b.detach()])
    closure()
    g = torch.cat([a.grad.double(), b.grad])
    opt.first_step(zero_grad=True)
    c = w.abs() + 0.1
    at = w + 0.3 * c * c * g / (c * g).norm()
    assert_elementwise("perturbed", [a, b], [at.float()], [at], torch.float32)
    closure()
    h = torch.cat([a.grad.double(), b.grad])
    opt.second_step()
    want = w - 0.1 * h * g.norm() / h.norm()
    assert_elementwise("updated", [a, b], [want.float()], [want], torch.float32)
