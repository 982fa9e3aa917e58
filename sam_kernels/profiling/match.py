"""The error rule of the project, the only one: derived, the same in CI and at home.

Let truth be the reference in fp64 and plain the reference in the tested dtype. A fused result must satisfy

    max |fused - truth|  <=  2 max |plain - truth|  +  1 ulp(dtype) at the magnitude of the result

over all tensors of one argument: it may err twice as much as plain torch, plus one rounding, since compilers and fused formulas
round elsewhere than torch's own two steps do. For fp64 there is no wider torch dtype: the plain error is the fp32 one, scaled by
the ratio of the two epsilons. A reduction over n terms in an accumulator of precision eps may err by

    2 sqrt(n) eps  sum |terms|

Non-finite elements must be non-finite in the same places. The tests find this as ``tolerance``; a benchmark matches by it before it times.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

FACTOR, ULPS = 2.0, 1.0


class Mismatch(AssertionError):
    """A result that errs by more than the rule allows."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions in fp32 as the rule expects them: torch lets cuDNN round their operands to TF32 unless it is told not to."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _require(condition: bool, message: str) -> None:
    """As ``assert``, also under ``python -O``."""
    if not condition:
        raise Mismatch(message)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().double().cpu().reshape(-1) for x in tensors]) if tensors else torch.zeros(0, dtype=torch.float64)


def assert_elementwise(name: str, fused: Sequence[Tensor], plain32: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    """``plain32``: the reference in fp32 whatever ``dtype`` is."""
    got, plain, want = _flat(fused), _flat(plain32), _flat(truth)
    finite = torch.isfinite(want)
    _require(torch.equal(torch.isfinite(got), finite), f"{name}: non-finite elements where the reference has none, or the reverse")
    if not finite.any():
        return
    got, plain, want = got[finite], plain[finite], want[finite]
    epsilon = torch.finfo(dtype).eps
    scale = epsilon / torch.finfo(torch.float32).eps if dtype == torch.float64 else 1.0
    usable = torch.isfinite(plain)
    plain_error = (plain - want)[usable].abs().max().item() if usable.any() else 0.0
    allowed = FACTOR * scale * plain_error + ULPS * epsilon * want.abs().max().item()
    error = (got - want).abs().max().item()
    _require(error <= allowed, f"{name}: error {error:.3e} exceeds {allowed:.3e} (plain torch errs by {scale * plain_error:.3e})")


def assert_reduction(name: str, got: Tensor, want: Tensor, terms: float, magnitude: float, dtype: torch.dtype) -> None:
    """``terms`` summed terms whose absolute values sum to ``magnitude``, in an accumulator of ``dtype``."""
    if not torch.isfinite(want):
        _require(not bool(torch.isfinite(got)), f"{name}: {got.item()} where the reference is {want.item()}")
        return
    allowed = FACTOR * max(terms, 1.0) ** 0.5 * torch.finfo(dtype).eps * magnitude
    error = abs(got.double().item() - want.item())
    _require(error <= allowed, f"{name}: {got.item()} differs from {want.item()} by {error:.3e}, allowed {allowed:.3e}")


def assert_loop(name: str, got: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
    """A loop of some tens of fp64 steps against independent fp64 equations: roundings compound, a wrong formula errs by far more."""
    a, b = _flat(got), _flat(truth)
    error, allowed = (a - b).abs().max().item(), 1e-10 * b.abs().max().item()
    _require(error <= allowed, f"{name}: error {error:.3e} exceeds {allowed:.3e}")


def assert_sums(name: str, got: Tensor, want: Tensor, terms: float, sizes: Tensor, accumulator: torch.dtype) -> None:
    """Many reductions at once, each over ``terms`` terms whose absolute values sum to ``sizes``; stored in the dtype of ``got``."""
    got64, want64, sizes64 = (x.detach().double().cpu() for x in (got, want, sizes))
    finite = torch.isfinite(want64)
    _require(torch.equal(torch.isfinite(got64), finite), f"{name}: non-finite elements where the reference has none, or the reverse")
    stored = torch.finfo(got.dtype).eps if got.dtype != accumulator else 0.0
    allowed = FACTOR * max(terms, 1.0) ** 0.5 * torch.finfo(accumulator).eps * sizes64 + stored * want64.abs()
    excess = ((got64 - want64).abs() - allowed)[finite]
    worst = excess.max().item() if excess.numel() else 0.0
    _require(worst <= 0.0, f"{name}: errs by {worst:.3e} more than sums over {terms:g} terms may")


def assert_bits(name: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Equal bits, of ops that promise them."""
    for k, (x, y) in enumerate(zip(got, want, strict=True)):
        _require(torch.equal(x.cpu(), y.cpu()), f"{name}: result {k} has other bits than that of the reference")
