# ruff: noqa: ANN001, ANN201 (tuples of scalars have no useful annotation)
"""gibbs_weights in Triton; the formulas are those of csrc/core/gibbs_weights.h.

    p_i = e^(lam (s_i - max s)) / sum_j e^(lam (s_j - max s)),   s: the norms, or the norms divided by their mean

Reads the norms three times, from L2 after the first, and writes one weight each. Launch: one program of 8 warps: a batch has hundreds of
norms, and a second launch would cost more than it reads. Deterministic: a lane adds its own norms in order, the lanes are then summed
as a tree. The exponentials are computed twice rather than written and read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .exp_log import exp_of, log_of
from .table import LAUNCH
from .tile import bits, widen

BLOCK = 2048
OPTIONS = {**LAUNCH, "num_warps": 8}


@triton.jit
def load_norms(norms, start, count, BLOCK: tl.constexpr):
    """(norms, those that are finite, those that exist)"""
    index = start + tl.arange(0, BLOCK)
    s = widen(tl.load(norms + index, mask=index < count, other=0))
    return s, (tl.abs(s) < float("inf")) & (index < count), index < count


@triton.jit
def gibbs_term(s, finite, largest, scale, dropped):
    e = exp_of((tl.where(finite, s, largest) - largest) * scale)
    return tl.where(finite, e, dropped * e)


@triton.jit(do_not_specialize=["count"])
def gibbs_kernel(norms, lam_device, weights, ess, log_partition, flag, count, lam, RELATIVE: tl.constexpr, BLOCK: tl.constexpr):
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total, finite_count = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        s, finite, _ = load_norms(norms, start, count, BLOCK)
        largest = tl.maximum(largest, tl.where(finite, s, float("-inf")))
        total += tl.where(finite, s, 0.0).to(tl.float64)
        finite_count += finite.to(tl.int32)
    finite_all, top = tl.sum(finite_count), tl.max(largest)
    none = finite_all == 0
    if lam_device is not None:
        lam = tl.load(lam_device)
    scale = tl.where(none, 0.0, lam)
    if RELATIVE:
        mean = (tl.sum(total) / tl.maximum(finite_all, 1).to(tl.float64)).to(tl.float32)
        divided = tl.div_rn(scale, tl.where(mean > 0, mean, 1.0))
        scale = tl.where(mean > 0, tl.where(divided < float("inf"), divided, 3e38), 0.0)
    scale = tl.where((lam >= 0) & (lam < float("inf")), scale, float("nan"))
    top, dropped = tl.where(none, 0.0, top), tl.where(none, 1.0, 0.0)
    e_sum, e_squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        s, finite, exists = load_norms(norms, start, count, BLOCK)
        e = tl.where(exists, gibbs_term(s, finite, top, scale, dropped), 0.0)
        e_sum += e
        e_squares += e * e
    mass = tl.sum(e_sum)
    for start in range(0, count, BLOCK):
        s, finite, exists = load_norms(norms, start, count, BLOCK)
        e = gibbs_term(s, finite, top, scale, dropped)
        tl.store(weights + start + tl.arange(0, BLOCK), tl.div_rn(e, mass), mask=exists)
    tl.store(ess, tl.div_rn(mass * mass, tl.sum(e_squares)))
    tl.store(log_partition, log_of(mass) + scale * top)
    tl.store(flag, tl.where(none, 2, tl.where(finite_all < count, 1, 0)))


def gibbs_weights(norms: Tensor, lam: float, lam_device: Tensor | None, relative: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, device = len(norms), norms.device
    weights, flag = torch.empty(count, dtype=torch.float32, device=device), torch.zeros((), dtype=torch.int32, device=device)
    ess, log_partition = (torch.zeros((), dtype=torch.float32, device=device) for _ in range(2))
    if count:
        gibbs_kernel[(1,)](
            bits(norms), lam_device, weights, ess, log_partition, flag, count, lam, relative, BLOCK, **OPTIONS
        )  # fmt: skip
    return weights, ess, log_partition, flag
