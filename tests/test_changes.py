"""What users do to a model, its groups and its state between steps, and between the passes: followed, or refused with clean weights."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from problems import closure_of, model
from torch import Tensor, nn

from sam_kernels import compat
from sam_kernels.ops import Combination
from sam_kernels.optim import SAM, frozen_batchnorm, rules

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def pair(**options: object) -> tuple[list[Tensor], SAM, list[Tensor], torch.optim.SGD]:
    """Two parameters in two groups under SAM with rho = 0, and the same under torch's SGD."""
    ours, theirs = ([torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)] for _ in range(2))
    groups = lambda w: [{"params": [w[0]], "lr": 0.1}, {"params": [w[1]], "lr": 1.0}]  # noqa: E731
    return ours, SAM(groups(ours), "sgd", rho=0.0, **options), theirs, torch.optim.SGD(groups(theirs), **options)


def step_both(ours: list[Tensor], opt: SAM, theirs: list[Tensor], sgd: torch.optim.SGD, chosen: tuple[int, ...] = (0, 1)) -> None:
    for w, finish in ((ours, lambda: (opt.first_step(), opt.second_step())), (theirs, sgd.step)):
        for i in range(len(w)):
            w[i].grad = torch.full_like(w[i], 0.5) if i in chosen else None
        finish()


EDITS: dict[str, Callable[[torch.optim.Optimizer, list[Tensor]], object]] = {
    "remove": lambda o, w: o.param_groups[0]["params"].clear(),
    "move": lambda o, w: o.param_groups[1]["params"].append(o.param_groups[0]["params"].pop()),
    "reverse": lambda o, w: o.param_groups.reverse(),
    "delete_group": lambda o, w: o.param_groups.pop(0),
    "clear_state": lambda o, w: o.state.clear(),
    "drop_buffer": lambda o, w: o.state[w[0]].pop("momentum_buffer"),
    "replace_buffer": lambda o, w: o.state[w[0]].update(momentum_buffer=torch.full_like(w[0], 3.0)),
    "replace_data": lambda o, w: setattr(w[0], "data", torch.full_like(w[0], 7.0)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_between_steps_mean_what_they_mean_to_torch(edit: str) -> None:
    ours, opt, theirs, sgd = pair(momentum=0.9)
    for _ in range(2):
        step_both(ours, opt, theirs, sgd)
    EDITS[edit](opt, ours)
    EDITS[edit](sgd, theirs)
    for _ in range(2):
        step_both(ours, opt, theirs, sgd)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_steps_of_the_base_in_between_keep_their_momentum() -> None:
    ours, opt, theirs, sgd = pair(momentum=0.9)
    step_both(ours, opt, theirs, sgd, chosen=(0,))
    for _ in range(2):
        for w, base in ((ours, opt.base_optimizer), (theirs, sgd)):
            w[0].grad, w[1].grad = None, torch.ones(2)
            base.step()
    step_both(ours, opt, theirs, sgd)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def transpose_in_place(net: nn.Module, opt: SAM) -> None:
    net.weight.data = net.weight.data.transpose(2, 3)  # the same memory under other strides


CHANGES: dict[str, Callable[[nn.Module, SAM], object]] = {
    "channels_last": lambda net, opt: net.to(memory_format=torch.channels_last),
    "double": lambda net, opt: net.double(),
    "groups": lambda net, opt: opt.param_groups[0]["params"].pop(),
}


def conv() -> tuple[nn.Conv2d, SAM]:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3)
    return net, SAM(net.parameters(), "sgd", **MOMENTUM)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("leave", ["restore", "second_step"])
def test_changes_between_the_passes_restore_the_clean_weights(change: str, leave: str) -> None:
    net, opt = conv()
    clean, params = [p.detach().clone() for p in net.parameters()], list(net.parameters())
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    opt.first_step()
    CHANGES[change](net, opt)
    if leave == "restore":
        opt.restore()
    else:
        with pytest.raises(RuntimeError, match="between the two passes; the clean weights are restored"):
            opt.second_step()
    assert all(torch.equal(p, w.to(p.dtype)) for p, w in zip(params, clean, strict=True))


def test_weights_that_became_gappy_are_refused() -> None:
    w = torch.nn.Parameter(torch.ones(4, 4))
    opt = SAM([w], "sgd", lr=0.1)
    big = torch.zeros(4, 8)
    opt.step(lambda: (w.sum().backward(), w.sum())[1])
    w.data = big[:, :4]
    w.grad = torch.ones(4, 4)
    with pytest.raises(ValueError, match=r"params\[0\] has layout .* expected dense"):
        opt.first_step()
    assert not big.any()


def test_weights_that_came_to_share_memory_are_refused() -> None:
    a, b = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))
    opt = SAM([a, b], "sgd", lr=0.1)
    opt.step(lambda: ((a + b).sum().backward(), a.sum())[1])
    b.data = a.data
    a.grad = b.grad = torch.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        opt.first_step()


def test_perturbed_ascends_after_a_first_step_that_found_nothing() -> None:
    w = torch.nn.Parameter(torch.ones(1))
    opt = SAM([w], "sgd", lr=0.1, rho=0.5)
    opt.first_step()
    w.grad = torch.ones(1)
    with opt.perturbed():
        assert w.item() == 1.5
    assert w.item() == 1.0


def test_checkpoint_of_another_model_is_refused_and_nothing_changes() -> None:
    net = model()
    opt = SAM(net.parameters(), "sgd", **MOMENTUM)
    opt.step(closure_of(net, 0))
    saved = opt.state_dict()
    held = {k: v["momentum_buffer"].clone() for k, v in saved["state"].items()}
    wrong = {**saved, "state": {k: {"momentum_buffer": torch.zeros(2)} for k in saved["state"]}}
    with pytest.raises(ValueError, match=r"momentum_buffer of parameter 0 has shape .2,. in the checkpoint"):
        opt.load_state_dict(wrong)
    assert all(torch.equal(opt.state_dict()["state"][k]["momentum_buffer"], v) for k, v in held.items())


def test_grad_norm_with_gradients_in_one_dtype_only() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)
    opt = SAM([a, b], "sgd", lr=0.1)
    b.grad = torch.ones(2, dtype=torch.float64)
    opt.first_step()
    assert abs(opt.grad_norm.item() - 2**0.5) < 1e-12


def test_nan_in_a_group_that_is_not_perturbed_skips_too() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = SAM([{"params": [a]}, {"params": [b], "rho": 0.0}], "sgd", lr=0.1)
    for bad in (float("nan"), float("inf")):
        a.grad, b.grad = torch.ones(2), torch.full((2,), bad)
        opt.first_step()
        a.grad, b.grad = torch.ones(2), torch.ones(2)
        opt.second_step()
        assert (a == 1).all() and (b == 1).all()


def test_compat_fires_hooks_once_whatever_came_before() -> None:
    net, seen = model(), []
    SAM([torch.ones(1, requires_grad=True)], "sgd", lr=0.1)
    opt = compat.SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    opt.register_step_post_hook(lambda *a: seen.append(1))
    for _ in range(2):
        closure_of(net, 0)()
        opt.first_step(zero_grad=True)
        closure_of(net, 0)()
        opt.second_step(zero_grad=True)
    assert len(seen) == 2


def test_frozen_batchnorm_covers_sync_and_a_switch_to_evaluation() -> None:
    net = nn.SyncBatchNorm(3)
    net.train()
    with frozen_batchnorm(net):
        assert set(net.state_dict()) >= {"running_mean", "running_var", "num_batches_tracked"}
        assert not net.track_running_stats
    assert net.track_running_stats
    bn = nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    bn(x)
    with frozen_batchnorm(bn):
        inside = bn.eval()(x)
    assert torch.equal(inside, bn(x))


def test_state_may_be_a_new_dictionary() -> None:
    ours, opt, theirs, sgd = pair(momentum=0.9)
    step_both(ours, opt, theirs, sgd)
    opt.state = defaultdict(dict)
    sgd.state = defaultdict(dict)
    step_both(ours, opt, theirs, sgd)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("between", [False, True])
def test_a_parameter_resized_where_it_lies_is_noticed(backend: str, between: bool) -> None:
    base, g = torch.ones(64, 4), torch.ones(64, 4)
    p = nn.Parameter(base)
    opt = SAM([p], "sgd", lr=0.1, backend=backend)
    p.grad = g
    opt.first_step(), opt.second_step()
    if between:
        opt.first_step()
    p.data, p.grad = p.data[:1], g[:1]
    if between:
        with pytest.raises(RuntimeError, match="between the two passes"):
            opt.second_step()
    before = base.clone()
    opt.first_step()
    assert opt.grad_norm == 2
    opt.second_step()
    assert torch.equal(base[1:], before[1:]) and not torch.equal(base[:1], before[:1])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("move", [lambda x: x.share_memory_(), lambda x: setattr(x, "data", x.data.clone())])
def test_state_that_moves_is_followed(backend: str, move: Callable[[Tensor], object]) -> None:
    ours, theirs = (torch.ones(3000, requires_grad=True) for _ in range(2))
    opt, adam = SAM([ours], torch.optim.Adam, rho=0.0, lr=0.1, backend=backend), torch.optim.Adam([theirs], lr=0.1)
    for step in range(4):
        ours.grad, theirs.grad = torch.full_like(ours, 0.5), torch.full_like(theirs, 0.5)
        opt.first_step(), opt.second_step(), adam.step()
        if step == 1:
            for x in opt.state[ours].values():
                move(x)
    assert torch.allclose(ours, theirs) and torch.allclose(opt.state[ours]["exp_avg"], adam.state[theirs]["exp_avg"])


def test_swapped_buffers_are_swapped() -> None:
    ours, opt, theirs, sgd = pair(momentum=0.9)
    ours[1].data, theirs[1].data = torch.ones(3), torch.ones(3)
    for scale in (1.0, 2.0):
        for w in (ours, theirs):
            w[0].grad, w[1].grad = torch.full((3,), scale), torch.full((3,), -scale)
        opt.first_step(), opt.second_step(), sgd.step()
    for o, w in ((opt, ours), (sgd, theirs)):
        a, b = (o.state[p] for p in w)
        a["momentum_buffer"], b["momentum_buffer"] = b["momentum_buffer"], a["momentum_buffer"]
    opt.first_step(), opt.second_step(), sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("make", [lambda: torch._efficientzerotensor(5), lambda: torch._neg_view(torch.ones(5))], ids=["zero", "negated"])
def test_gradients_without_plain_memory(make: Callable[[], Tensor], backend: str) -> None:
    w = torch.ones(5, requires_grad=True)
    opt, expected = SAM([w], "sgd", lr=0.1, rho=0.0, backend=backend), 1 - 0.1 * make().clone()
    for phase in (opt.first_step, opt.second_step):
        w.grad = make()
        phase()
    assert torch.equal(w.detach(), expected)


def test_a_kept_gradient_is_not_the_users_buffer() -> None:
    p, buffer = torch.zeros(3, requires_grad=True), torch.zeros(3)
    opt = SAM([p], "sgd", lr=1.0, descent=rules.Descent(Combination(u={"h": 0.5, "g": 0.5})))
    for phase, values in ((opt.first_step, [1.0, 0, 0]), (opt.second_step, [0, 1.0, 0])):
        buffer.copy_(torch.tensor(values))
        p.grad = buffer
        phase(zero_grad=True)
    assert torch.equal(p.detach(), torch.tensor([-0.5, -0.5, 0.0]))


def test_buffers_made_in_inference_mode_serve_after_it() -> None:
    w = torch.ones(3, requires_grad=True)
    opt = SAM([w], "adamw", lr=0.1, backend="reference")
    for mode in (True, False):
        with torch.inference_mode(mode):
            for phase in (opt.first_step, opt.second_step):
                w.grad = torch.ones(3)
                phase()
