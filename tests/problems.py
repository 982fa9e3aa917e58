"""A small training problem for the optimizer tests, and the equations of the presets as plain loops on fp64 tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]
STEPS = 8
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}


def model(seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    return net.to(dtype=dtype, device=device)


def batch(step: int, net: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    like = next(net.parameters())
    x = torch.randn(12, 1, 6, 6, generator=generator, dtype=torch.float64).to(like)
    return x, torch.randint(0, 3, (12,), generator=generator).to(like.device)


def loss_of(net: nn.Module, step: int) -> Tensor:
    x, y = batch(step, net)
    return nn.functional.cross_entropy(net(x), y)


def closure_of(net: nn.Module, step: int, sign: float = 1.0) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        loss = sign * loss_of(net, step)
        loss.backward()
        return loss

    return closure


def groups_of(net: nn.Module, options: Groups) -> Groups:
    """The parameters dealt out over the groups of ``options``, in turn."""
    params = list(net.parameters())
    return [{"params": params[i :: len(options)], **option} for i, option in enumerate(options)]


DEFAULTS = {"lr": 0.1, "rho": 0.05, "adaptive": False, "eta": 0.0, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0,
            "nesterov": False, "maximize": False}  # fmt: skip


def plain_loop(
    net: nn.Module, options: Groups, steps: int, stable: bool = False, normalize: bool = True, max_norm: float | None = None
) -> None:
    """SAM, ASAM and Stable SAM with SGD straight from their equations, per tensor, on ``net`` in place."""
    params = list(net.parameters())
    option = [{**DEFAULTS, **options[i % len(options)]} for i in range(len(params))]
    buffers: list[Tensor | None] = [None] * len(params)
    for step in range(steps):
        signs = [-1.0 if o["maximize"] else 1.0 for o in option]
        g = [s * x for s, x in zip(signs, torch.autograd.grad(loss_of(net, step), params), strict=True)]
        c = [p.detach().abs() + o["eta"] if o["adaptive"] else torch.ones_like(p) for p, o in zip(params, option, strict=True)]
        counted = [(a * x).square().sum() for a, x, o in zip(c, g, option, strict=True) if o["rho"]]
        norm = torch.stack(counted).sum().sqrt() if counted else torch.ones(())
        clean = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, a, x, o in zip(params, c, g, option, strict=True):
                p += o["rho"] * a * a * x / (norm + 1e-12 if normalize else 1.0)
        h = [s * x for s, x in zip(signs, torch.autograd.grad(loss_of(net, step), params), strict=True)]
        if stable:
            gamma = torch.stack([x.square().sum() for x in g]).sum().sqrt() / torch.stack([x.square().sum() for x in h]).sum().sqrt()
            h = [gamma * x for x in h]
        if max_norm is not None:
            size = torch.stack([x.square().sum() for x in h]).sum().sqrt()
            h = [x * (max_norm / (size + 1e-6)).clamp(max=1.0) for x in h]
        with torch.no_grad():
            for i, (p, w, u, o) in enumerate(zip(params, clean, h, option, strict=True)):
                u = u + o["weight_decay"] * w
                if o["momentum"]:
                    held = buffers[i]
                    m = buffers[i] = u if held is None else o["momentum"] * held + (1 - o["dampening"]) * u
                    u = u + o["momentum"] * m if o["nesterov"] else m
                p.copy_(w - o["lr"] * u)


def train(net: nn.Module, opt: torch.optim.Optimizer, steps: int = STEPS, start: int = 0) -> None:
    for step in range(start, start + steps):
        opt.step(closure_of(net, step))


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
