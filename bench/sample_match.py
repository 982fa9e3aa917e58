"""Match before time: the norms of a few samples, and their weighted gradient, against autograd in fp64 on one sample at a time.

A norm is a sum of squares over all parameters, and the rule of tests/tolerance.py for sums holds; a gradient may err twice as much as
that of plain torch, sample by sample in fp32.
"""

from functools import cache

import torch
from sample_cases import CASES
from sample_run import Run
from torch import Tensor

from sam_kernels.profiling.match import assert_elementwise, assert_reduction

SAMPLES = 4  # compared


@cache
def oracle(name: str, dtype: torch.dtype) -> list[list[Tensor]]:
    """The gradients of the first samples' own losses."""
    case = CASES[name]
    model, (x, y) = case.model().to(dtype), case.batch()
    x = x.to(dtype) if x.is_floating_point() else x
    params = list(model.parameters())
    return [[g.detach() for g in torch.autograd.grad(case.losses(model(x[i : i + 1]), y[i : i + 1]).sum(), params)] for i in range(SAMPLES)]


def assert_norms(label: str, name: str, got: Tensor) -> None:
    for i, gradients in enumerate(oracle(name, torch.float64)):
        want = torch.stack([g.square().sum() for g in gradients]).sum()
        terms = sum(g.numel() for g in gradients)
        assert_reduction(f"{label}, {name}: squared norm of sample {i}", got[i].detach(), want, terms, want.item(), torch.float32)


def assert_match(label: str, name: str, run: Run) -> None:
    run.clear()
    found = run.norms()
    if found is None:
        return
    if found.shape != (run.case.samples,):
        raise ValueError(f"norms of shape {tuple(found.shape)} for {run.case.samples} samples")
    assert_norms(label, name, found)
    if run.finishes:
        kept, run.weights = run.weights, torch.zeros(run.case.samples)
        run.weights[:SAMPLES] = torch.arange(1.0, SAMPLES + 1)
        run.finish()
        plain, truth = ([_weighted(parts) for parts in zip(*oracle(name, dtype), strict=True)] for dtype in (torch.float32, torch.float64))
        assert_elementwise(f"{label}, {name}: weighted gradient", [p.grad for p in run.params], plain, truth, torch.float32)
        run.weights = kept
    run.clear()


def _weighted(parts: tuple[Tensor, ...]) -> Tensor:
    return sum((i + 1) * part for i, part in enumerate(parts))


def forget() -> None:
    oracle.cache_clear()
