"""Whole steps of the rules that work on parts of a batch, over those of SAM: matched first, in interleaved rounds.

Match: one step on a smaller batch in fp64, where no activation is close enough to a kink to fall on the other side, against the same
passes of plain torch, on the samples that the rule says it took; of ESAM with all tensors. AUSAM takes all samples in its first pass over
the data, which here is one batch: it is timed from the second step on.
"""

from dataclasses import replace
from typing import Any

import torch
from sample_cases import CASES, Case
from torch import Tensor
from whole_step import OPTIONS, SAM, Preset, Step, over_sam

from sam_kernels.profiling.match import assert_loop

MODELS = ("cnn", "vit")
ESAM, AUSAM, SHARDED, DRAWN = "ESAM", "AUSAM", "m-SAM, 4 shards", "Reweighted SAM, B/4 drawn"
SHARDS, PART, HALF = 4, 4, 0.5
MATCHED, LR = 16, 0.1  # samples and learning rate of the match, without momentum
Parts = list[tuple[Tensor, Tensor]]  # positions of the samples of the first and of the second pass, per perturbation


def presets(samples: int) -> dict[str, Preset]:
    drawn = {"lam": 1.0, "relative": True, "estimator": "logits", "draw": samples // PART}
    return {
        SAM: Preset(),
        ESAM: Preset("ESAM", {"beta": HALF, "gamma": HALF}),
        AUSAM: Preset("AUSAM", {"alpha": HALF, "num_samples": samples}),
        SHARDED: Preset("MicroBatchSAM", {"shards": SHARDS}),
        DRAWN: Preset("ReweightedSAM", drawn),
    }


def parts_of(label: str, step: Step) -> Parts:
    """What the last step took, by the rule and by what it says of itself."""
    samples = step.case.samples
    everything, used = torch.arange(samples), step.optimizer.sample_indices
    expected = {ESAM: int(HALF * samples) - 1, AUSAM: int(HALF * samples), DRAWN: samples // PART}.get(label)
    if expected is not None:
        assert used is not None and len(used) == expected, f"{label}: took {used} of {samples} samples, expected {expected} of them"
    return {
        SAM: [(everything, everything)],
        ESAM: [(everything, used)],
        AUSAM: [(used, used)],
        SHARDED: [(part, part) for part in everything.chunk(SHARDS)],
        DRAWN: [(used, everything)],
    }[label]


def updated(case: Case, clean: list[Tensor], parts: Parts) -> list[Tensor]:
    """The weights after one step of plain torch."""
    model, (x, y) = case.model().double(), case.batch()
    x, params = x.double(), list(model.parameters())

    def gradients(at: list[Tensor], samples: Tensor) -> list[Tensor]:
        for p, w in zip(params, at, strict=True):
            p.data.copy_(w)
        return list(torch.autograd.grad(case.losses(model(x[samples]), y[samples]).mean(), params))

    after = clean
    for first, second in parts:
        g = gradients(clean, first)
        scale = OPTIONS["rho"] / torch.stack([x.square().sum() for x in g]).sum().sqrt()
        h = gradients([w + scale * x for w, x in zip(clean, g, strict=True)], second)
        after = [w - LR / len(parts) * x for w, x in zip(after, h, strict=True)]
    return after


def assert_match(label: str, case: Case, preset: Preset, backend: str) -> None:
    changed = {"lr": LR, "momentum": 0.0} | ({"beta": 1.0} if label == ESAM else {})
    step = Step(case, preset, backend, torch.float64, **changed)
    if label == AUSAM:
        step()
    before = [p.detach().clone() for p in step.model.parameters()]
    step()
    truth = updated(case, before, parts_of(label, step))
    assert_loop(f"{label}, {case.label}: weights", list(step.model.parameters()), truth)


def measure(name: str, backend: str) -> dict[str, Any]:
    case = CASES[name]
    small = replace(case, shape=(MATCHED, *case.shape[1:]))
    for label, preset in presets(small.samples).items():
        assert_match(label, small, preset, backend)
    steps = {label: Step(case, preset, backend) for label, preset in presets(case.samples).items()}
    for step in steps.values():
        step()
    return {"batches": "steps", "backend": backend, **over_sam(steps)}
