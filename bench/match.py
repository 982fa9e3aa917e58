"""Match before time: three steps of every provider against the fp64 run of the reference backend, under the project's error rule.

Ours gets the rule of tests/tolerance.py as it is. A peer takes its norms tensor by tensor and rounds once more per operation, so the
plain error that the rule doubles is first multiplied by ``Provider.tolerated``.
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
WEIGHT, GRADIENT, SECOND = 0.05, 1e-3, 2e-3  # standard deviations


def parameters(workload: str, device: str, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(x) for x in tensors(workload, 0, WEIGHT, device, dtype)]


def gradients(workload: str, step: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    return tensors(workload, 2 * step + 1, GRADIENT, device, dtype), tensors(workload, 2 * step + 2, SECOND, device, dtype)


def trajectory(
    provider: Provider, workload: str, method: str, variant: dict[str, Any], device: str, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and momentum buffers after the steps."""
    step: Step = provider.build(parameters(workload, device, dtype), method, variant)
    for k in range(STEPS):
        step.step(*gradients(workload, k, device, dtype))
    return [p.detach() for p in step.params], step.momentum()


@cache
def _references(workload: str, method: str, device: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    reference = ours("reference")
    runs = [trajectory(reference, workload, method, reference.variants[0], device, dtype) for dtype in (torch.float32, torch.float64)]
    return list(zip(*runs, strict=True))


def assert_match(provider: Provider, workload: str, method: str, variant: dict[str, Any], device: str = "cpu") -> None:
    results = trajectory(provider, workload, method, variant, device)
    for name, got, (plain, truth) in zip(("weights", "momentum"), results, _references(workload, method, device), strict=True):
        if not provider.is_ours:
            plain = [(t + provider.tolerated * (p.double() - t)) for p, t in zip(plain, truth, strict=True)]
        assert_elementwise(f"{provider.name} {variant}, {workload}, {method}: {name}", got, plain, truth, torch.float32)


def forget() -> None:
    """Drop the reference results; call it between workloads."""
    _references.cache_clear()
