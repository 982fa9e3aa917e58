"""The specification of ascend_: its formulas in plain torch."""

import torch
from torch import Tensor

from .philox import random_signs

HYPER = ("rho", "eta", "adaptive", "maximize")


def reference(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str,
    noise: Tensor | None, noise_stream: int,
) -> None:  # fmt: skip
    """The specification: plain torch, any device and floating dtype."""
    dtype = sq_norm.dtype
    table = torch.tensor(hyper, dtype=dtype, device=sq_norm.device).view(-1, len(HYPER))
    rhos = table[:, 0] if rho is None else rho.to(dtype)
    if noise is not None:
        grads = [random_signs(noise, t, noise_stream, w, dtype) for t, w in enumerate(params)]
        gram = None
    alpha, beta = torch.tensor(direction, dtype=dtype, device=sq_norm.device) if direction_device is None else direction_device.to(dtype)

    def parts(t: int) -> tuple[Tensor, Tensor | float]:
        _, eta, adaptive, maximize = hyper[len(HYPER) * group[t] : len(HYPER) * (group[t] + 1)]
        d = torch.zeros_like(params[t], dtype=dtype)
        for factor, x in ((alpha, grads), (beta, q)):  # a list whose factor is 0 is not looked at
            d = torch.where(factor != 0, d + factor * x[t].to(dtype), d) if x else d
        return -d if maximize else d, params[t].to(dtype).abs() + eta if adaptive else 1.0

    if phase != "update":
        zero = torch.zeros_like(sq_norm[0])
        total = zero
        for t, row in enumerate(group):
            d, c = parts(t)
            total = total + torch.where(rhos[row] != 0, (c * d).square().sum(), zero)
        sq_norm[0] = total
        if gram is not None and grads:
            gram[0] = sum((g.to(dtype).square().sum() for g in grads), zero)
    if phase == "norm":
        return
    finite = torch.isfinite(sq_norm[0])
    moves = finite & (sq_norm[0] > 0)
    for t, row in enumerate(group):
        d, c = parts(t)
        s = rhos[row] / (sq_norm[0].sqrt() + eps) if normalize else rhos[row]
        moved = (params[t].to(dtype) + s * (c * c * d)).to(params[t].dtype)
        stash[t].copy_(params[t])
        params[t].copy_(torch.where(moves & (rhos[row] != 0), moved, params[t]))
        if ema:
            g = grads[t].to(dtype)
            mean = ema[0] * q[t].to(dtype) + ema[1] * g
            mean = mean if q_steps is None else torch.where(q_steps[0] == 0, g, mean)
            q[t].copy_(torch.where(finite, mean.to(q[t].dtype), q[t]))
    if q_steps is not None and ema:
        q_steps += finite
