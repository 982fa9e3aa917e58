"""Layers with an explicit sink: a ``[B]`` tensor that requires a gradient, and whose gradient is then the squared norm of each sample's
share of the gradient of this call's parameters. Sinks may be shared by several calls, which adds their norms up; a parameter that is used
by two of them is wrong, for lack of the product of its two gradients. Norms are those of the loss that backward was called on, unscaled."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .intercept import HANDLERS, Call
from .layers import Instrumented


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, sink: Tensor, backend: str | None = None) -> Tensor:
    """``F.linear`` of x ``[B, ..., d]``."""
    return _run(HANDLERS[F.linear](x, weight, bias), sink, backend)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
    sink: Tensor, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """``F.conv1d``, ``conv2d`` or ``conv3d``, by the dimensions of ``weight``."""
    return _run(HANDLERS[F.conv2d](x, weight, bias, stride, padding, dilation, groups), sink, backend)


def embedding(ids: Tensor, weight: Tensor, padding_idx: int | None = None, *, sink: Tensor, backend: str | None = None) -> Tensor:
    """``F.embedding`` of ids ``[B, ...]``."""
    return _run(HANDLERS[F.embedding](ids, weight, padding_idx), sink, backend)


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *, sink: Tensor,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """``F.layer_norm`` of x ``[B, ..., *normalized_shape]``."""
    return _run(HANDLERS[F.layer_norm](x, normalized_shape, weight, bias, eps), sink, backend)


def rms_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor, eps: float | None = None, *, sink: Tensor, backend: str | None = None
) -> Tensor:
    """``F.rms_norm`` of x ``[B, ..., *normalized_shape]``."""
    return _run(HANDLERS[F.rms_norm](x, normalized_shape, weight, eps), sink, backend)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *, sink: Tensor,
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """``F.group_norm`` of x ``[B, C, ...]``; with ``num_groups`` = C it is an instance norm."""
    return _run(HANDLERS[F.group_norm](x, num_groups, weight, bias, eps), sink, backend)


def _run(call: Call, sink: Tensor, backend: str | None) -> Tensor:
    if sink.dim() != 1 or not sink.requires_grad:
        raise ValueError(
            f"sink has shape {tuple(sink.shape)} and requires_grad={sink.requires_grad}; expected torch.zeros(B, requires_grad=True)"
        )
    x, weight, bias = call.operands(detached=False)
    layer = call.make(x, weight, (len(sink), weight is not None, bias is not None, backend, False, None))
    y: Tensor = Instrumented.apply(layer, x, weight, bias, sink, None)
    return y
