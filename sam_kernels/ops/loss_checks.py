"""Arguments of the cross-entropy: what the public function refuses, by name, and what no kernel could survive."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .guards import require
from .lists import accumulator


def rows(logits: Tensor, target: Tensor, smoothing: float, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits as rows ``[N, C]`` of adjacent elements, targets ``[N]``, weights in the accumulation dtype."""
    for name, x in (("logits", logits), ("target", target), ("weight", weight)):
        if not isinstance(x, Tensor) and (x is not None or name != "weight"):
            raise TypeError(f"{name} is {type(x).__name__}; expected a torch.Tensor")
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}; expected a floating-point tensor")
    if target.dtype != torch.int64:
        raise TypeError(f"target is {target.dtype}; expected class indices in torch.int64: call .long(), or .argmax() of probabilities")
    shape = logits.shape
    if not shape or target.shape != shape[:1][: len(shape) - 1] + shape[2:]:
        expected = tuple(shape[:1][: len(shape) - 1] + shape[2:]) if shape else "a class dimension in logits"
        raise ValueError(f"target has shape {tuple(target.shape)} for logits of shape {tuple(shape)}; expected {expected}")
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device} but logits are on {logits.device}; move one of them")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {smoothing}; expected a number in [0, 1]")
    classes = shape[0] if len(shape) == 1 else shape[1]
    if classes == 0 and target.numel():
        raise ValueError(f"logits have shape {tuple(shape)}; expected at least one class")
    if weight is not None:
        if weight.shape != (classes,) or weight.device != logits.device or not weight.is_floating_point():
            raise ValueError(
                f"weight is {tuple(weight.shape)} {weight.dtype} on {weight.device}; expected {classes} floating-point numbers "
                f"on {logits.device}, one per class"
            )
        weight = weight.detach().to(accumulator(logits.dtype)).contiguous()
    if len(shape) != 2:
        logits = logits.movedim(1, -1).reshape(-1, classes) if len(shape) > 2 else logits[None]
        target = target.reshape(-1)
    if classes > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    return logits, target.contiguous(), weight


def guard(a: Mapping[str, Any]) -> None:
    """Rows that do not fit each other, and on CPU targets that name no class."""
    _rows_fit(a)
    target, classes = a["target"], a["logits"].shape[1]
    if target.is_cpu and target.numel():
        low, high = target.aminmax()
        if low < 0 or high >= classes:
            bad = target[((target < 0) | (target >= classes)) & (target != a["ignore_index"])]
            if bad.numel():
                raise ValueError(
                    f"target holds {bad[0].item()}; expected class indices in [0, {classes}), or ignore_index={a['ignore_index']}: "
                    "mark positions without a class by ignore_index"
                )


def guard_backward(a: Mapping[str, Any]) -> None:
    _rows_fit(a)
    n, dtype = len(a["logits"]), accumulator(a["logits"].dtype)
    for name, shape in (("grad", (n,)), ("log_norm", (n, 3))):
        x = a[name]
        fits = x.shape == shape and x.dtype == dtype and x.device == a["logits"].device and x.is_contiguous()
        require(fits, f"{name} must be {shape}, contiguous, {dtype}, beside logits")


def _rows_fit(a: Mapping[str, Any]) -> None:
    logits, target, weight = a["logits"], a["target"], a["weight"]
    require(logits.dim() == 2 and logits.is_floating_point(), "logits must be [N, C] in floating point")
    require(logits.shape[1] < 2 or logits.stride(1) == 1, "the classes of a row must be adjacent")
    fits = target.shape == logits.shape[:1] and target.dtype == torch.int64 and target.is_contiguous()
    require(fits and target.device == logits.device, "target must be [N], int64, contiguous, beside logits")
    if weight is not None:
        fits = weight.shape == logits.shape[1:] and weight.dtype == accumulator(logits.dtype) and weight.is_contiguous()
        require(fits and weight.device == logits.device, "weight must be [C], contiguous, in the accumulation dtype, beside logits")
