"""Match before time: some steps of every provider against the fp64 run of the reference backend, under the project's error rule.

Compared are the perturbed weights of the first and the last step, which the restore would otherwise hide, the final weights and the
base's state. The rule is that of tests/tolerance.py; a peer may err twice as far from plain torch, and where one of its norms enters,
by as much more as the rule allows a sum in fp32. Of a large workload every k-th element and the end of every tensor are compared;
the tests compare all.

bf16. Ours computes in fp32 and rounds the weights once per phase: it obeys the rule, with a reference that rounds its weights where
the step ends. A peer computes in bf16 as it goes, so it is matched with its fp32 self, which the fp32 cell of the same workload
matches by the rule. A step may round a value ``ROUNDINGS`` times by half an ulp of what it is and of what it was changed by.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from methods import STATE, Method  # noqa: E402
from providers import Provider, ours  # noqa: E402
from tolerance import assert_elementwise  # noqa: E402
from workloads import WORKLOADS, elements, tensors  # noqa: E402

PEER = 2.0  # multiple of plain torch's own error that counts as a peer's plain error
ROUNDINGS = 8  # in bf16 per value and step; an update takes about 6, the factors of norms 2 more
COMPARED = 1 << 20  # elements per result, about
WEIGHT, GRADIENT, SECOND = 0.05, 0.1, 0.2  # standard deviations: perturbation and update are then of the weights' size
Results = tuple[list[Tensor], ...]  # thinned


def steps_of(workload: str) -> int:
    return 2 if elements(WORKLOADS[workload]) < 50e6 else 1  # the reference in fp64 takes seconds per step there


def results_of(method: Method) -> tuple[str, ...]:
    return ("first perturbed weights", "last perturbed weights", "weights", *STATE[method.base])


def parameters(workload: str, method: Method, device: str, dtype: torch.dtype | None = None) -> list[Parameter]:
    return [Parameter(x) for x in tensors(workload, 0, WEIGHT, device, method.dtype, dtype or method.dtype)]


def gradients(workload: str, method: Method, step: int, device: str, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
    g, h = ((2 * step + 1, GRADIENT), (2 * step + 2, SECOND))
    dtype = dtype or method.dtype
    return tensors(workload, *g, device, method.dtype, dtype), tensors(workload, *h, device, method.dtype, dtype)


def _thinned(values: list[Tensor]) -> list[Tensor]:
    """In one tensor."""
    stride = (1 + sum(x.numel() for x in values) // COMPARED) | 1  # odd
    flat = [x.detach().reshape(-1) for x in values]
    return [torch.cat([part for x in flat for part in ((x[::stride], x[-8:]) if stride > 1 else (x,))])]


def trajectory(provider: Provider, workload: str, method: Method, variant: dict[str, Any], device: str,
               dtype: torch.dtype | None = None, stored: torch.dtype | None = None) -> Results:  # fmt: skip
    """The results after the steps, computed in ``dtype``; the weights are rounded to ``stored`` at the end of every step."""
    step = provider.build(parameters(workload, method, device, dtype), method, variant)
    perturbed = []
    for k in range(steps_of(workload)):
        g, h = gradients(workload, method, k, device, dtype)
        step.load(g)
        step.first()
        perturbed.append(_thinned(step.params))
        step.load(h)
        step.second()
        for p in step.params if stored else ():
            p.data.copy_(p.data.to(stored))
    return perturbed[0], perturbed[-1], _thinned(step.params), *map(_thinned, step.state())


@cache
def _references(workload: str, method: Method, device: str, stored: torch.dtype | None) -> list[tuple[list[Tensor], ...]]:
    reference, dtypes = ours("reference"), (torch.float32, torch.float64)
    runs = [trajectory(reference, workload, method, reference.variants[0], device, dtype, stored) for dtype in dtypes]
    return list(zip(*runs, strict=True))


def assert_match(provider: Provider, workload: str, method: Method, variant: dict[str, Any], device: str = "cpu") -> None:
    name = f"{provider.name} {variant}, {workload}, {method}"
    results = trajectory(provider, workload, method, variant, device)
    narrow = method.dtype != torch.float32
    if narrow and not provider.is_ours:
        itself = trajectory(provider, workload, method, variant, device, torch.float32)
        _assert_narrow(name, workload, method, results, itself, device)
        return
    references = _references(workload, method, device, method.dtype if narrow else None)
    for part, got, (plain, truth) in zip(results_of(method), results, references, strict=True):
        if not provider.is_ours:
            norm_enters = method.stable or "perturbed" in part
            start = _start(workload, method, device) if "weights" in part else [torch.zeros_like(x) for x in truth]
            plain = [
                b + PEER * (a - b) + (norm_error(workload) * (b - c) if norm_enters else 0.0)
                for a, b, c in zip(plain, truth, start, strict=True)
            ]
        assert_elementwise(f"{name}: {part}", got, plain, truth, got[0].dtype)


def norm_error(workload: str) -> float:
    """Of a norm over all elements, relative: half that of its square, and the rule doubles it again."""
    return 0.5 * elements(WORKLOADS[workload]) ** 0.5 * torch.finfo(torch.float32).eps


@cache
def _start(workload: str, method: Method, device: str) -> list[Tensor]:
    return _thinned(parameters(workload, method, device, torch.float64))


def _assert_narrow(name: str, workload: str, method: Method, results: Results, wide: Results, device: str) -> None:
    start = torch.cat(_start(workload, method, device))
    allowed_ulps = steps_of(workload) * ROUNDINGS / 2
    for part, got, want in zip(results_of(method), map(torch.cat, results), map(torch.cat, wide), strict=True):
        change = want - start if "weights" in part else want
        allowed = allowed_ulps * torch.finfo(method.dtype).eps * (want.abs() + change.abs().max())
        error = (got.float() - want).abs()
        worst = (error / allowed).max().item()
        assert worst <= 1, f"{name}: {part}: errs by {worst:.3g} times what {allowed_ulps:g} ulps allow"


def forget() -> None:
    """Drop the reference results; call it between workloads."""
    _references.cache_clear()
    _start.cache_clear()
