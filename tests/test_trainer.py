"""The optimizer as a citizen of the trainers it lives in: checkpoints, copies, groups, hooks, norm layers."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from problems import MOMENTUM, batch, closure_of, loss_of, model, same, train, weights
from tolerance import assert_elementwise
from torch import nn

from sam_kernels import compat, ops
from sam_kernels.optim import ASAM, SAM, StableSAM, frozen_batchnorm, rules


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


@pytest.mark.parametrize("kinds", ["one", "mixed", "generic"])
@pytest.mark.parametrize("rule", ["clipped", "matched"])
def test_u_has_no_part_of_parameters_without_a_second_gradient(rule: str, kinds: str) -> None:
    """A descent that reads g itself: |u| is that of what is updated, though the ascent's |g| was of more."""
    dtype = torch.float32 if kinds == "mixed" else torch.float64
    a = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    b, c = nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype)), nn.Parameter(torch.tensor([5.0], dtype=dtype))
    options: dict[str, Any] = {"max_norm": 1.0} if rule == "clipped" else {}
    descent = rules.Descent(ops.Combination(u={"h": 1.0, "g": -1.0}), match_norm=rule == "matched")
    base = torch.optim.RAdam if kinds == "generic" else "sgd"  # RAdam's first step moves by lr times the gradient
    opt = SAM([a, b, c], base, rho=0.0, lr=1.0, descent=descent, **options)
    g, h, calls = torch.tensor([3.0, 4.0]), torch.tensor([9.0, 13.0]), []

    def closure() -> torch.Tensor:
        calls.append(1)
        loss = (a * (g if len(calls) == 1 else h)).sum() + 2 * c.sum() * (2 if len(calls) == 2 else 1)
        loss = loss + (b * torch.tensor([30.0, 40.0])).sum() if len(calls) == 1 else loss
        loss.backward()
        return loss

    before = torch.cat([a.detach().clone(), c.detach().double()])
    opt.step(closure)
    moved = before - torch.cat([a.detach(), c.detach().double()])
    u = torch.cat([h - g, torch.tensor([2.0])]).double()
    want = u / u.norm() * (1.0 if rule == "clipped" else float(torch.tensor([3.0, 4.0, 2.0]).norm()))
    assert torch.allclose(moved, want, rtol=1e-5) and torch.equal(b.detach(), torch.tensor([3.0, 4.0], dtype=dtype))


def test_a_refused_step_of_a_scaler_leaves_nothing_on_the_optimizer() -> None:
    net = model(dtype=torch.float32)
    opt = SAM(net.parameters(), "sgd", lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    with pytest.raises(RuntimeError, match="step\\(\\) needs a closure"):
        scaler.step(opt)
    assert not hasattr(opt, "grad_scale") and not hasattr(opt, "found_inf")
