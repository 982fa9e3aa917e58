"""draw: how often each of n samples is drawn, with probabilities in proportion to weights, and what makes sums over the drawn unbiased.

    W = sum_j w_j,   E counts_i = k w_i / W,   inclusion_i = counts_i / E counts_i,   E sum_i inclusion_i x_i = sum_i x_i

The cumulative sums are of integers, q_i = floor(w_i 2^s), and exact: in fp32 they put a million weights 0.7 % off. Random numbers are
those of Philox 4x32-10. Equal weights and an equal state give equal bits on every backend. Reads the weights three times, writes two
numbers each; nothing is read back to the host.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import call, declare, require_backend
from .draw_checks import check, check_generator, guard
from .draw_reference import reference
from .lists import accumulator

SCHEMA = "(Tensor weights, int k, str scheme, Tensor state) -> (Tensor counts, Tensor inclusion, Tensor flag)"


class Draw(NamedTuple):
    counts: Tensor
    inclusion: Tensor
    flag: Tensor
    indices: Tensor | None = None


def _fake(weights: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    counts, inclusion = (weights.new_empty(weights.shape, dtype=dtype) for dtype in (torch.int32, accumulator(weights.dtype)))
    return counts, inclusion, weights.new_empty((), dtype=torch.int32)


OP = declare("draw", SCHEMA, reference, guard, _fake)


def draw(
    weights: Tensor,
    k: int,
    scheme: str = "systematic",
    generator: torch.Generator | Tensor | None = None,
    *,
    indices: bool = False,
    backend: str | None = None,
) -> Draw:
    """Draw ``k`` of n samples at random, sample i in proportion to ``weights[i]``.

    =============== ================================================================= ==============================================
    scheme          counts                                                            inclusion weights of the drawn
    =============== ================================================================= ==============================================
    ``systematic``  k in all, each less than 1 away from ``k w_i / W``; one random    ``counts_i W / (k w_i)``
                    number, the least variance
    ``multinomial`` k independent draws, with replacement                             ``counts_i W / (k w_i)``
    ``top_k``       k different ones, each drawn in proportion to the weights that    ``1 / (1 - exp(-w_i t))``, t the arrival time of
                    remain (a race of exponential arrivals)                           the first that was not drawn
    ``bernoulli``   0 or 1 independently, 1 with probability ``min(1, k w_i / W)``    ``max(1, W / (k w_i))``
    =============== ================================================================= ==============================================

    Args:
        weights: ``[n]``, any floating dtype, n < 2^31; they need not sum to 1. A weight that is zero, negative, infinite or NaN is never
            drawn, nor one below the smallest normal number, nor below 2^-62 n of the largest: to that they are rounded, n up to a power
            of two. Where none is left, all count the same. They must not change meanwhile, in another thread.
        k: how many, 0 <= k < 2^31. ``top_k`` draws fewer where fewer have a weight; ``multinomial`` takes 8 k bytes of memory.
        generator: a ``torch.Generator`` of the device, by default torch's own. Or an int64 tensor ``[2]`` beside the weights, (seed,
            offset): it is read there, and one is added to the offset, of which 32 bits count, so that replays of a captured graph draw
            anew. Equal tensors draw equal samples on CPU and GPU.
        indices: also return positions. Not for ``bernoulli``, whose number of samples only the device knows.
        backend: ``"reference"``, ``"cpp"`` or ``"triton"``; by default the preferred one that is available.

    Returns:
        ``Draw(counts, inclusion, flag, indices)``: int32 ``[n]``; fp32 (fp64 for fp64 weights) ``[n]``, 0 where nothing was drawn, such
        that ``(inclusion * x).sum()`` is ``x.sum()`` over the samples with a weight, on average; int32: 0 in order, 1 some weights are
        negative or not finite, 2 none is positive and finite; and ``None``, or int64 ``[k]`` positions in ascending order (``top_k``:
        ``[min(k, n)]``), where a missing one is n, which nothing accepts as an index. Constants for autograd.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.

    Example:
        >>> draw(torch.tensor([0.0, 1.0, 0.0]), 4, indices=True).indices
        tensor([1, 1, 1, 1])
    """
    check(weights, k, scheme, indices)
    check_generator(generator, weights.device)
    require_backend(OP, backend, weights)  # before anything is taken from the generator
    weights = weights.detach().contiguous()
    state = generator if isinstance(generator, Tensor) else torch.randint(2**62, (2,), generator=generator, device=weights.device)
    found = Draw(*call(OP, backend, weights, k, scheme, state))
    if indices:
        found = found._replace(indices=_positions(found.counts, k, scheme))
    if isinstance(generator, Tensor):
        generator[1:].add_(1)
    return found


def _positions(counts: Tensor, k: int, scheme: str) -> Tensor:
    """Shapes are known, so that nobody waits for the counts; only ``top_k`` may miss some."""
    if scheme != "top_k":
        return torch.repeat_interleave(counts.long(), output_size=k)
    return torch.searchsorted(counts.cumsum(0), torch.arange(min(k, len(counts)), device=counts.device), right=True)
