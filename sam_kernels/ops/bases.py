"""Base updates of descend_: their hyperparameters, in the order of the tables that cross to the kernels, and their references."""

import torch
from torch import Tensor

HYPER = {"none": (), "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")}


def sgd(
    values: list[float], lr: Tensor | None, row: int, clean: Tensor, at: Tensor, u: Tensor, direct: Tensor,
    m: Tensor | None, step: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """torch.optim.SGD beside a direct term: the new weight and the new buffer (None without momentum)."""
    rate, momentum, dampening, weight_decay, nesterov, maximize = values
    alpha = lr[row].to(u.dtype) if lr is not None else rate
    u, direct = (-u, -direct) if maximize else (u, direct)
    if weight_decay != 0:
        u = u + weight_decay * at.to(u.dtype)
    if m is not None and momentum != 0:
        buffer = m.to(u.dtype) * momentum + (1 - dampening) * u
        m = torch.where(step == 0, u, buffer) if step is not None else buffer
        u = u + momentum * m if nesterov else m
    return clean.to(u.dtype) - alpha * u - alpha * direct, m
