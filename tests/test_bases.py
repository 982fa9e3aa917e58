"""Every fused base under SAM: against its equations in fp64, against torch where rho = 0, in half types, with skipped steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import STEPS, closure_of, groups_of, loss_of, model, same, train, weights
from tolerance import assert_elementwise, assert_loop
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from sam_kernels.ops import descend_
from sam_kernels.optim import SAM, AdaSAM, StableSAM
from sam_kernels.optim.plain import AMSGrad, Lion

RHO, LR = 0.05, 0.01


def adam(o: dict[str, Any], t: int, w: Tensor, u: Tensor, s: dict[str, Tensor]) -> Tensor:
    """Adam, AdamW, AMSGrad from the papers; the same order of equations as nobody's code."""
    if o.get("maximize"):
        u = -u
    if o["decoupled"]:
        w = w - LR * o["weight_decay"] * w
    else:
        u = u + o["weight_decay"] * w
    s["m"] = o["b1"] * s.get("m", 0.0) + (1 - o["b1"]) * u
    s["v"] = o["b2"] * s.get("v", 0.0) + (1 - o["b2"]) * u * u
    top = s["v"]
    if o.get("amsgrad"):
        top = s["top"] = torch.maximum(s.get("top", torch.full_like(u, o.get("initial_v", 0.0))), s["v"])
    c1, c2 = (1 - o["b1"] ** t, 1 - o["b2"] ** t) if o.get("corrected", True) else (1.0, 1.0)
    return w - LR * (s["m"] / c1) / ((top / c2).sqrt() + o["eps"])


def lion(o: dict[str, Any], t: int, w: Tensor, u: Tensor, s: dict[str, Tensor]) -> Tensor:
    m = s.get("m", torch.zeros_like(u))
    direction = torch.sign(o["b1"] * m + (1 - o["b1"]) * u)
    s["m"] = o["b2"] * m + (1 - o["b2"]) * u
    return w - LR * (direction + o["weight_decay"] * w)


ADAM: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False}
ADAMW = {**ADAM, "weight_decay": 0.01, "decoupled": True}
SETTINGS: dict[str, tuple[Any, dict[str, Any], Callable[..., Tensor], dict[str, Any]]] = {
    "adam": (Adam, {}, adam, ADAM),
    "adam_decay": (Adam, {"weight_decay": 0.1, "betas": (0.8, 0.9)}, adam, {**ADAM, "weight_decay": 0.1, "b1": 0.8, "b2": 0.9}),
    "adamw": ("adamw", {}, adam, ADAMW),
    "adamw_amsgrad": (AdamW, {"amsgrad": True, "eps": 1e-3}, adam, {**ADAMW, "amsgrad": True, "eps": 1e-3}),
    "adam_maximize": (Adam, {"maximize": True}, adam, {**ADAM, "maximize": True}),
    "adasam": ("amsgrad", {"initial_v": 1e-4}, adam, {**ADAM, "amsgrad": True, "eps": 0.0, "corrected": False, "initial_v": 1e-4}),
    "lion": ("lion", {"weight_decay": 0.1}, lion, {"b1": 0.9, "b2": 0.99, "weight_decay": 0.1}),
}  # fmt: skip


def plain_loop(net: nn.Module, update: Callable[..., Tensor], o: dict[str, Any], steps: int, stable: bool) -> None:
    params: list[Tensor] = list(net.parameters())
    states: list[dict[str, Tensor]] = [{} for _ in params]
    sign = -1.0 if o.get("maximize") else 1.0
    for step in range(steps):
        g = torch.autograd.grad(loss_of(net, step), params)
        clean = [p.detach().clone() for p in params]
        norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
        with torch.no_grad():
            for p, x in zip(params, g, strict=True):
                p += sign * RHO * x / norm
        h = torch.autograd.grad(loss_of(net, step), params)
        scale = norm / torch.stack([x.square().sum() for x in h]).sum().sqrt() if stable else 1.0
        with torch.no_grad():
            for p, w, u, s in zip(params, clean, h, states, strict=True):
                p.copy_(update(o, step + 1, w, scale * u, s))


@pytest.mark.parametrize("stable", [False, True], ids=["sam", "stable"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_many_steps_against_the_equations(setting: str, stable: bool, place: tuple[str, str]) -> None:
    backend, device = place
    base, options, update, o = SETTINGS[setting]
    kind = StableSAM if stable else SAM
    truth = model()
    plain_loop(truth, update, o, STEPS, stable)
    if backend in ("reference", "cpp"):
        net = model(device=device)
        train(net, kind(net.parameters(), base, RHO, backend=backend, lr=LR, **options))
        assert_loop(setting, weights(net), weights(truth))
    fused, plain = model(dtype=torch.float32, device=device), model(dtype=torch.float32, device=device)
    train(fused, kind(fused.parameters(), base, RHO, backend=backend, lr=LR, **options))
    plain_loop(plain, update, o, STEPS, stable)
    assert_elementwise(setting, weights(fused), weights(plain), weights(truth), torch.float32)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "base, options", [(Adam, {}), (Adam, {"weight_decay": 0.1}), (AdamW, {}), (AdamW, {"amsgrad": True, "maximize": True})]
)
def test_rho_zero_is_torch(base: Any, options: dict[str, Any], foreach: bool) -> None:
    ours, theirs, truth = model(dtype=torch.float32), model(dtype=torch.float32), model()
    opt = SAM(ours.parameters(), base, rho=0.0, lr=LR, **options)
    others = [(net, base(net.parameters(), lr=LR, foreach=foreach, **options)) for net in (theirs, truth)]
    for step in range(STEPS):
        opt.step(closure_of(ours, step))
        for net, other in others:
            other.zero_grad()
            closure_of(net, step)()
            other.step()
    assert_elementwise("weights", weights(ours), weights(theirs), weights(truth), torch.float32)
    states = [o.state_dict()["state"] for o in (opt, others[0][1], others[1][1])]
    assert states[0].keys() == states[1].keys() and all(states[0][k].keys() == states[1][k].keys() for k in states[0])
    for key in states[0][0]:
        assert_elementwise(key, *([s[k][key] for k in s] for s in states), torch.float32)


@pytest.mark.parametrize("base", [SGD, Adam, AdamW, AMSGrad, Lion])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_fp32_state(base: Any, dtype: torch.dtype, place: tuple[str, str]) -> None:
    """One step errs by one rounding of the weight; the state is that of an fp32 run on the same gradients, not a rounded one."""
    backend, device = place
    options = {"momentum": 0.9} if base is SGD else {}
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator).to(dtype) for s in ((40, 3), (7,), (2, 3, 5))]
    grads = [[[torch.randn(x.shape, generator=generator).to(dtype) for x in start] for _ in range(2)] for _ in range(4)]
    runs = {}
    for name, kind in (("half", dtype), ("truth", torch.float64), ("plain", torch.float32)):
        where = {"backend": backend, "device": device} if name == "half" else {"backend": "reference", "device": "cpu"}
        params = [x.to(where["device"], kind, copy=True).requires_grad_() for x in start]
        opt = SAM(params, base, 0.05, backend=where["backend"], lr=1e-3, **options)
        for g, h in grads:
            for values, phase in ((g, opt.first_step), (h, opt.second_step)):
                for p, x in zip(params, values, strict=True):
                    p.grad = x.to(kind).to(where["device"])
                phase()
            if name != "half":  # the weights are rounded after every step, as they are stored
                for p in params:
                    p.data.copy_(p.data.to(dtype))
        runs[name] = params, [s for p in params for k, s in sorted(opt.state[p].items()) if k != "step"]
    assert {s.dtype for s in runs["half"][1]} == {torch.float32}
    assert all(p.dtype == dtype for p in runs["half"][0])
    assert_elementwise("weights", runs["half"][0], runs["plain"][0], runs["truth"][0], dtype)
    assert_elementwise("state", runs["half"][1], runs["plain"][1], runs["truth"][1], torch.float32)


@pytest.mark.parametrize("base", ["adamw", "lion", "amsgrad"])
def test_a_skipped_step_does_not_count(base: str, place: tuple[str, str]) -> None:
    backend, device = place
    nets = [model(dtype=torch.float32, device=device) for _ in range(2)]
    opts = [SAM(net.parameters(), base, lr=LR, backend=backend) for net in nets]
    for step in range(4):
        if step in (0, 2):  # one more step, with a bad first gradient, before there is state and after
            closure_of(nets[0], step)()
            next(nets[0].parameters()).grad.view(-1)[0] = float("inf")
            opts[0].first_step()
            opts[0].second_step(zero_grad=True)
            assert same(*nets)
            if step == 0:
                assert not opts[0].state_dict()["state"], "nothing was updated, so there is no state"
        for net, opt in zip(nets, opts, strict=True):
            opt.step(closure_of(net, step))
        assert same(*nets)
    a, b = (opt.state_dict()["state"] for opt in opts)
    assert all(torch.equal(a[k][n], b[k][n]) for k in b for n in b[k]) and a[0]["step"].item() == 4


def test_mixed_dtypes_and_groups_share_one_norm(place: tuple[str, str]) -> None:
    backend, device = place
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float32]
    params = [torch.full((n,), 1.0, dtype=d, device=device).requires_grad_() for n, d in zip((3, 5, 4, 2), kinds, strict=True)]
    groups = [{"params": params[:2]}, {"params": params[2:3], "rho": 0.0}, {"params": params[3:], "adaptive": True, "eta": 1.0}]
    opt = StableSAM(groups, "sgd", rho=0.5, lr=1.0, backend=backend)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    opt.first_step()
    norm = (0.25 * (3 + 5) + 0.25 * 2 * 2**2) ** 0.5  # adaptive: (|1| + 1)^2; the group with rho = 0 is not counted
    moved = [1 + 0.5 * 0.5 / norm] * 2 + [1.0, 1 + 0.5 * 4 * 0.5 / norm]
    for p, expected in zip(params, moved, strict=True):
        assert torch.equal(p.detach(), torch.full_like(p, expected))
    assert abs(opt.grad_norm.item() - (0.25 * 14) ** 0.5) < 1e-6
    for p in params:
        p.grad = torch.full_like(p, 2.0)  # |h| = 4 |g|: u = h / 4
    opt.second_step()
    for p in params:
        assert torch.equal(p.detach(), torch.full_like(p, 0.5))


@pytest.mark.parametrize("kind", [Lion, AMSGrad])
def test_plain_optimizers_alone_and_as_a_base_agree(kind: Any) -> None:
    alone, inside = model(), model()
    plain, opt = kind(alone.parameters(), lr=LR), SAM(inside.parameters(), kind, rho=0.0, lr=LR)
    for step in range(4):
        plain.zero_grad()
        plain.step(closure_of(alone, step))
        opt.step(closure_of(inside, step))
    assert_loop("weights", weights(alone), weights(inside))
    again = kind(alone.parameters(), lr=LR)
    again.load_state_dict(opt.state_dict() | {"param_groups": plain.state_dict()["param_groups"]})
    opt.load_state_dict(plain.state_dict())
    assert opt.state_dict()["state"][0]["step"] == again.state_dict()["state"][0]["step"] == 4


def test_adasam_is_its_equations() -> None:
    ours, truth = model(), model()
    train(ours, AdaSAM(ours.parameters(), rho=RHO, lr=LR, eps=1e-2))
    plain_loop(truth, adam, {**ADAM, "amsgrad": True, "eps": 0.0, "corrected": False, "initial_v": 1e-4}, STEPS, False)
    assert_loop("adasam", weights(ours), weights(truth))


def test_options_per_group(place: tuple[str, str]) -> None:
    """Two groups of one optimizer do what two optimizers do, rho = 0 so that no norm joins them."""
    backend, device = place
    options = [{"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}, {"lr": 0.03, "amsgrad": True, "eps": 1e-3, "maximize": True}]
    joint, apart = (model(dtype=torch.float32, device=device) for _ in range(2))
    one = [SAM(groups_of(joint, options), AdamW, rho=0.0, backend=backend)]
    two = [SAM(group["params"], AdamW, rho=0.0, backend=backend, **o) for group, o in zip(groups_of(apart, options), options, strict=True)]
    for step in range(4):
        for net, opts in ((joint, one), (apart, two)):
            for phase in ("first_step", "second_step"):
                net.zero_grad()
                closure_of(net, step)()
                for opt in opts:
                    getattr(opt, phase)()
    assert same(joint, apart)
    keys = [set(one[0].state[p]) for p in joint.parameters()]
    assert keys[0] < keys[1] and keys[1] - keys[0] == {"max_exp_avg_sq"}


def test_a_resized_parameter_needs_a_new_state() -> None:
    w = torch.ones(3, requires_grad=True)
    opt = SAM([w], "adamw", lr=0.1)
    opt.step(lambda: (w.sum().backward(), w.sum())[1])
    w.data, w.grad = torch.ones(5), torch.ones(5)
    with pytest.raises(ValueError, match=r"exp_avg of a parameter of shape \(5,\) has shape \(3,\)"):
        opt.first_step()
    assert torch.equal(w.detach(), torch.ones(5))
    del opt.state[w]
    opt.step(lambda: (w.sum().backward(), w.sum())[1])
    assert opt.state[w]["step"] == 1


def test_adam_without_eps_meets_zero_gradients() -> None:
    def stepped(dtype: torch.dtype, backend: str) -> list[Tensor]:
        w, h = [torch.ones(3, dtype=dtype)], [torch.tensor([0.0, 1.0, -1.0], dtype=dtype)]
        state = {name: [torch.zeros(3, dtype=dtype)] for name in ("m", "v")}
        descend_(w, h, base="adam", lr=0.1, eps=0.0, steps=torch.zeros(1), backend=backend, **state)
        return w

    truth = [torch.tensor([1.0, 0.9, 1.1], dtype=torch.float64)]
    assert_loop("reference", stepped(torch.float64, "reference"), truth)
    assert_elementwise("cpp", stepped(torch.float32, "cpp"), stepped(torch.float32, "reference"), truth, torch.float32)
