"""Match before time: some steps of every provider against the fp64 run of the reference backend, under the project's error rule.

Compared are the perturbed weights of the first and the last step, which the restore would otherwise hide, the final weights and the
base's state. The rule is that of tests/tolerance.py; a peer may err twice as far from plain torch, and where one of its norms enters,
by as much more as the rule allows a sum in fp32. Of a large workload every k-th element and the end of every tensor are compared;
the tests compare all.

bf16. Ours computes in fp32 and rounds the weights once per phase: it obeys the rule, with a reference that rounds its weights where
the step ends. A peer computes in bf16 as it goes, so it is matched with its fp32 self, which the fp32 cell of the same workload
matches by the rule. A step may round a value ``ROUNDINGS`` times by half an ulp of what it is and of what it was changed by.
"""

from functools import cache
from typing import Any

import torch
from providers import Provider, ours
from torch import Tensor
from torch.nn import Parameter

from sam_kernels.profiling import steps
from sam_kernels.profiling.match import assert_elementwise
from sam_kernels.profiling.methods import Method
from sam_kernels.profiling.steps import Results, results_of, thinned
from sam_kernels.profiling.workloads import WORKLOADS, elements

PEER = 2.0  # multiple of plain torch's own error that counts as a peer's plain error
ROUNDINGS = 8  # in bf16 per value and step; an update takes about 6, the factors of norms 2 more


def parameters(workload: str, method: Method, device: str, dtype: torch.dtype | None = None) -> list[Parameter]:
    return steps.parameters(WORKLOADS[workload], method, device, dtype)


def gradients(workload: str, method: Method, step: int, device: str, dtype: torch.dtype | None = None) -> tuple[list[Tensor], list[Tensor]]:
    return steps.gradients(WORKLOADS[workload], method, step, device, dtype)


def trajectory(provider: Provider, workload: str, method: Method, variant: dict[str, Any], device: str,
               dtype: torch.dtype | None = None, stored: torch.dtype | None = None) -> Results:  # fmt: skip
    return steps.trajectory(lambda params: provider.build(params, method, variant), WORKLOADS[workload], method, device, dtype, stored)


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
    return thinned(parameters(workload, method, device, torch.float64))


def _assert_narrow(name: str, workload: str, method: Method, results: Results, wide: Results, device: str) -> None:
    start = torch.cat(_start(workload, method, device))
    allowed_ulps = steps.steps_of(WORKLOADS[workload]) * ROUNDINGS / 2
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
