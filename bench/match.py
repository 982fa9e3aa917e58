"""Match before time: three steps of every provider against the fp64 run of the reference backend, under the project's error rule.

Compared are the perturbed weights of the last step, which the restore would otherwise hide, the final weights and the momentum.
The rule is that of tests/tolerance.py; a peer may err twice as far from plain torch, since its fp32 norms of norms round more.
Of a large workload every k-th element and the end of every tensor are compared; the tests compare all.
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

from providers import Provider, Step, ours  # noqa: E402
from tolerance import assert_elementwise  # noqa: E402
from workloads import tensors  # noqa: E402

STEPS = 3
PEER = 2.0  # multiple of plain torch's own error that counts as a peer's plain error
COMPARED = 1 << 22  # elements per result, about
RESULTS = ("perturbed weights", "weights", "momentum")
WEIGHT, GRADIENT, SECOND = 0.05, 1e-3, 2e-3  # standard deviations


def parameters(workload: str, device: str, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(x) for x in tensors(workload, 0, WEIGHT, device, dtype)]


def gradients(workload: str, step: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    return tensors(workload, 2 * step + 1, GRADIENT, device, dtype), tensors(workload, 2 * step + 2, SECOND, device, dtype)


def _thinned(values: list[Tensor]) -> list[Tensor]:
    stride = (1 + sum(x.numel() for x in values) // COMPARED) | 1  # odd
    flat = [x.detach().reshape(-1) for x in values]
    return [torch.cat((x[::stride], x[-8:])) for x in flat]


def trajectory(
    provider: Provider, workload: str, method: str, variant: dict[str, Any], device: str, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], ...]:
    """``RESULTS`` after the steps, thinned."""
    step: Step = provider.build(parameters(workload, device, dtype), method, variant)
    for k in range(STEPS):
        g, h = gradients(workload, k, device, dtype)
        step.load(g)
        step.first()
        perturbed = _thinned(step.params)
        step.load(h)
        step.second()
    return perturbed, _thinned(step.params), _thinned(step.momentum())


@cache
def _references(workload: str, method: str, device: str) -> list[tuple[list[Tensor], ...]]:
    reference = ours("reference")
    runs = [trajectory(reference, workload, method, reference.variants[0], device, dtype) for dtype in (torch.float32, torch.float64)]
    return list(zip(*runs, strict=True))


def assert_match(provider: Provider, workload: str, method: str, variant: dict[str, Any], device: str = "cpu") -> None:
    results = trajectory(provider, workload, method, variant, device)
    for name, got, (plain, truth) in zip(RESULTS, results, _references(workload, method, device), strict=True):
        plain = plain if provider.is_ours else [b + PEER * (a - b) for a, b in zip(plain, truth, strict=True)]
        assert_elementwise(f"{provider.name} {variant}, {workload}, {method}: {name}", got, plain, truth, torch.float32)


def forget() -> None:
    """Drop the reference results; call it between workloads."""
    _references.cache_clear()
