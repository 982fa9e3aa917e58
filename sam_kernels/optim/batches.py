"""Batch rules: what the ascent gradient is taken of. A rule turns what ``step`` is given into two passes, each of which leaves gradients
in ``.grad`` and returns the clean mean loss, or nothing that matters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sam import SAM

Pass = Callable[[], Any]
Losses = Callable[..., Any]  # losses(index=None) -> [len] losses with their graph


class BatchRule:
    """How the two passes of a step look at the batch."""

    def check(self, optimizer: SAM) -> None:
        """Refuse, at construction, an optimizer that this rule cannot serve."""

    def passes(self, optimizer: SAM, closure: Losses, batch_size: int | None) -> tuple[Pass, Pass]:
        """The first pass and the second."""
        raise NotImplementedError


@dataclass(frozen=True)
class WholeBatch(BatchRule):
    """The ascent gradient is that of the whole batch (SAM, arXiv 2010.01412)."""

    def passes(self, optimizer: SAM, closure: Losses, batch_size: int | None) -> tuple[Pass, Pass]:
        if batch_size is not None:
            raise ValueError(f"batch_size is {batch_size}, which a closure that calls backward itself has no use for; leave it out")
        return closure, closure


class OfLosses(BatchRule):
    """Rules that evaluate samples: ``step(losses, batch_size=)`` with ``losses(index=None)`` returning the losses of those samples."""

    def passes(self, optimizer: SAM, closure: Losses, batch_size: int | None) -> tuple[Pass, Pass]:
        rule = type(self).__name__
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r}; {rule} needs the number of samples: step(losses, batch_size=len(y))")
        if not callable(closure) or not _takes_index(closure):
            raise TypeError(
                f"{rule} needs a function losses(index=None) that returns the losses of the samples at positions `index` (None: all), one "
                "per sample and with their graph; this one takes no index. The optimizer calls backward itself"
            )

        def second() -> Tensor:
            loss = per_sample_losses(closure(), batch_size)[0].mean()
            loss.backward()
            return loss

        return lambda: self.first(optimizer, closure, batch_size), second

    def first(self, optimizer: SAM, losses: Losses, batch_size: int) -> Tensor:
        """Leave the ascent gradient in ``.grad``; return the clean mean loss."""
        raise NotImplementedError


def _takes_index(function: Losses) -> bool:
    try:
        inspect.signature(function).bind(index=None)
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def per_sample_losses(found: Any, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """The losses ``[B]``, and the norms that ``ops.cross_entropy_sample`` returns beside them."""
    losses, norms = (found, None) if isinstance(found, Tensor) or not isinstance(found, tuple) or len(found) != 2 else found
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(f"losses() returned {type(losses).__name__}; expected a floating-point tensor [{batch_size}], one loss per sample")
    if losses.shape != (batch_size,):
        how = "they are reduced already: use reduction='none'" if losses.dim() == 0 else "average over everything but the samples"
        raise ValueError(f"losses() returned shape {tuple(losses.shape)}; expected [{batch_size}], one loss per sample: {how}")
    if norms is not None and (not isinstance(norms, Tensor) or norms.shape != losses.shape):
        raise ValueError(f"losses() returned norms of shape {tuple(getattr(norms, 'shape', ()))}; expected [{batch_size}], one per sample")
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise RuntimeError("losses() returned losses without a graph; compute them from the model, with gradients enabled")
    return losses, norms
