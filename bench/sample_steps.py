"""Reweighted SAM over SAM, a whole step with its forwards and backwards: every estimator, matched first, in interleaved rounds."""

from typing import Any

import torch
import torch.nn.functional as F
from sample_cases import CASES, Case
from sample_match import SAMPLES, assert_norms
from torch import Tensor
from whole_step import SAM, Preset, Step, over_sam

from sam_kernels.profiling.match import assert_elementwise

MODELS = ("cnn", "vit")
ESTIMATORS = ("exact", "logits", "finite_difference")
LAM = 1.0
PRESETS = {SAM: Preset()} | {e: Preset("ReweightedSAM", {"lam": LAM, "relative": True, "estimator": e}) for e in ESTIMATORS}


def assert_match(name: str, steps: dict[str, Step]) -> None:
    """The first step: exact norms against autograd one sample at a time, those at the logits in fp64, and equal losses."""
    case = CASES[name]
    losses = {label: step() for label, step in steps.items()}
    assert_norms("exact", name, steps["exact"].optimizer.sample_norms.square())
    x, y = case.batch()
    truth, plain = (_at_logits(case, x[:SAMPLES].to(dtype), y[:SAMPLES]) for dtype in (torch.float64, torch.float32))
    assert_elementwise(f"{name}: norms at the logits", [steps["logits"].optimizer.sample_norms[:SAMPLES]], [plain], [truth], torch.float32)
    for label, loss in losses.items():
        error = abs(loss.item() / losses[SAM].item() - 1)
        assert error < 1e-5, f"{name}, {label}: loss {loss.item()} where SAM has {losses['SAM'].item()}"


def _at_logits(case: Case, x: Tensor, y: Tensor) -> Tensor:
    z = case.model().to(x.dtype)(x).detach()
    return (z.softmax(1) - F.one_hot(y, z.shape[1])).norm(dim=1)


def measure(name: str, backend: str) -> dict[str, Any]:
    steps = {label: Step(CASES[name], preset, backend) for label, preset in PRESETS.items()}
    assert_match(name, steps)
    return {"reweighted": name, "backend": backend, **over_sam(steps)}
