"""The optimizer against its equations, against torch, and as a citizen of the trainers it lives in."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from problems import batch, closure_of, groups_of, loss_of, model, plain_loop
from tolerance import assert_elementwise, assert_loop
from torch import nn
from torch.optim import lr_scheduler

from sam_kernels import compat
from sam_kernels.ops import Combination
from sam_kernels.optim import ASAM, SAM, StableSAM, frozen_batchnorm, rules

STEPS = 8
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}
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


def train(net: nn.Module, opt: SAM, steps: int = STEPS, start: int = 0) -> None:
    for step in range(start, start + steps):
        opt.step(closure_of(net, step))


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


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
    fused, plain = model(dtype=torch.float32, device=device), model(dtype=torch.float32)
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


@pytest.mark.parametrize("base", ["adamw", torch.optim.AdamW, torch.optim.RMSprop, "subclass", "instance"])
def test_any_other_base_is_restore_then_step(base: Any, place: tuple[str, str]) -> None:
    backend, device = place

    class Own(torch.optim.SGD):
        pass

    net, loop = (model(dtype=torch.float32, device=device) for _ in range(2))
    kind = {"adamw": torch.optim.AdamW, "subclass": Own, "instance": torch.optim.Adagrad}.get(base, base)
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


def test_mixed_dtypes_share_one_norm(place: tuple[str, str]) -> None:
    backend, device = place
    if backend not in ("reference", "cpp"):
        return  # fp64 runs on these two; the sum over buckets is the same code for all
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


@pytest.mark.parametrize("preset", [SAM, ASAM, StableSAM])
def test_resume_equals_the_uninterrupted_run(preset: type[SAM], place: tuple[str, str]) -> None:
    backend, device = place
    whole, first, second = (model(dtype=torch.float32, device=device) for _ in range(3))
    build_one = lambda net: preset(net.parameters(), torch.optim.SGD, backend=backend, **MOMENTUM)  # noqa: E731
    train(whole, build_one(whole), 6)
    opt = build_one(first)
    train(first, opt, 3)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved["model"])
    resumed = build_one(second)
    train(model(dtype=torch.float32, device=device), build_one(model(dtype=torch.float32, device=device)), 1)
    resumed.load_state_dict(saved["opt"])
    train(second, resumed, 3, start=3)
    assert same(whole, second)
    keys = {key for entry in saved["opt"]["state"].values() for key in entry}
    assert keys == {"momentum_buffer"}, "the checkpoint holds the base's state and nothing else"


def test_checkpoints_to_and_from_plain_sgd() -> None:
    ours, theirs = model(dtype=torch.float32), model(dtype=torch.float32)
    opt, plain = SAM(ours.parameters(), "sgd", rho=0.0, **MOMENTUM), torch.optim.SGD(theirs.parameters(), **MOMENTUM)
    for step in range(4):
        opt.step(closure_of(ours, step))
        plain.zero_grad()
        closure_of(theirs, step)()
        plain.step()
        a, b = copy.deepcopy(opt.state_dict()), copy.deepcopy(plain.state_dict())
        opt.load_state_dict(b)
        plain.load_state_dict(a)
        assert opt.param_groups is opt.base_optimizer.param_groups and opt.state is opt.base_optimizer.state
        assert opt.param_groups[0]["rho"] == 0.0, "a group without rho takes the current one"
    assert same(ours, theirs)


def test_checkpoint_of_another_wrapper_is_read_without_its_copies() -> None:
    net = model()
    opt = SAM(net.parameters(), "sgd", **MOMENTUM)
    train(net, opt, 1)
    saved = opt.state_dict()
    saved["state"] = {k: {**v, "old_p": torch.zeros(3), "e_w": torch.zeros(3)} for k, v in saved["state"].items()}
    opt.load_state_dict(saved)
    assert all(set(v) == {"momentum_buffer"} for v in opt.state_dict()["state"].values())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_continue_alike(how: str) -> None:
    net = model()
    opt = StableSAM(net.parameters(), "sgd", **MOMENTUM)
    train(net, opt, 2)
    both = (net, opt)
    net2, opt2 = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert opt2.state is opt2.base_optimizer.state and opt2.param_groups is opt2.base_optimizer.param_groups
    train(net, opt, 2, start=2)
    train(net2, opt2, 2, start=2)
    assert same(net, net2)


def test_add_param_group_takes_all_defaults_and_keeps_momentum(place: tuple[str, str]) -> None:
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    params = list(net.parameters())
    opt = SAM(params[:2], "sgd", backend=backend, **MOMENTUM)
    for p in params[2:]:
        p.requires_grad_(False)
    train(net, opt, 2)
    for p in params[2:]:
        p.requires_grad_(True)
    opt.add_param_group({"params": params[2:], "rho": 0.2})
    assert opt.param_groups[1]["momentum"] == 0.9 and opt.param_groups[1]["rho"] == 0.2 and opt.param_groups[1]["adaptive"] is False
    assert opt.base_optimizer.param_groups is opt.param_groups
    held, before = [opt.state[p]["momentum_buffer"].clone() for p in params[:2]], weights(net)
    train(net, opt, 1, start=2)
    assert all(not torch.equal(x, p) for x, p in zip(before, params, strict=True))
    for p, w, m in zip(params[:2], before[:2], held, strict=True):  # the old group goes on from its momentum, not from none
        assert torch.allclose(opt.state[p]["momentum_buffer"], p.grad + 5e-3 * w + 0.9 * m)
    with pytest.raises(ValueError, match="rho is -1"):
        opt.add_param_group({"params": [torch.zeros(2, requires_grad=True, device=device)], "rho": -1.0})
    assert len(opt.param_groups) == 2


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=10),
    "sequential": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_drive_the_wrapper(schedule: Any, recwarn: pytest.WarningsRecorder) -> None:
    ours, theirs = model(dtype=torch.float32), model(dtype=torch.float32)
    opt, plain = SAM(ours.parameters(), "sgd", rho=0.0, **MOMENTUM), torch.optim.SGD(theirs.parameters(), **MOMENTUM)
    a, b = schedule(opt), schedule(plain)
    for step in range(4):
        closure_of(ours, step)()
        opt.first_step(zero_grad=True)
        closure_of(ours, step)()
        opt.second_step(zero_grad=True)
        plain.zero_grad()
        closure_of(theirs, step)()
        plain.step()
        a.step()
        b.step()
        assert same(ours, theirs)
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message)], "the scheduler did not see our step"


def test_step_hooks_fire_once_per_step() -> None:
    net = model()
    opt = SAM(net.parameters(), "sgd", lr=0.1)
    seen = []
    opt.register_step_pre_hook(lambda *a: seen.append("pre"))
    opt.register_step_post_hook(lambda *a: seen.append("post"))
    opt.step(closure_of(net, 0))
    closure_of(net, 0)()
    opt.first_step(zero_grad=True)
    closure_of(net, 0)()
    opt.second_step()
    assert seen == ["pre", "post"] * 2


def test_maximize_is_sam_on_the_negated_loss(place: tuple[str, str]) -> None:
    backend, device = place
    up, down = (model(dtype=torch.float32, device=device) for _ in range(2))
    a = SAM(up.parameters(), "sgd", lr=0.1, momentum=0.9, maximize=True, backend=backend)
    b = SAM(down.parameters(), "sgd", lr=0.1, momentum=0.9, backend=backend)
    for step in range(3):
        a.step(closure_of(up, step))
        b.step(closure_of(down, step, sign=-1.0))
    assert same(up, down)


def test_capturable_reads_lr_and_rho_from_tensors(place: tuple[str, str]) -> None:
    backend, device = place
    one, two = (model(dtype=torch.float32, device=device) for _ in range(2))
    lr, rho = torch.tensor(0.1, device=device), torch.tensor(0.05, device=device)
    a = SAM(one.parameters(), "sgd", rho=rho, lr=lr, momentum=0.9, capturable=True, backend=backend)
    b = SAM(two.parameters(), "sgd", rho=0.05, lr=0.1, momentum=0.9, backend=backend)
    for step in range(4):
        a.step(closure_of(one, step))
        b.step(closure_of(two, step))
        lr.mul_(0.5)
        rho.fill_(0.1)
        b.param_groups[0].update(lr=0.1 * 0.5 ** (step + 1), rho=0.1)
    assert same(one, two)


def test_strided_parameters_and_gradients(place: tuple[str, str]) -> None:
    backend, device = place
    torch.manual_seed(0)
    nets = [model(dtype=torch.float32, device=device) for _ in range(2)]
    nets[1] = nets[1].to(memory_format=torch.channels_last)
    for net in nets:
        opt = SAM(net.parameters(), "sgd", backend=backend, **MOMENTUM)
        for step in range(3):
            for phase in (opt.first_step, opt.second_step):
                net.zero_grad()
                closure_of(net, step)()
                for p in net.parameters():  # as backward may leave it: other strides, or expanded
                    p.grad = p.grad.transpose(0, -1).contiguous().transpose(0, -1)
                phase()
    assert all(torch.allclose(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    w = torch.randn(4, requires_grad=True, device=device)
    opt = SAM([w], "sgd", lr=0.1, backend=backend)
    opt.step(lambda: (w.sum().backward(), w.sum())[1])  # the gradient of sum() is expanded from one element


def test_batchnorm_counts_one_pass() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True), nn.Flatten(), nn.Linear(32, 3)
    ).double()
    once = copy.deepcopy(net)
    opt = SAM(net.parameters(), "sgd", lr=0.1, model=net)
    opt.step(closure_of(net, 0))
    loss_of(once, 0)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), once.buffers(), strict=True))
    before = [b.clone() for b in net.buffers()]
    with pytest.raises(KeyError), frozen_batchnorm(net), frozen_batchnorm(net):
        net(batch(1, net)[0])
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    net.eval()
    with frozen_batchnorm(net):
        net(batch(1, net)[0])  # evaluation still reads the running statistics
        assert net[1].running_mean is not None
    net.train()
    net(batch(1, net)[0])
    assert not torch.equal(net[1].running_mean, before[0])


def test_compat_keeps_the_closure_rule() -> None:
    ours, theirs = model(), model()
    opt, full = (
        compat.SAM(ours.parameters(), torch.optim.SGD, rho=0.1, **MOMENTUM),
        SAM(theirs.parameters(), torch.optim.SGD, rho=0.1, **MOMENTUM),
    )
    calls = []
    for step in range(3):
        closure_of(ours, step)()
        assert opt.step(lambda step=step: (calls.append(1), closure_of(ours, step)())[1]) is None
        opt.zero_grad()
        full.step(closure_of(theirs, step))
    assert len(calls) == 3 and same(ours, theirs)


def test_two_optimizers_do_not_touch_each_other() -> None:
    one, two = model(), model(1)
    a, b = SAM(one.parameters(), "sgd", lr=0.1), SAM(two.parameters(), "sgd", lr=0.1)
    before = weights(two)
    closure_of(two, 0)()
    closure_of(one, 0)()
    a.first_step()
    assert all(torch.equal(x, y) for x, y in zip(before, two.parameters(), strict=True))
    b.first_step()
    a.restore()
    assert not any(torch.equal(x, y) for x, y in zip(before, two.parameters(), strict=True))


def test_groups_share_with_the_base_and_named_parameters_work() -> None:
    net = model()
    opt = SAM(net.named_parameters(), torch.optim.SGD, lr=0.1)
    assert opt.param_groups is opt.base_optimizer.param_groups and opt.state is opt.base_optimizer.state
    opt.base_optimizer.param_groups[0]["lr"] = 0.5
    assert opt.param_groups[0]["lr"] == 0.5
    train(net, opt, 1)
    assert "param_names" in opt.state_dict()["param_groups"][0]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_a_model_cast_or_laid_out_anew_between_steps(backend: str) -> None:
    """Buffers follow the parameters: stash and momentum in the wrong precision would be silent corruption."""
    ours, theirs = model(dtype=torch.float32), model(dtype=torch.float32)
    opt, plain = SAM(ours.parameters(), "sgd", rho=0.0, backend=backend, **MOMENTUM), torch.optim.SGD(theirs.parameters(), **MOMENTUM)
    for step, change in enumerate((lambda m: m, lambda m: m.double(), lambda m: m.to(memory_format=torch.channels_last))):
        change(ours), change(theirs)
        for _ in range(2):
            opt.step(closure_of(ours, step))
            plain.zero_grad()
            closure_of(theirs, step)()
            for p in theirs.parameters():  # torch's buffers do not follow a cast by themselves
                if "momentum_buffer" in plain.state[p]:
                    plain.state[p]["momentum_buffer"] = plain.state[p]["momentum_buffer"].to(p.dtype)
            plain.step()
    assert_elementwise("cast", weights(ours), weights(theirs), weights(theirs), torch.float32)
    assert next(ours.parameters()).dtype == torch.float64
    clean = weights(ours)
    closure_of(ours, 0)()
    opt.param_groups[0]["rho"] = 0.1
    opt.first_step()
    opt.restore()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), clean, strict=True))


def test_added_parameters_may_not_alias() -> None:
    w = torch.zeros(4, requires_grad=True)
    opt = SAM([w], "sgd", lr=0.1)
    with pytest.raises(ValueError, match="share memory"):
        opt.add_param_group({"params": [w.detach()[:2].requires_grad_()]})
    assert len(opt.param_groups) == 1
