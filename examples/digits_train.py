"""One training of ``digits.py``: accuracy after every epoch, and how much of what a method chooses is wrongly labelled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from digits_data import Data, accuracy, build_model
from digits_methods import WIDTH, Method
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

BATCH = 64
LAST_EPOCHS = 10  # over which the weight on wrong labels is averaged


@dataclass
class Run:
    """One training: test accuracy after every epoch, in percent; of the last epochs of a method that weighs or chooses samples,
    percentages that belong to wrong labels."""

    curve: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)  # of the weights of the samples, step by step
    share: list[float] = field(default_factory=list)  # of the samples of the same batches
    fit: float = 0.0  # of the noisy training labels, at the end


def weights_of(optimizer: Any, samples: int) -> Tensor | None:
    """``[samples]``, of the last step: those of the ascent, or equal ones of the samples that were chosen; None: all count the same."""
    if getattr(optimizer, "sample_weights", None) is not None:
        return optimizer.sample_weights.weights
    chosen = getattr(optimizer, "sample_indices", None)
    return None if chosen is None else torch.zeros(samples).index_fill_(0, chosen, 1 / len(chosen))


def train(
    method: Method,
    data: Data,
    seed: int,
    epochs: int,
    backend: str | None,
    watch: Callable[[int, nn.Module], None] | None = None,
    build: Callable[[int], nn.Module] = build_model,
    batch: int = BATCH,
) -> Run:
    """Train the network ``build(seed)`` once. ``watch(steps done, model)`` is called before every step and after the last."""
    model, run, step = build(seed), Run(), 0
    optimizer = method.build(model, backend, len(data.x))
    schedule = CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    for epoch in tqdm(range(epochs), desc=f"{method.name}, seed {seed}", unit="epoch", leave=False, disable=None):
        for index in torch.randperm(len(data.x), generator=generator).split(batch):
            if watch is not None:
                watch(step, model)
            method.step(optimizer, model, data.x[index], data.y[index], index)
            step += 1
            if epoch >= epochs - LAST_EPOCHS and (weights := weights_of(optimizer, len(index))) is not None:
                wrong = data.wrong[index].float()
                run.weight.append(100 * (weights @ wrong).item())
                run.share.append(100 * wrong.mean().item())
        schedule.step()
        run.curve.append(accuracy(model, data.x_test, data.y_test))
    if watch is not None:
        watch(step, model)
    run.fit = accuracy(model, data.x, data.y)
    print(
        f"  {method.name:<{WIDTH}}  seed {seed}   test {run.curve[-1]:5.1f} %   fits {run.fit:5.1f} % of noisy training labels", flush=True
    )
    return run
