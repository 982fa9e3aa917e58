"""The context, and what is made of the sinks afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.inner_products import sq_norm
from ..ops.linear_grad_norms import METHODS
from ..registry import OPS, check_name
from .intercept import POLICIES, Intercept
from .watch import Watch, grad_of, products


class GradientNoise(NamedTuple):
    """``trace``: of the covariance of the samples' gradients, unbiased; ``scale``: the simple noise scale, trace over the squared norm
    of the true gradient, in samples."""

    trace: Tensor
    scale: Tensor


class GradNorms(Watch):
    """What ``grad_norms`` yields. See there."""

    @property
    def squared(self) -> Tensor:
        """``[B]``, fp32 (fp64 for fp64 models): the squared norm of the gradient of each sample's own loss."""
        uses = self._reached()
        first = uses[0].sink
        parts = [grad_of(use.sink) for use in uses] + [product for _, product in products(uses)]
        total = torch.stack([part.to(first.device, first.dtype) for part in parts]).sum(0)
        if len(parts) > len(uses):  # products may be negative, and by rounding so may the sum
            total = total.clamp(min=0)
        return self._scaled(total, 2)

    @property
    def norm(self) -> Tensor:
        """``[B]``: the norm of the gradient of each sample's own loss."""
        return self.squared.sqrt()

    @property
    def per_layer(self) -> dict[str, Tensor]:
        """Module name -> ``[B]`` squared norms of its own parameters."""
        if not self._per_layer:
            raise RuntimeError("norms by layer were not asked for; pass per_layer=True")
        found: dict[str, Tensor] = {}
        uses = self._reached()
        for name, part in [(use.name, grad_of(use.sink)) for use in uses] + products(uses):
            squared = self._scaled(part, 2)
            found[name] = found[name] + squared if name in found else squared
        return found

    def gradient_noise(self) -> GradientNoise:
        """Trace of the covariance of the samples' gradients, and the simple noise scale (arXiv 1812.06162), on the device.

        From this backward's own ``.grad``, which must have been None before; in the weighted form from what was kept.
        """
        if self.batch_size < 2:
            raise ValueError("gradient_noise() needs at least 2 samples")
        mean_square = self.squared.mean()
        if self.weighted:
            grads = list(self._weighted(torch.full_like(self.squared, 1 / self.batch_size)).values())
            square = torch.stack([g.detach().double().square().sum().to(mean_square) for g in grads]).sum()
        else:
            square = self._mean_gradient_square(mean_square)
        b = self.batch_size
        trace = (mean_square - square) * (b / (b - 1))
        return GradientNoise(trace, trace / ((b * square - mean_square) / (b - 1)))

    def _mean_gradient_square(self, like: Tensor) -> Tensor:
        if stale := [name for name, before in self._before.items() if before is not None]:
            raise RuntimeError(
                f"{stale[0]}.grad was there before this backward; call zero_grad() before the forward, or pass weighted=True"
            )
        if self._scale is not None and self._scale.numel() > 1:
            raise RuntimeError("the mean gradient is not known with a scale per sample; pass weighted=True")
        if self._gradients_now() != self._after:
            raise RuntimeError(".grad has changed since this backward; ask for gradient_noise() first, or pass weighted=True")
        grads = [p.grad for p in self._params.values() if p.grad is not None]
        total = torch.stack([sq_norm([g], backend=self.backend).to(like) for g in grads]).sum()
        return self._scaled(total / self.batch_size**2, 2).reshape(())

    def weighted_backward(self, weights: Tensor, accumulate: bool = False) -> None:
        """``.grad = sum_i weights_i (gradient of sample i's own loss)`` for every trainable parameter, without a second backward.

        Args:
            weights: ``[B]``, floating, finite (checked on the CPU only: nothing here waits for a GPU).
                A sample that is not finite itself spoils the sum at weight 0 too, as it would in a weighted loss.
            accumulate: add to ``.grad`` instead of replacing it. Replaced, a parameter that the loss did not reach gets None.

        Raises:
            RuntimeError: not in the weighted form, before the backward, or an input of a layer was modified in place since.
            TypeError, ValueError: weights of another shape or kind. Nothing has been written.
        """
        grads = self.weighted_gradients(weights)
        for p in self._params.values():
            grad = grads.get(p)
            if accumulate and grad is not None and p.grad is not None:
                p.grad += grad
            elif grad is not None or not accumulate:
                p.grad = grad

    def weighted_gradients(self, weights: Tensor, checked: bool = False) -> dict[Tensor, Tensor]:
        """What ``weighted_backward`` would write, parameter by parameter, without writing it. ``checked``: weights that are not finite are
        meant so."""
        if not self.weighted:
            raise RuntimeError("the weighted gradient needs what only the weighted form keeps; pass weighted=True to grad_norms()")
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            raise TypeError(
                f"weights is {getattr(weights, 'dtype', type(weights).__name__)}; expected a floating-point tensor [{self.batch_size}]"
            )
        if weights.shape != (self.batch_size,):
            raise ValueError(f"weights has shape {tuple(weights.shape)}; expected [{self.batch_size}], one per sample")
        if not checked and not weights.is_cuda and not bool(torch.isfinite(weights).all()):
            raise ValueError("weights has entries that are not finite; expected finite ones: see the flag of ops.gibbs_weights")
        return self._weighted(weights.detach())

    @torch.no_grad()
    def _weighted(self, weights: Tensor) -> dict[Tensor, Tensor]:
        """Parameter -> weighted gradient."""
        found: dict[Tensor, Tensor] = {}
        for use in self._reached():
            assert use.keeper is not None
            use.require_unmodified("the weighted gradient")
            c = self._scaled(weights.to(use.sink.device, use.sink.dtype), 1)
            with torch.autocast(c.device.type, enabled=False):
                made = use.layer.weighted(grad_of(use.keeper), use.x, c)
            for p, grad in zip((use.weight, use.bias), made, strict=True):
                if p is not None and grad is not None:
                    grad = grad.view(p.shape).to(p.dtype)
                    found[p] = found[p] + grad if p in found else grad
        return found

    def explain(self) -> str:
        """A table of the calls that were seen: layer, shapes, the method for its norms, and the FLOPs of every method for one sample."""
        rows = []
        for use in self._uses:
            costs = ", ".join(f"{name} {cost:.3g}" for name, cost in sorted(use.layer.costs().items(), key=lambda item: item[1]))
            rows.append((use.name, use.layer.describe(), use.layer.method, costs))
        rows.insert(0, ("module", "layer", "norms by", "FLOPs a sample"))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


@contextmanager
def grad_norms(
    model: nn.Module, batch_size: int, *, weighted: bool = False, reduction: str = "mean", scale: float | Tensor | None = None,
    batchnorm: str = "error", per_layer: bool = False, method: str | None = None, backend: str | None = None,
) -> Iterator[GradNorms]:  # fmt: skip
    """Norms of the gradient of every sample, from the ordinary backward of an unmodified model::

        with per_sample.grad_norms(model, batch_size=len(y)) as norms:
            F.cross_entropy(model(x), y).backward()     # .grad as usual
        norms.norm                                      # [B]

        with per_sample.grad_norms(model, batch_size=len(y), weighted=True) as norms:
            F.cross_entropy(model(x), y).backward()     # no weight gradient is computed
        norms.weighted_backward(p)                      # .grad = sum_i p_i grad l_i, without a second backward

    Exact for all trainable parameters together: Linear, Conv1d-3d, Embedding, LayerNorm, RMSNorm, GroupNorm, InstanceNorm and the affine
    part of BatchNorm, called as modules or functions, and ``p.expand(B, ...)`` of a parameter that is added to every sample (class
    tokens, positions), and a linear layer whose weight is the table of an embedding before it. Frozen parameters do not count. A
    trainable parameter used in any other way, or twice, raises (a custom autograd function that is given a parameter of such a layer
    besides is noticed in the weighted form only). Samples lie one after the other along the first dimension of every layer's input, which
    is a multiple of B: rows in another order, two views of a batch in one call, or rows that all samples share cannot be told apart from
    that; ``verify`` can. Gradient hooks of parameters do not run in the weighted form, and a frozen BatchNorm still counts its batches.
    One forward and one backward per context; the backward may also follow the context. Eager mode; ``torch.utils.checkpoint`` works
    inside of the context, without its saving where weighted.

    Args:
        model: any module; only its parameters are looked at, nothing is replaced.
        batch_size: number of samples B.
        weighted: keep inputs and output gradients of all layers for ``weighted_backward`` (about one more copy of the activations), and
            compute no weight gradients in the backward.
        reduction: how the loss is made of the samples' losses, ``"mean"`` or ``"sum"``; norms are those of each sample's own loss.
        scale: a number, or a tensor ``[]`` or ``[B]`` on the device, by which the samples' gradients are multiplied besides, for example
            1 / loss scale, or tokens of the batch / tokens of the sample.
        batchnorm: in training mode ``"error"``; ``"contribution"``: the share of the batch gradient that passes through the sample;
            ``"frozen"``: running statistics, as in evaluation mode.
        per_layer: also offer ``norms.per_layer``.
        method: ``"direct"`` or ``"gram"`` for every layer that has a choice; None: the cheapest. Where a sample's gradient cancels over its
            positions, a Gram matrix loses digits that ``"direct"`` keeps.
        backend: a backend by name; by default the preferred one that is available.

    Yields:
        ``GradNorms``: ``squared``, ``norm``, ``per_layer``, ``gradient_noise()``, ``weighted_backward(w)``, ``explain()``.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: in the forward, naming the module, before anything is written.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected the number of samples, an int >= 1")
    if batchnorm not in POLICIES:
        raise ValueError(f"batchnorm is {batchnorm!r}; expected one of {POLICIES}")
    if method not in (None, *METHODS):
        raise ValueError(f"method is {method!r}; expected None, {METHODS[0]!r} or {METHODS[1]!r}")
    if getattr(_active, "norms", None) is not None:
        raise RuntimeError("grad_norms() inside of another grad_norms(); leave the outer context first")
    _check_backend(model, backend)
    norms = _active.norms = GradNorms(model, batch_size, weighted, reduction, scale, per_layer, method, backend)
    try:
        with Intercept(norms._names, batchnorm, norms._run):
            yield norms
    finally:
        norms.close()
        _active.norms = None


def _check_backend(model: nn.Module, backend: str | None) -> None:
    """One that is asked for by name must serve every kind of layer, before anything is computed."""
    if backend is not None:
        check_name(backend)
        for device, dtype in {(p.device.type, p.dtype) for p in model.parameters() if p.requires_grad}:
            for name in ("linear_grad_norms", "conv_grad_norms", "embedding_grad_norms", "normalization_grads"):
                OPS[name].named(backend, device, dtype)


_active = threading.local()
