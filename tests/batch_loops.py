"""The batch-side algorithms as plain loops on fp64 tensors: autograd, torch's own base optimizer, nothing of the library but what a test
hands in. One ``Loop`` takes the ascents and the update; the functions below are the algorithms."""

from collections.abc import Callable, Sequence
from typing import Any

import problems
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RHO, B = 0.05, 12
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.003}),  # one that is not fused
}
Grads = list[Tensor | None]


class Loop:
    """``adaptive``, ``normalize``: of the ascent. ``mix``: the update sees h + mix g. ``stable``: with the norm of g."""

    def __init__(
        self, net: nn.Module, base: str = "sgd", radius: float = 1.0, adaptive: bool = False, normalize: bool = True, mix: float = 0.0,
        stable: bool = False,
    ) -> None:  # fmt: skip
        self.net, self.params = net, list(net.parameters())
        kind, options = BASES[base]
        self.base = kind(self.params, **options)
        self.rho, self.adaptive, self.normalize, self.mix, self.stable = radius * RHO, adaptive, normalize, mix, stable

    def losses(self, step: int, index: Tensor | None = None) -> Tensor:
        x, y = problems.batch(step, self.net)
        return F.cross_entropy(self.net(x), y, reduction="none") if index is None else F.cross_entropy(
            self.net(x[index]), y[index], reduction="none"
        )  # fmt: skip

    def gradients(self, loss: Tensor, chosen: Sequence[bool] | None = None) -> Grads:
        found = torch.autograd.grad(loss, self.params)
        return [g if chosen is None or chosen[k] else None for k, g in enumerate(found)]

    @torch.no_grad()
    def perturb(self, g: Grads) -> list[Tensor]:
        """Move the weights; return where they were."""
        clean = [w.clone() for w in self.params]
        c = [w.abs() if self.adaptive else torch.ones_like(w) for w in self.params]
        norm = size([None if x is None else a * x for a, x in zip(c, g, strict=True)])
        for w, a, x in zip(self.params, c, g, strict=True):
            if x is not None:
                w += self.rho * a * a * x / (norm + 1e-12 if self.normalize else 1.0)
        return clean

    @torch.no_grad()
    def restore(self, clean: list[Tensor]) -> None:
        for w, w0 in zip(self.params, clean, strict=True):
            w.copy_(w0)

    @torch.no_grad()
    def update(self, g: Grads, h: Grads) -> None:
        u = [x if y is None else x + self.mix * y for x, y in zip(h, g, strict=True)]
        factor = size(g) / size(u) if self.stable else 1.0
        for w, x in zip(self.params, u, strict=True):
            w.grad = factor * x
        self.base.step()


def size(tensors: Grads) -> Tensor:
    return torch.cat([x.flatten() for x in tensors if x is not None]).norm()


def micro_batch(loop: Loop, steps: int, sizes: Sequence[int]) -> list[float]:
    found = []
    for step in range(steps):
        g, h, mean = ([torch.zeros_like(w) for w in loop.params] for _ in range(2)), None, loop.losses(step).mean().item()
        g, h = g
        for part in torch.arange(B).split(list(sizes)):
            share = len(part) / B
            own = loop.gradients(loop.losses(step, part).mean())
            clean = loop.perturb(own)
            for total, x in zip(g, own, strict=True):
                total += share * x
            for total, x in zip(h, loop.gradients(loop.losses(step, part).mean()), strict=True):
                total += share * x
            loop.restore(clean)
        loop.update(g, h)
        found.append(mean)
    return found


def efficient(loop: Loop, steps: int, coins: Callable[[], list[bool]], gamma: float, inclusive: bool) -> list[list[int]]:
    """``coins``: who takes part in the ascents, step by step. Returns the samples of every second pass."""
    found = []
    for step in range(steps):
        before = loop.losses(step)
        g = loop.gradients(before.mean(), coins())
        clean = loop.perturb(g)
        change = (loop.losses(step) - before).detach().tolist()
        order = sorted(range(B), key=lambda i: -change[i])
        if inclusive:
            chosen = order[: max(1, -int(-gamma * B // 1))]
        else:
            chosen = [i for i in order if change[i] > change[order[int(gamma * B) - 1]]] if gamma < 0.99 else order
        h = loop.gradients(loop.losses(step, torch.tensor(chosen)).mean())
        loop.restore(clean)
        loop.update(g, h)
        found.append(sorted(chosen))
    return found


def sampled(
    loop: Loop, steps: int, ids: Callable[[int], Tensor], num_samples: int, choose: Callable[[Tensor], Tensor], alpha: float, s_min: float,
    s_max: float, ramp: int,
) -> tuple[list[list[float]], list[list[int]]]:  # fmt: skip
    """``choose``: odds -> positions. The table, per sample (sum, count), and the samples of every step."""
    table, found = [[1.0, 1.0] for _ in range(num_samples)], []
    for step in range(steps):
        epoch, members = step * B // num_samples, ids(step).tolist()
        chosen = torch.arange(B)
        if epoch > 0 and alpha < 1:
            high = s_max - (ramp - epoch) / ramp * (s_max - s_min) + 1e-9 if epoch <= ramp else s_max + 1e-9
            m = [table[i][0] / table[i][1] for i in members]
            odds = [(v - min(m)) / (max(m) - min(m)) * (high - s_min) + s_min for v in m]
            chosen = choose(torch.tensor(odds, dtype=torch.float64))
        before = loop.losses(step, chosen)
        g = loop.gradients(before.mean())
        clean = loop.perturb(g)
        after = loop.losses(step, chosen)
        h = loop.gradients(after.mean())
        loop.restore(clean)
        loop.update(g, h)
        for i, d in zip(chosen.tolist(), (after - before).abs().tolist(), strict=True):
            row = table[members[i]]
            row[:] = [d, 1.0] if epoch == 0 else [row[0] + d, row[1] + 1]
        found.append(chosen.tolist())
    return table, found
