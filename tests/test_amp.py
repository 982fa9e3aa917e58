"""GradScaler end to end: the order of calls that the README gives, with clipping, with overflow in either pass, with every rule."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from problems import loss_of, model, same, weights
from tolerance import assert_elementwise
from torch import nn
from torch.amp import GradScaler

from sam_kernels.optim import SAM, ReweightedSAM, StableSAM, rules

SCALE = 1024.0  # a power of two: scaling is exact, so results agree to rounding


def scaler_on(device: str) -> GradScaler:
    return GradScaler(device, init_scale=SCALE, growth_interval=1000)


def backward(net: nn.Module, step: int, scaler: GradScaler | None, factor: float = 1.0) -> None:
    net.zero_grad()
    loss = loss_of(net, step) * factor
    (loss if scaler is None else scaler.scale(loss)).backward()


def train(net: nn.Module, opt: SAM, scaler: GradScaler | None, told: bool = False, unscale: bool = False, steps: int = 4) -> None:
    for step in range(steps):
        backward(net, step, scaler)
        opt.first_step(zero_grad=True, scaler=scaler if told else None)
        backward(net, step, scaler)
        if scaler is None:
            opt.second_step()
            continue
        if unscale:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()


SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {"lr": 0.1, "momentum": 0.9},
    "stable": {"lr": 0.1, "momentum": 0.9, "kind": StableSAM},
    "clipped": {"lr": 0.1, "max_norm": 0.2},
    "stable_clipped": {"lr": 0.1, "max_norm": 0.2, "kind": StableSAM},
    "adamw": {"base": "adamw", "lr": 0.01},
    "gsam": {"lr": 0.1, "descent": rules.Descent(rules.Combination(u={"h": (1.0, 0.0, 0.3), "g": -0.3}))},
    "generic": {"base": torch.optim.RMSprop, "lr": 0.01},
    "generic_stable_clipped": {"base": torch.optim.RMSprop, "lr": 0.01, "kind": StableSAM, "max_norm": 0.2},
}


def build(net: nn.Module, backend: str, setting: dict[str, Any]) -> SAM:
    setting = dict(setting)
    return setting.pop("kind", SAM)(net.parameters(), setting.pop("base", "sgd"), backend=backend, **setting)


@pytest.mark.parametrize("told", [False, True], ids=["", "told"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_scaling_changes_nothing(setting: str, told: bool, place: tuple[str, str]) -> None:
    backend, device = place
    nets = {name: model(dtype=torch.float32, device=device) for name in ("scaled", "plain")}
    truth = model()
    train(nets["scaled"], build(nets["scaled"], backend, SETTINGS[setting]), scaler_on(device), told)
    train(nets["plain"], build(nets["plain"], backend, SETTINGS[setting]), None)
    train(truth, build(truth, "reference", SETTINGS[setting]), None)
    assert_elementwise(setting, weights(nets["scaled"]), weights(nets["plain"]), weights(truth), torch.float32)
    assert not same(nets["plain"], model(dtype=torch.float32, device=device))


@pytest.mark.parametrize("setting", ["stable_clipped", "gsam", "generic_stable_clipped"])
def test_unscale_with_a_scaler_that_the_first_step_knew(setting: str, place: tuple[str, str]) -> None:
    backend, device = place
    scaled, plain = (model(dtype=torch.float32, device=device) for _ in range(2))
    truth = model()
    train(scaled, build(scaled, backend, SETTINGS[setting]), scaler_on(device), told=True, unscale=True)
    train(plain, build(plain, backend, SETTINGS[setting]), None)
    train(truth, build(truth, "reference", SETTINGS[setting]), None)
    assert_elementwise(setting, weights(scaled), weights(plain), weights(truth), torch.float32)


def test_unscale_of_a_rule_that_reads_the_first_gradient_is_refused() -> None:
    net = model(dtype=torch.float32)
    opt, scaler, clean = StableSAM(net.parameters(), "sgd", lr=0.1), scaler_on("cpu"), weights(net)
    backward(net, 0, scaler)
    opt.first_step()
    backward(net, 0, scaler)
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match=r"the clean weights are restored: call first_step\(scaler=scaler\)"):
        scaler.step(opt)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    assert not hasattr(opt, "grad_scale") and not hasattr(opt, "found_inf"), "what the scaler left must not reach the next step"
    scaler.update()
    train(net, opt, scaler, told=True, unscale=True, steps=1)
    assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


def test_unnormalized_ascent_needs_the_scaler(place: tuple[str, str]) -> None:
    backend, device = place
    scaled, plain, refused = (model(dtype=torch.float32, device=device) for _ in range(3))
    options = {"lr": 0.1, "rho": 0.1, "normalize": False}
    truth = model()
    train(scaled, build(scaled, backend, options), scaler_on(device), told=True)
    train(plain, build(plain, backend, options), None)
    train(truth, build(truth, "reference", options), None)
    assert_elementwise("unnormalized", weights(scaled), weights(plain), weights(truth), torch.float32)
    with pytest.raises(RuntimeError, match="not normalized"):
        train(refused, build(refused, backend, options), scaler_on(device))
    assert same(refused, model(dtype=torch.float32, device=device))


@pytest.mark.parametrize("setting", ["sam", "stable", "adamw", "generic"])
@pytest.mark.parametrize("bad", ["first", "second", "both"])
def test_overflow_skips_and_backs_off(setting: str, bad: str, place: tuple[str, str]) -> None:
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    opt, scaler = build(net, backend, SETTINGS[setting]), scaler_on(device)
    train(net, opt, scaler, steps=1)
    clean, state = weights(net), {k: {n: x.clone() for n, x in s.items()} for k, s in opt.state_dict()["state"].items()}
    backward(net, 1, scaler, float("inf") if bad in ("first", "both") else 1.0)
    opt.first_step(zero_grad=True)
    backward(net, 1, scaler, float("inf") if bad in ("second", "both") else 1.0)
    scaler.step(opt)
    scaler.update()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)), "weights clean and untouched"
    now = opt.state_dict()["state"]
    assert all(torch.equal(now[k][n], state[k][n]) for k in state for n in state[k]), "state untouched"
    assert scaler.get_scale() == (SCALE if bad == "first" else SCALE / 2)
    train(net, opt, scaler, steps=1)
    assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


def test_grad_norm_is_that_of_the_true_gradient_where_the_scaler_is_known() -> None:
    net = model(dtype=torch.float32)
    opt, scaler = build(net, "cpp", SETTINGS["sam"]), scaler_on("cpu")
    backward(net, 0, None)
    norm = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
    backward(net, 0, scaler)
    opt.first_step(scaler=scaler)
    assert abs(opt.grad_norm - norm) <= 1e-6 * norm
    opt.restore()
    opt.first_step()
    assert abs(opt.grad_norm - SCALE * norm) <= 1e-6 * SCALE * norm


def test_a_disabled_scaler_is_no_scaler() -> None:
    nets = [model(dtype=torch.float32) for _ in range(2)]
    for net, scaler in zip(nets, (GradScaler("cpu", enabled=False), None), strict=True):
        train(net, build(net, "cpp", SETTINGS["stable"]), scaler, told=True)
    assert same(*nets)


def test_a_scaler_that_has_not_scaled_is_refused_before_anything_is_written() -> None:
    net = model(dtype=torch.float32)
    backward(net, 0, None)
    opt = build(net, "cpp", SETTINGS["sam"])
    with pytest.raises(RuntimeError, match="has not scaled a loss yet"):
        opt.first_step(scaler=scaler_on("cpu"))
    assert same(net, model(dtype=torch.float32))
    opt.first_step()


def test_half_precision_weights_under_a_scaler() -> None:
    """torch refuses to unscale fp16 gradients; the step takes the scale out itself."""
    w = torch.ones(4, dtype=torch.float16, requires_grad=True)
    opt, scaler = SAM([w], "sgd", lr=0.5, rho=0.1), GradScaler("cpu", init_scale=256.0)
    scaler.scale(w.new_ones(1))
    for phase in (opt.first_step, lambda: scaler.step(opt)):
        w.grad = torch.full_like(w, 256.0)
        phase()
    scaler.update()
    assert torch.equal(w.detach(), torch.full_like(w, 0.5))


def test_unscale_before_the_first_step_is_refused() -> None:
    net = model(dtype=torch.float32)
    opt, scaler = SAM(net.parameters(), "sgd", lr=0.1), scaler_on("cpu")
    kept = weights(net)
    backward(net, 0, scaler)
    scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="after the second backward"):
        opt.first_step(scaler=scaler)
    assert all(map(torch.equal, kept, net.parameters()))


# ---- autocast


def weights_after(kind: Any, base: Any, around: Any) -> torch.Tensor:
    """Three steps with an autocast forward, inside of the context ``around``."""
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))
    opt = kind(net.parameters(), base, rho=1.0, lr=0.1)

    def losses(index: Any = None) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.cross_entropy(net(x), y, reduction="none")

    def closure() -> torch.Tensor:
        loss = losses().mean()
        loss.backward()
        return loss

    with around:
        for _ in range(3):
            opt.step(closure) if kind is SAM else opt.step(losses, batch_size=16)
    return net.weight.detach()


@pytest.mark.parametrize("base", ["sgd", torch.optim.Rprop])
@pytest.mark.parametrize("kind", [SAM, partial(ReweightedSAM, lam=1.0, estimator="finite_difference", delta=0.05)])
def test_one_autocast_region_around_whole_steps_sees_the_weights_of_each_pass(kind: Any, base: Any) -> None:
    """autocast keeps its copies of weights in lower precision until the outermost region ends."""
    inside = weights_after(kind, base, torch.autocast("cpu", torch.bfloat16))
    assert torch.equal(inside, weights_after(kind, base, nullcontext()))
