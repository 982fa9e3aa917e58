"""``draw`` on the CPU; on GPUs Triton serves it."""

import torch
from torch import Tensor

from ...ops.lists import accumulator
from .call import native

SCHEMAS = {"draw": "(Tensor weights, int k, str scheme, Tensor state, Tensor(a!) counts, Tensor(b!) inclusion, Tensor(c!) flag) -> ()"}
CPU_ONLY = ("draw",)


def _draw(weights: Tensor, k: int, scheme: str, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts = weights.new_empty(weights.shape, dtype=torch.int32)
    inclusion = weights.new_empty(weights.shape, dtype=accumulator(weights.dtype))
    flag = weights.new_empty((), dtype=torch.int32)
    native("draw")(weights, k, scheme, state, counts, inclusion, flag)
    return counts, inclusion, flag


FUNCTIONS = {"draw": _draw}
