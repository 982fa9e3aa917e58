"""gibbs_weights: weights of samples that grow exponentially with their gradient norms (Reweighted SAM, arXiv 2509.18001).

    p_i = e^(lam s_i) / sum_j e^(lam s_j),   computed as e^(lam (s_i - max s));   s: the norms, or the norms divided by their mean

Reads the norms twice, writes one weight each. Deterministic; nothing is read back to the host. Norms that are not finite weigh nothing.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import call, declare
from .lists import accumulator

SCHEMA = "(Tensor norms, float lam, Tensor? lam_device, bool relative) -> (Tensor weights, Tensor ess, Tensor log_partition, Tensor flag)"


class Gibbs(NamedTuple):
    weights: Tensor
    effective_size: Tensor
    log_partition: Tensor
    flag: Tensor


def reference(norms: Tensor, lam: float, lam_device: Tensor | None, relative: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification: plain torch, any device and floating dtype."""
    s = norms.to(accumulator(norms.dtype))
    finite = torch.isfinite(s)
    flag = (~finite).any().int() + (~finite).all().int() * bool(len(s))
    if not len(s):
        return s.clone(), s.new_zeros(()), s.new_zeros(()), flag
    factor = s.new_tensor(lam) if lam_device is None else lam_device.reshape(())
    factor = torch.where((factor >= 0) & torch.isfinite(factor), factor, torch.nan)
    counted = finite | ~finite.any()
    s = torch.where(finite, s, 0)
    if relative:
        mean = (s.double().sum() / counted.sum()).to(s.dtype)
        s = torch.where(mean > 0, s / mean, 0)
    largest = torch.where(counted, s, -torch.inf).amax()
    below = (s - largest).clamp(min=torch.finfo(s.dtype).min)
    e = torch.where(counted, torch.exp(factor * below), 0)
    total = e.sum()
    return e / total, total * total / (e * e).sum(), total.log() + factor * largest, flag


def guard(a: dict[str, Any]) -> None:
    norms, lam = a["norms"], a["lam_device"]
    fits = norms.dim() == 1 and norms.is_floating_point() and norms.is_contiguous()
    if not fits or (lam is not None and (lam.shape != (1,) or lam.dtype != accumulator(norms.dtype) or lam.device != norms.device)):
        raise RuntimeError("norms must be [B], contiguous and floating point, lam_device [1] in the accumulation dtype beside them")


def _fake(norms: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulator(norms.dtype)
    scalar = (norms.new_empty((), dtype=dtype), norms.new_empty((), dtype=dtype), norms.new_empty((), dtype=torch.int32))
    return norms.new_empty(norms.shape, dtype=dtype), *scalar


OP = declare("gibbs_weights", SCHEMA, reference, guard, _fake)


def gibbs_weights(norms: Tensor, lam: float | Tensor, relative: bool = False, *, backend: str | None = None) -> Gibbs:
    """Weights of the samples of a batch, ``p_i = exp(lam s_i) / sum_j exp(lam s_j)`` (Reweighted SAM, arXiv 2509.18001).

    Args:
        norms: gradient norms s, ``[B]``, any floating dtype, not negative. Norms that are not finite get the weight 0.
        lam: number >= 0; or a tensor of one element beside ``norms``, read there, so that a captured graph follows it. One that is
            negative or not finite then makes everything NaN.
        relative: divide the norms by the mean of the finite ones first, so that ``lam`` has no unit; where that mean is 0, all are 0.
        backend: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; by default the preferred one that is available.

    Returns:
        ``Gibbs(weights, effective_size, log_partition, flag)``: ``[B]`` weights that sum to 1, ``1 / sum p^2``,
        ``log sum_j exp(lam s_j)`` of the s that were used, in fp32 (fp64 for fp64 norms); ``flag`` int32: 0 all norms are finite,
        1 some were dropped, 2 none is and the weights are uniform (each norm then counts as 0). Constants for autograd. An empty
        batch has no weights and zeros.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message names the argument.

    Example:
        >>> gibbs_weights(torch.tensor([1.0, 1.0, float("inf")]), 0.5).weights
        tensor([0.5000, 0.5000, 0.0000])
    """
    if not isinstance(norms, Tensor):
        raise TypeError(f"norms is {type(norms).__name__}; expected a torch.Tensor")
    if not norms.is_floating_point():
        raise TypeError(f"norms are {norms.dtype}; expected a floating-point tensor")
    if norms.dim() != 1:
        raise ValueError(f"norms have shape {tuple(norms.shape)}; expected one norm per sample, [B]: use .flatten()")
    device = None
    if isinstance(lam, Tensor):
        if lam.numel() != 1 or lam.device != norms.device or not lam.is_floating_point():
            raise ValueError(f"lam is {tuple(lam.shape)} {lam.dtype} on {lam.device}; expected one floating-point number on {norms.device}")
        device, lam = lam.detach().reshape(1).to(accumulator(norms.dtype)), 0.0
    elif not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam is {lam}; expected a finite number >= 0")
    return Gibbs(*call(OP, backend, norms.detach().contiguous(), float(lam), device, bool(relative)))
