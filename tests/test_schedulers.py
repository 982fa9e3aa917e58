"""Every scheduler of torch drives SAM exactly as it drives the plain optimizer."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import batch, closure_of, groups_of, model, weights
from tolerance import assert_loop
from torch import nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

from sam_kernels.optim import SAM

STEPS = 9
SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)], [3]),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=4),
}
BASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}
METRICS = [1.0, 0.9, 1.1, 1.2, 0.8, 0.8, 0.8, 0.7, 0.9]
OPTIONS = [{}, {"lr": 0.02}]


@pytest.fixture(autouse=True)
def no_warning_about_the_order() -> Iterator[None]:
    """The scheduler must have seen our step; and nothing else may be said about it either."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*lr_scheduler.*")
        warnings.filterwarnings("ignore", message=r".*epoch parameter in `scheduler.step\(\)`.*")  # SequentialLR says it of itself
        yield


def wrapped(net: nn.Module, base: str, rho: float = 0.0) -> SAM:
    return SAM(groups_of(net, OPTIONS), BASES[base][0], rho=rho, **BASES[base][1])


def plain(net: nn.Module, base: str) -> Optimizer:
    return BASES[base][0](groups_of(net, OPTIONS), **BASES[base][1])


def advance(net: nn.Module, opt: Optimizer, schedule: Any, step: int) -> None:
    """One step, SAM's in either habit, and one of the scheduler."""
    opt.zero_grad()
    if isinstance(opt, SAM) and step % 2:
        opt.step(closure_of(net, step))
    else:
        closure_of(net, step)()
        if isinstance(opt, SAM):
            opt.first_step(zero_grad=True)
            closure_of(net, step)()
            opt.second_step()
        else:
            opt.step()
    schedule.step(METRICS[step]) if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else schedule.step()


def seen(opt: Optimizer) -> list[Any]:
    return [{k: group.get(k) for k in ("lr", "momentum", "betas", "initial_lr")} for group in opt.param_groups]


def test_the_list_is_complete() -> None:
    known = {name for name in lr_scheduler.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert set(SCHEDULERS) == known, "torch has another scheduler: add it"


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_equal_to_the_plain_optimizer_at_every_step(name: str, base: str) -> None:
    ours, theirs = model(), model()
    opt, other = wrapped(ours, base), plain(theirs, base)
    a, b = SCHEDULERS[name](opt), SCHEDULERS[name](other)
    history = [seen(opt)]
    assert history == [seen(other)]
    for step in range(STEPS):
        advance(ours, opt, a, step)
        advance(theirs, other, b, step)
        history.append(seen(opt))
        assert history[-1] == seen(other) and a.get_last_lr() == b.get_last_lr(), f"step {step}"
    assert any(x != history[0] for x in history), "the schedule does nothing"
    assert_loop(name, weights(ours), weights(theirs))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_optimizer_and_scheduler_resume(name: str, base: str) -> None:
    whole, part = model(), model()
    opt, first = wrapped(whole, base, rho=0.05), wrapped(part, base, rho=0.05)
    a, b = SCHEDULERS[name](opt), SCHEDULERS[name](first)
    for step in range(4):
        advance(whole, opt, a, step)
        advance(part, first, b, step)
    first.load_state_dict(copy.deepcopy(first.state_dict()))  # the scheduler goes on driving the groups that this puts in place
    advance(whole, opt, a, 4)
    advance(part, first, b, 4)
    file = io.BytesIO()
    torch.save({"opt": first.state_dict(), "schedule": b.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    resumed = wrapped(part, base, rho=0.05)
    c = SCHEDULERS[name](resumed)
    resumed.load_state_dict(saved["opt"])
    c.load_state_dict(saved["schedule"])
    for step in range(5, STEPS):
        advance(whole, opt, a, step)
        advance(part, resumed, c, step)
        assert seen(opt) == seen(resumed), f"step {step}"
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), part.parameters(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_a_scheduler_may_be_given_the_base_optimizer(base: str) -> None:
    """A habit that other wrappers teach: the groups are shared, and the base is what is being stepped."""
    ours, theirs = model(), model()
    opt, other = wrapped(ours, base), plain(theirs, base)
    a, b = lr_scheduler.StepLR(opt.base_optimizer, 1, 0.5), lr_scheduler.StepLR(other, 1, 0.5)
    for step in range(3):
        advance(ours, opt, a, step)
        advance(theirs, other, b, step)
        assert seen(opt) == seen(other)
    assert_loop(base, weights(ours), weights(theirs))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_an_optimizer_that_a_scheduler_has_taken_hold_of_can_be_copied(how: str) -> None:
    net = model()
    opt = wrapped(net, "sgd")
    schedule = lr_scheduler.StepLR(opt, 1, 0.5)
    advance(net, opt, schedule, 0)
    net2, opt2 = copy.deepcopy((net, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((net, opt)))
    schedule2 = lr_scheduler.ExponentialLR(opt2, 0.5)
    for step in (1, 2):
        advance(net, opt, schedule, step)
        advance(net2, opt2, schedule2, step)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), net2.parameters(), strict=True))


def test_a_skipped_step_counts_for_the_schedule() -> None:
    net = model()
    opt = wrapped(net, "sgd", rho=0.05)
    schedule, before = lr_scheduler.StepLR(opt, 1, 0.5), weights(net)
    closure_of(net, 0)()
    next(net.parameters()).grad.fill_(float("nan"))
    opt.first_step(zero_grad=True)
    closure_of(net, 0)()
    opt.second_step()
    schedule.step()
    assert [group["lr"] for group in opt.param_groups] == [0.05, 0.01]
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["ExponentialLR", "CosineAnnealingLR", "SequentialLR", "CyclicLR"])
@pytest.mark.parametrize("capturable", [False, True])
def test_lr_in_a_tensor_is_filled_in_place_and_read(name: str, capturable: bool) -> None:
    ours, theirs = model(), model()
    tensors = [torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.02, dtype=torch.float64)]
    groups = [{**g, "lr": lr} for g, lr in zip(groups_of(ours, OPTIONS), tensors, strict=True)]
    opt = SAM(groups, torch.optim.SGD, rho=0.0, capturable=capturable, momentum=0.9, weight_decay=5e-3, lr=tensors[0])
    other = plain(theirs, "sgd")
    a, b = SCHEDULERS[name](opt), SCHEDULERS[name](other)
    for step in range(4):
        advance(ours, opt, a, step)
        advance(theirs, other, b, step)
        assert all(group["lr"] is lr for group, lr in zip(opt.param_groups, tensors, strict=True))
    rates = torch.tensor([group["lr"] for group in other.param_groups], dtype=torch.float64)
    assert_loop(name, [*weights(ours), torch.stack(tensors)], [*weights(theirs), rates])


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR"])
def test_rho_follows_lr(name: str) -> None:
    """One lambda of the user, as in papers that tie the two: the length of the perturbation is the rho of that moment."""
    net = model()
    opt = SAM(net.parameters(), "adamw", lr=0.01)
    schedule, rho_of = SCHEDULERS[name](opt), lambda lr: 0.01 + 2 * lr
    lengths = set()
    for step in range(4):
        rho = opt.param_groups[0]["rho"] = rho_of(opt.param_groups[0]["lr"])
        clean = weights(net)
        closure_of(net, step)()
        opt.first_step(zero_grad=True)
        length = torch.stack([(p.detach() - w).square().sum() for p, w in zip(net.parameters(), clean, strict=True)]).sum().sqrt()
        assert_loop("length", [length], [torch.tensor(rho, dtype=torch.float64)])
        lengths.add(rho)
        closure_of(net, step)()
        opt.second_step(zero_grad=True)
        schedule.step()
    assert len(lengths) == 4


@pytest.mark.parametrize("average", [None, swa_utils.get_ema_multi_avg_fn(0.9), swa_utils.get_swa_multi_avg_fn()])
def test_averaged_models_see_the_clean_weights(average: Any) -> None:
    nets = model(), model()
    opts = wrapped(nets[0], "sgd"), plain(nets[1], "sgd")
    averages = [swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=True) for net in nets]
    schedules = [swa_utils.SWALR(opt, 0.05, anneal_epochs=2) for opt in opts]
    for step in range(4):
        for net, opt, mean, schedule in zip(nets, opts, averages, schedules, strict=True):
            advance(net, opt, schedule, step)
            mean.update_parameters(net)
    assert_loop("average", weights(averages[0]), weights(averages[1]))
    swa_utils.update_bn([batch(0, nets[0])[0]], averages[0])
    assert int(averages[0].n_averaged) == 4
