"""Checkpoints that are broken or of another make: an error that names what is wrong, and an optimizer that is as it was."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import skip_or_fail
from problems import closure_of, model, same, train, weights
from tolerance import assert_loop
from torch import nn

from sam_kernels.optim import SAM
from sam_kernels.optim.plain import Lion
from sam_kernels.registry import OPS

BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "lion": (Lion, {"lr": 0.01}),
}
Saved = dict[str, Any]


def build(net: nn.Module, base: str, rho: float = 0.05, **extra: Any) -> SAM:
    return SAM(net.parameters(), BASES[base][0], rho=rho, **BASES[base][1], **extra)


def trained(base: str, steps: int = 2) -> tuple[nn.Module, SAM]:
    net = model()
    opt = build(net, base)
    train(net, opt, steps)
    return net, opt


def foreign(base: str) -> Saved:
    return copy.deepcopy(trained(base)[1].state_dict())


def edited(key: str, value: Any, i: int = 1) -> Callable[[Saved], Any]:
    return lambda saved: saved["state"][i].update({key: value})


def regrouped(**values: Any) -> Callable[[Saved], Any]:
    return lambda saved: saved["param_groups"][0].update(values)


def without(*keys: str) -> Callable[[Saved], Any]:
    return lambda saved: [saved["param_groups"][0].pop(key) for key in keys]


BUFFER = {"sgd": "momentum_buffer", "adam": "exp_avg", "adamw": "exp_avg_sq", "amsgrad": "max_exp_avg_sq", "lion": "exp_avg"}
EDITS: dict[str, tuple[list[str], Callable[[Saved], Any]]] = {
    "no state": ([*BASES], lambda s: s.pop("state")),
    "no groups": ([*BASES], lambda s: s.pop("param_groups")),
    "state is a list": (["sgd"], lambda s: s.update(state=[1, 2])),
    "an entry is a number": (["sgd", "adam"], lambda s: s["state"].update({1: 3.0})),
    "groups are None": (["sgd"], lambda s: s.update(param_groups=None)),
    "a group is a list": (["sgd"], lambda s: s.update(param_groups=[[0, 1]])),
    "no params": (["sgd", "adamw"], without("params")),
    "no lr": ([*BASES], without("lr")),
    "no betas": (["adam", "adamw", "lion"], without("betas")),
    "no momentum": (["sgd"], without("momentum")),
    "too few parameters": ([*BASES], lambda s: s["param_groups"][0]["params"].pop()),
    "too many parameters": ([*BASES], lambda s: s["param_groups"][0]["params"].append(99)),
    "too many groups": ([*BASES], lambda s: s["param_groups"].append(copy.deepcopy(s["param_groups"][0]))),
    "no group at all": ([*BASES], lambda s: s["param_groups"].clear()),
    "buffer of another shape": ([*BASES], lambda s: [e.update({k: torch.zeros(2) for k in e if k != "step"}) for e in s["state"].values()]),
    "buffer is a string": ([*BASES], lambda s: [e.update({k: "zeros" for k in e if k != "step"}) for e in s["state"].values()]),
    "buffer is a list": (["sgd", "adam"], lambda s: [e.update({k: [0.0] for k in e if k != "step"}) for e in s["state"].values()]),
    "second moment missing": (["adam", "adamw", "amsgrad"], lambda s: s["state"][1].pop("exp_avg_sq")),
    "first moment missing": (["adam", "adamw", "amsgrad"], lambda s: s["state"][1].pop("exp_avg")),
    "maximum missing": (["amsgrad"], lambda s: s["state"][1].pop("max_exp_avg_sq")),
    "step missing": (["adam", "adamw", "lion"], lambda s: s["state"][1].pop("step")),
    "step is a string": (["adam"], edited("step", "two")),
    "step has a shape": (["adam"], edited("step", torch.zeros(3))),
    "step is negative": (["adam"], edited("step", torch.tensor(-3.0))),
    "step is not finite": (["adam"], edited("step", torch.tensor(float("nan")))),
    "lr is negative": ([*BASES], regrouped(lr=-0.1)),
    "lr is NaN": ([*BASES], regrouped(lr=float("nan"))),
    "lr is a string": (["sgd"], regrouped(lr="0.1")),
    "lr is None": (["adamw"], regrouped(lr=None)),
    "momentum is infinite": (["sgd"], regrouped(momentum=float("inf"))),
    "momentum is negative": (["sgd"], regrouped(momentum=-0.5)),
    "weight_decay is NaN": ([*BASES], regrouped(weight_decay=float("nan"))),
    "beta is 1": (["adam", "adamw", "lion"], regrouped(betas=(0.9, 1.0))),
    "beta is NaN": (["adam"], regrouped(betas=(float("nan"), 0.9))),
    "betas is one number": (["adam"], regrouped(betas=(0.9,))),
    "betas is a number": (["adam"], regrouped(betas=0.9)),
    "eps is negative": (["adam", "adamw"], regrouped(eps=-1.0)),
    "rho is negative": ([*BASES], regrouped(rho=-1.0)),
    "rho is infinite": (["sgd"], regrouped(rho=float("inf"))),
    "rho is a list": (["sgd"], regrouped(rho=[0.1])),
    "eta is NaN": (["sgd"], regrouped(eta=float("nan"))),
    "adaptive is a string": (["sgd"], regrouped(adaptive="yes")),
}
CASES = [(base, name) for name, (bases, _) in EDITS.items() for base in bases]


def assert_refused_and_unchanged(base: str, saved: Any) -> None:
    net, opt = trained(base)
    twin, other = copy.deepcopy((net, opt))
    groups = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups])
    state, clean = copy.deepcopy(opt.state_dict()["state"]), weights(net)
    with pytest.raises((ValueError, TypeError)) as error:
        opt.load_state_dict(saved)
    assert len(str(error.value)) > 20 and "object has no attribute" not in str(error.value) and "not subscriptable" not in str(error.value)
    assert "not iterable" not in str(error.value), "an accident, not a check"
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    assert [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups] == groups
    assert opt.param_groups is opt.base_optimizer.param_groups and opt.state is opt.base_optimizer.state
    now = opt.state_dict()["state"]
    assert now.keys() == state.keys()
    assert all(torch.equal(now[k][name], value) for k, entry in state.items() for name, value in entry.items())
    train(net, opt, 2, start=2)
    train(twin, other, 2, start=2)
    assert same(net, twin), "it must go on as if nothing had been tried"


@pytest.mark.parametrize(("base", "name"), CASES, ids=[f"{base}-{name}" for base, name in CASES])
def test_broken_checkpoints_are_refused(base: str, name: str) -> None:
    saved = foreign(base)
    EDITS[name][1](saved)
    assert_refused_and_unchanged(base, saved)


@pytest.mark.parametrize("saved", [None, 3, [], {}, "state", torch.zeros(3), {"state": {}}], ids=repr)
def test_what_is_no_checkpoint_is_refused(saved: Any) -> None:
    assert_refused_and_unchanged("sgd", saved)


FOREIGN = [(a, b) for a in BASES for b in BASES if a != b and {a, b} != {"adam", "adamw"}]


@pytest.mark.parametrize(("base", "other"), FOREIGN)
def test_checkpoints_of_another_base(base: str, other: str) -> None:
    """Adam's and AdamW's are alike, and torch exchanges them; the others miss something or bring what has no place."""
    saved = foreign(other)
    if other == "amsgrad" and base in ("adam", "adamw"):  # the options come with the state: it is AMSGrad from now on, as in torch
        net, opt = trained(base)
        opt.load_state_dict(saved)
        assert opt.param_groups[0]["amsgrad"] is True
        train(net, opt, 1)
        return
    if base == "amsgrad" and other in ("adam", "adamw"):
        net, opt = trained(base)
        opt.load_state_dict(saved)
        assert opt.param_groups[0]["amsgrad"] is False
        train(net, opt, 1)
        return
    assert_refused_and_unchanged(base, saved)


@pytest.mark.parametrize("extra", ["old_p", "e_w"])
@pytest.mark.parametrize("base", BASES)
def test_checkpoints_of_the_single_file_wrapper(base: str, extra: str) -> None:
    """It keeps saved weights in its state, and its entries are there before the base has made any."""
    net, opt = trained(base)
    twin, other = copy.deepcopy((net, opt))
    saved = foreign(base)
    shapes = [p.shape for p in net.parameters()]
    saved["state"] = {i: {**saved["state"].get(i, {}), extra: torch.randn(shape)} for i, shape in enumerate(shapes)}
    for key in ("eta",):
        saved["param_groups"][0].pop(key)  # it has rho and adaptive, no more
    opt.load_state_dict(saved)
    assert extra not in {key for entry in opt.state_dict()["state"].values() for key in entry}
    train(net, opt, 2, start=2)
    train(twin, other, 2, start=2)
    assert same(net, twin)
    saved["state"] = {i: {extra: torch.randn(shape)} for i, shape in enumerate(shapes)}
    opt.load_state_dict(saved)
    assert not opt.state_dict()["state"], "saved weights alone are no state"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", BASES)
def test_state_of_half_parameters_stays_fp32(base: str, dtype: torch.dtype) -> None:
    whole, part = model(dtype=dtype), model(dtype=dtype)
    one, first = build(whole, base), build(part, base)
    train(whole, one, 6)
    train(part, first, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert all(x.dtype == torch.float32 for entry in saved["state"].values() for x in entry.values())
    resumed = build(part, base)
    resumed.load_state_dict(saved)
    assert all(x.dtype == torch.float32 for entry in resumed.state.values() for x in entry.values())
    again = resumed.state_dict()  # saved again before any step
    assert all(torch.equal(again["state"][k][n], x) for k, entry in saved["state"].items() for n, x in entry.items())
    train(part, resumed, 3, start=3)
    assert same(whole, part), "resumed equals uninterrupted"


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("base", ["sgd", "adam", "adamw", "amsgrad"])
def test_there_and_back_again(base: str, backend: str) -> None:
    """Every step with the optimizer that the checkpoint did not come from, against torch alone."""
    for op in OPS.values():
        if backend not in op.implementations:
            skip_or_fail(backend, op.missing.get(backend, "not built"))
    alone, ours = model(), model()
    plain = lambda net: BASES[base][0](net.parameters(), **BASES[base][1])  # noqa: E731
    truth, saved = plain(alone), plain(ours).state_dict()
    for step in range(8):
        truth.zero_grad()
        closure_of(alone, step)()
        truth.step()
        opt = build(ours, base, rho=0.0, backend=backend) if step % 2 else plain(ours)
        opt.load_state_dict(saved)
        if step % 2:
            opt.step(closure_of(ours, step))
        else:
            opt.zero_grad()
            closure_of(ours, step)()
            opt.step()
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        assert_loop(base, weights(ours), weights(alone))
        if base == "sgd" and backend == "cpp":
            assert same(ours, alone), "bit for bit"
    theirs = truth.state_dict()["state"]
    assert {k: set(v) for k, v in saved["state"].items()} == {k: set(v) for k, v in theirs.items()}
    for key in theirs[0]:
        assert_loop(key, [entry[key] for entry in saved["state"].values()], [entry[key] for entry in theirs.values()])


def test_a_checkpoint_is_not_shared_with_the_optimizer_that_took_it() -> None:
    net, opt = trained("adamw")
    saved = foreign("adamw")
    before = copy.deepcopy(saved)
    opt.load_state_dict(saved)
    train(net, opt, 2)
    assert all(torch.equal(before["state"][k][n], x) for k, entry in saved["state"].items() for n, x in entry.items())
    assert before["param_groups"] == saved["param_groups"]


def test_state_of_a_part_of_the_parameters() -> None:
    """As torch saves it where some never had a gradient: theirs starts afresh."""
    net, opt = trained("adamw")
    saved = opt.state_dict()
    saved["state"] = {k: v for k, v in saved["state"].items() if k != 1}
    opt.load_state_dict(saved)
    train(net, opt, 1)
    steps = [entry["step"].item() for _, entry in sorted(opt.state_dict()["state"].items())]
    assert steps == [3.0, 1.0, *[3.0] * (len(steps) - 2)]
