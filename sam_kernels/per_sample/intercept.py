"""From torch's functions to layers: a mode that sees every call in unmodified models, functional calls included.

A function of the table below that is given a trainable parameter runs as an instrumented layer. Any other function that is given one and
returns something differentiable would lose that part of the gradient, and raises instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import _make_grads
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode, resolve_name

from ..ops.lists import accumulator
from .conv import Conv, per_dimension
from .embedding import Embedding
from .expanded import Expanded
from .layers import Common, Layer, cast
from .linear import Linear
from .normalization import Normalization


class Call(NamedTuple):
    """What a handler makes of the arguments of a function; ``make`` is given x, weight and the first fields of a layer."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    make: Callable[..., Layer]
    autocast: str = ""  # "low": runs in the lower precision, "wide": in fp32 on a GPU
    prepare: Callable[[Tensor], Tensor] | None = None  # of x, differentiated by autograd
    ties: bool = False  # may share its weight with an embedding before it

    def operands(self, detached: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, weight and bias as the function is to have them; ``detached``: no gradient of the parameters is asked for."""
        x = self.x if self.prepare is None else self.prepare(self.x)
        weight, bias = (p.detach() if detached and p is not None else p for p in (self.weight, self.bias))
        if self.autocast and torch.is_autocast_enabled(x.device.type):
            low = self.autocast == "low"
            dtype = torch.get_autocast_dtype(x.device.type) if low else torch.float32
            if low or x.is_cuda:  # the CPU leaves norms alone
                x, weight, bias = cast(x, dtype), cast(weight, dtype), cast(bias, dtype)
        return x, weight, bias


Handler = Callable[..., Call]
POLICIES = ("error", "contribution", "frozen")


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call:
    return Call(input, weight, bias, lambda x, w, common: Linear.of(x, w, common), autocast="low", ties=True)


def _conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Call:
    dims = weight.dim() - 2
    prepare = None
    if isinstance(padding, str):
        steps = per_dimension(dilation, dims)
        spans = [0 if padding == "valid" else (k - 1) * d for k, d in zip(weight.shape[2:], steps, strict=True)]
        padding = tuple(span // 2 for span in spans)
        if odd := [n for span in reversed(spans) for n in (0, span % 2)]:  # "same" with an even kernel: one more on the right
            prepare = (lambda x: F.pad(x, odd)) if any(odd) else None

    def make(x: Tensor, w: Tensor, common: Common) -> Layer:
        return Conv.of(x, w, common, stride, padding, dilation, groups)

    return Call(input, weight, bias, make, autocast="low", prepare=prepare)


def _embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Call:  # fmt: skip
    if sparse or scale_grad_by_freq:
        raise NotImplementedError("embedding() with sparse or scale_grad_by_freq has no gradient per sample here; switch both off")

    def make(x: Tensor, w: Tensor, common: Common) -> Layer:
        layer = Embedding.of(x, w, common, padding_idx)
        if max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(weight.detach(), input.contiguous(), max_norm, norm_type)
        return layer

    return Call(input, weight, None, make)


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Call:
    return _over_features("layer", input, weight, bias, eps)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Call:
    return _over_features("rms", input, weight, None, torch.finfo(accumulator(input.dtype)).eps if eps is None else eps)


def _over_features(kind: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Call:
    like = weight if weight is not None else bias
    width = 0 if like is None else like.numel()
    return Call(input, weight, bias, lambda x, w, common: Normalization.over_features(kind, x, width, common, eps), autocast="wide")


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Call:
    return _over_channels("group", input, num_groups, weight, bias, eps)


def _over_channels(
    kind: str, input: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Call:  # fmt: skip
    def make(x: Tensor, w: Tensor, common: Common) -> Layer:
        return Normalization.over_channels(kind, x, groups, common, eps)

    return Call(input, weight, bias, make, "" if kind == "affine" else "wide", prepare)


def _instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None,
    bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Call:  # fmt: skip
    if use_input_stats and running_mean is None:
        return _over_channels("group", input, input.shape[1], weight, bias, eps)
    arguments = (running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return _over_channels("affine", input, input.shape[1], weight, bias, eps, lambda x: F.instance_norm(x, *arguments))


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *_: Any, policy: str,
) -> Call:  # fmt: skip
    training = training and not (policy == "frozen" and running_mean is not None)
    if training and policy != "contribution":
        raise ValueError(
            "batch_norm() in training mode ties every sample's loss to the whole batch, so that a sample has no gradient of its own; pass "
            'batchnorm="contribution" (the share of the batch gradient that passes through the sample), batchnorm="frozen" (running '
            "statistics), or use GroupNorm"
        )
    arguments = (running_mean, running_var, None, None, training, momentum, eps)
    return _over_channels("affine", input, input.shape[1], weight, bias, eps, lambda x: F.batch_norm(x, *arguments))


def _expand(input: Tensor, *sizes: Any, size: Any = None, implicit: bool = False) -> Call:
    given = sizes if size is None else (size,)
    sizes = tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given
    nothing = torch.empty(0, device=input.device)  # there is no input but the parameter
    return Call(nothing, input, None, lambda x, w, common: Expanded.of(w, common, sizes))


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear, F.conv1d: _conv, F.conv2d: _conv, F.conv3d: _conv, F.embedding: _embedding, F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm, F.group_norm: _group_norm, F.instance_norm: _instance_norm, F.batch_norm: _batch_norm, Tensor.expand: _expand,
}  # fmt: skip


class Intercept(TorchFunctionMode):
    """Sends the calls of ``HANDLERS`` on tracked parameters to ``run``."""

    def __init__(self, tracked: dict[int, str], policy: str, run: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self.tracked, self.policy, self.run = tracked, policy, run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:  # in the mode: a checkpoint runs its forward again in there
            with self:
                return _backward(*args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(func, args, kwargs)
        used = [x for x in _tensors((*args, *kwargs.values())) if id(x) in self.tracked]
        if not used or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        names = ", ".join(sorted({self.tracked[id(x)] for x in used}))
        if handler := HANDLERS.get(func):
            return self._layer(names, handler, args, kwargs)
        out = func(*args, **kwargs)
        if any(x.requires_grad and id(x) not in self.tracked for x in _tensors((out,))):
            raise NotImplementedError(_UNKNOWN.format(resolve_name(func) or func, names))
        return out

    def _layer(self, names: str, handler: Handler, args: Any, kwargs: Any) -> Tensor:
        try:
            call = handler(*args, **kwargs)
        except (ValueError, NotImplementedError) as error:
            raise type(error)(f"{names}: {error}") from None
        if id(call.x) in self.tracked:
            raise NotImplementedError(_UNKNOWN.format("a layer's input", names))
        return self.run(call)

    def _batch_norm(self, func: Any, args: Any, kwargs: Any) -> Any:
        affine = [p for p in (*args[3:5], kwargs.get("weight"), kwargs.get("bias")) if id(p) in self.tracked]
        handler = partial(_batch_norm, policy=self.policy)
        if torch.is_grad_enabled() and affine:
            return self._layer(", ".join(self.tracked[id(p)] for p in affine), handler, args, kwargs)
        if torch.is_grad_enabled() or self.policy == "frozen":
            call = handler(*args, **kwargs)
        if self.policy != "frozen":
            return func(*args, **kwargs)
        assert call.prepare is not None
        y = call.prepare(call.x)  # nothing of its own to train, but its statistics matter all the same
        for p, apply in ((call.weight, torch.mul), (call.bias, torch.add)):
            y = y if p is None else apply(y, p.view(-1, *[1] * (y.dim() - 2)))
        return y


_UNKNOWN = (
    "{} uses the trainable parameters {}, and its gradient per sample is not known here; freeze them (requires_grad_(False)), use a layer "
    "that per_sample.grad_norms lists, write p.expand(B, ...) where they are added to every sample, or take them out of the forward"
)


def _backward(
    loss: Tensor, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """``Tensor.backward`` with the modes of the caller: both public functions step out of the mode before they start."""
    gradients = _make_grads((loss,), (gradient,), is_grads_batched=False)
    ends = () if inputs is None else tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    keep = create_graph if retain_graph is None else retain_graph
    _engine_run_backward((loss,), gradients, keep, create_graph, ends, allow_unreachable=True, accumulate_grad=True)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Of nested lists, tuples and dictionaries too. Runs for every operation of a forward."""
    found: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, list | tuple):
            found += _tensors(x)
        elif isinstance(x, dict):
            found += _tensors(x.values())
    return found
