"""Whole steps as data: a variant of the ascent, a base optimizer and a dtype, and the bytes each has to move."""

from dataclasses import dataclass
from typing import Any

import torch

from ..optim.plain import Lion

VARIANTS = ("sam", "asam", "stable_sam")  # asam: adaptive with eta 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    "lion": (Lion, {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 1e-2}),
}
STATE = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",)}
RADIUS = {"sam": 0.02, "asam": 0.08, "stable_sam": 0.02}
"""rho over the root of the number of parameters: a perturbation that shows in every dtype, whatever the size of the workload."""


@dataclass(frozen=True)
class Method:
    variant: str = "sam"
    base: str = "sgd"
    dtype_name: str = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def adaptive(self) -> bool:
        return self.variant == "asam"

    @property
    def stable(self) -> bool:
        return self.variant == "stable_sam"

    def __str__(self) -> str:
        return f"{self.variant}-{self.base}-{self.dtype_name}"


def bytes_per_parameter(method: Method, state_size: int = 4) -> int:
    """What a step has to move, an operand as often as it must be read: for their norm the gradients, with ASAM the weights, once more.
    ``state_size``: bytes of one element of the base's state."""
    size = method.dtype.itemsize
    norm = size * (2 if method.adaptive else 1)  # g, and w where the norm is of w g
    ascend = 4 * size  # w, g -> w, stash
    descend = 3 * size + 2 * state_size * len(STATE[method.base])  # stash, h, state -> w, state
    second_norm = size if method.stable else 0  # h
    return norm + ascend + descend + second_norm


for _method, _bytes in ((("sam", "sgd"), 40), (("stable_sam", "sgd"), 44), (("asam", "sgd"), 44), (("sam", "adamw"), 48)):
    assert bytes_per_parameter(Method(*_method)) == _bytes
