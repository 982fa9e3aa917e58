"""Batch rules: what the ascent gradient is taken of. A rule turns what ``step`` is given into turns, one for every shard of the batch,
each of two passes that leave gradients in ``.grad``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..ops.draw import OP as DRAW
from ..spans import span, spanned

if TYPE_CHECKING:
    from .sam import SAM

Losses = Callable[..., Any]  # losses(index=None) -> [len] losses with their graph


class Batch(NamedTuple):
    """What ``step`` was told of the batch."""

    size: int | None = None
    ids: Tensor | None = None


class Turn(NamedTuple):
    """An ascent and the descent gradient that follows it. ``first`` returns the clean mean loss; ``done`` runs after the update."""

    first: Callable[[], Any]
    second: Callable[[], Any]
    share: float = 1.0  # of the batch
    done: Callable[[], None] = lambda: None


class BatchRule:
    """How the passes of a step look at the batch."""

    radius: float = 1.0  # times rho
    on_host: str = ""  # what it does on the host at every step, so that a captured step could not

    def check(self, optimizer: SAM) -> None:
        """Refuse, at construction, an optimizer that this rule cannot serve."""

    def turns(self, optimizer: SAM, closure: Losses, batch: Batch) -> Sequence[Turn]:
        """What to run, in order. Raises before anything is run."""
        raise NotImplementedError

    def new_state(self, optimizer: SAM) -> dict[str, Any]:
        """What ``optimizer.batch_state`` is at the start: tensors and numbers that checkpoints hold."""
        return {}


@dataclass(frozen=True)
class WholeBatch(BatchRule):
    """The ascent gradient is that of the whole batch (SAM, arXiv 2010.01412)."""

    def turns(self, optimizer: SAM, closure: Losses, batch: Batch) -> Sequence[Turn]:
        for name, value in (("batch_size", batch.size), ("sample_ids", batch.ids)):
            if value is not None:
                raise ValueError(f"{name} is {value}, which a closure that calls backward itself has no use for; leave it out")

        def first() -> Any:
            loss = closure()
            if isinstance(loss, Tensor) and loss.dim() and loss.requires_grad and all(p.grad is None for p in optimizer.members()):
                raise RuntimeError(
                    f"closure() returned losses of shape {tuple(loss.shape)} and left no gradient; expected it to call backward on their "
                    "mean. A function of losses alone is for batch rules: batch=rules.MicroBatch(...), or a preset such as ReweightedSAM"
                )
            return loss

        return (Turn(first, closure),)


class OfLosses(BatchRule):
    """Rules that evaluate samples: ``step(losses, batch_size=)`` with ``losses(index=None)`` returning the losses of those samples.

    One turn, of ``first`` and ``second``; a rule with several, or with something to keep from one to the other, has ``turns_of``."""

    takes_ids = False

    def turns(self, optimizer: SAM, closure: Losses, batch: Batch) -> Sequence[Turn]:
        rule, size = _name(optimizer, self), batch.size
        if not is_count(size):
            raise ValueError(f"batch_size is {size!r}; {rule} needs the number of samples, an int >= 1: step(losses, batch_size=len(y))")
        if batch.ids is not None and not self.takes_ids:
            raise ValueError(f"sample_ids is given, which {rule} has no use for; leave it out")
        if not callable(closure) or not _takes_index(closure):
            raise TypeError(
                f"{rule} needs a function losses(index=None) that returns the losses of the samples at positions `index` (None: all), one "
                "per sample and with their graph; this one cannot be called both as losses() and as losses(index). The optimizer calls "
                "backward itself"
            )
        turns = self.turns_of(optimizer, closure, size, batch.ids)
        optimizer.sample_norms = optimizer.sample_weights = optimizer.sample_indices = None
        return turns

    def turns_of(self, optimizer: SAM, losses: Losses, size: int, ids: Tensor | None) -> Sequence[Turn]:
        return (Turn(lambda: self.first(optimizer, losses, size), lambda: mean_backward(losses, size)),)

    def first(self, optimizer: SAM, losses: Losses, batch_size: int) -> Tensor:
        """Leave the ascent gradient in ``.grad``; return the clean mean loss."""
        raise NotImplementedError


def mean_backward(losses: Losses, size: int, index: Tensor | None = None) -> Tensor:
    """Add the gradient of the mean loss of the samples at ``index`` to ``.grad``; return those losses, detached."""
    found = losses_of(losses, size, index)[0]
    backward(found.mean())
    return found.detach()


def losses_of(losses: Losses, size: int, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The losses of the samples at ``index``, of all ``size`` where it is None, and the norms that ``ops.cross_entropy_sample`` returns
    beside them."""
    with span("forward"):
        found = losses() if index is None else losses(index)
    return per_sample_losses(found, size) if index is None else per_sample_losses(found, len(index), size)


@spanned("backward")
def backward(loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
    loss.backward(inputs=inputs)


def no_grad_losses(losses: Losses, size: int) -> Tensor:
    """The losses of all samples, where no graph is wanted."""
    with torch.no_grad():
        return losses_of(losses, size)[0]


def random_state(devices: Iterable[torch.device]) -> Callable[[], None]:
    """A function that puts torch's generators, of the host and of these devices, back to where they are now, so that dropout drops the
    same again."""
    state = torch.get_rng_state()
    on_device = [(device, torch.cuda.get_rng_state(device)) for device in devices if device.type == "cuda"]

    def rewind() -> None:
        torch.set_rng_state(state)
        for device, kept in on_device:
            torch.cuda.set_rng_state(kept, device)

    return rewind


def is_count(value: Any, least: int = 1) -> TypeGuard[int]:
    """An int >= ``least``, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_draws(optimizer: SAM) -> None:
    """A backend that is asked for by name, also in the environment, must have draws; the CUDA kernels have none."""
    device = optimizer.device.type
    DRAW.named(optimizer.backend or DRAW.chosen(device, torch.float32), device, torch.float32)


def _name(optimizer: SAM, rule: BatchRule) -> str:
    """What users call it: the preset, or the rule of a ``SAM`` that was given one."""
    return type(rule if type(optimizer).__name__ == "SAM" else optimizer).__name__


def _takes_index(function: Losses) -> bool:
    try:
        inspect.signature(function).bind(None)
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def per_sample_losses(found: Any, batch_size: int, whole: int | None = None) -> tuple[Tensor, Tensor | None]:
    """The losses ``[B]``, and the norms that ``ops.cross_entropy_sample`` returns beside them. ``whole``: the size of the batch, where
    only ``batch_size`` samples of it were asked for."""
    losses, norms = (found, None) if isinstance(found, Tensor) or not isinstance(found, tuple) or len(found) != 2 else found
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(f"losses() returned {type(losses).__name__}; expected a floating-point tensor [{batch_size}], one loss per sample")
    if losses.shape != (batch_size,):
        how = "average over everything but the samples"
        if losses.dim() == 0:
            how = "they are reduced already: use reduction='none'"
        elif whole is not None and len(losses) != batch_size:
            how = "it ignores index: take x[index], y[index] in it"
        elif len(losses) != batch_size:
            how = f"the batch seems to have {len(losses)} samples: step(losses, batch_size={len(losses)})"
        call = "losses()" if whole is None else f"losses(index) with {batch_size} positions"
        raise ValueError(f"{call} returned shape {tuple(losses.shape)}; expected [{batch_size}], one loss per sample: {how}")
    if norms is not None and (not isinstance(norms, Tensor) or norms.shape != losses.shape):
        raise ValueError(f"losses() returned norms of shape {tuple(getattr(norms, 'shape', ()))}; expected [{batch_size}], one per sample")
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise RuntimeError("losses() returned losses without a graph; compute them from the model, with gradients enabled")
    return losses, norms
