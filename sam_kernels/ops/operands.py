"""What a kernel over single tensors takes for granted, refused for whoever calls the op: one message for all operands."""

from collections.abc import Sequence

import torch
from torch import Tensor


def require_operand(name: str, x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], like: Tensor) -> None:
    """``x`` must be a contiguous tensor of ``shape`` and one of ``dtypes`` on the device of ``like``."""
    wanted = f"expected a contiguous {' or '.join(map(str, dtypes))} tensor of shape {tuple(shape)} on {like.device}"
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; {wanted}: reshape it, or check the other operands")
    if x.dtype not in dtypes:
        raise ValueError(f"{name} is {x.dtype}; {wanted}: convert it with .to({dtypes[0]})")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}; {wanted}: move it with .to({str(like.device)!r})")
    if x.layout != torch.strided or not x.is_contiguous():
        raise ValueError(f"{name} has strides {x.stride()}; {wanted}: call .contiguous()")


def require_floating(name: str, x: Tensor, dims: int, meaning: str) -> None:
    """``x`` must be a real floating tensor of ``dims`` dimensions."""
    if x.layout != torch.strided or not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype} with layout {x.layout}; expected a strided floating-point tensor")
    if x.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {dims} dimensions, {meaning}: reshape it")
