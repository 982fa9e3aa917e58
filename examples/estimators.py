"""How well cheap estimators rank samples by the norm of their gradient, over one training on noisy digits.

    python examples/estimators.py            # a table, and a figure in out/
    python examples/estimators.py --quick    # smoke test
    python examples/estimators.py --threads 1 --method sgd    # on a machine with other work; another method of digits.py

The training is that of ``digits.py``. Between steps, at logarithmic distances, every estimator is evaluated on the same 256 training
images with their noisy labels. Table and figure give its Spearman rank correlation with the exact norm of each sample's gradient by all
75,434 parameters, mean and standard deviation over seeds:

    loss               the loss of the sample
    logits             norm of the gradient at the logits (EL2N), from ``ops.cross_entropy_sample``
    last layer         exact norm of the gradient of the last linear layer alone
    norm layers        exact norm of the gradient of the GroupNorm layers alone
    1, 4, 16 probes    finite differences along random signs, as ReweightedSAM takes them; the mean over disjoint groups of 64 probes

The last column, the standard deviation of the logarithm of the exact norm over the batch, says how much there is to rank: a probe
adds noise with a standard deviation of about 1.1 to it, whatever it is. All samples share the signs, so that one draw may favour many
of them alike: results of single draws differ a lot.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from digits_data import Data, build_model, load_data
from digits_figures import plot_correlations
from digits_methods import BY_KEY, Method, chosen_method
from digits_tables import mean_and_deviation, print_rows
from digits_train import BATCH, train
from scipy.stats import spearmanr
from torch import Tensor, nn

from sam_kernels import ops, per_sample
from sam_kernels.optim import SAM

SAMPLES, DRAWN, DELTA = 256, 64, 1e-4  # DELTA is ReweightedSAM's default
COLORS = {"loss": "#7a828c", "logits": "#c2255c", "last layer": "#0b6fd6", "norm layers": "#2b8a3e",
          "1 probe": "#dca63a", "4 probes": "#a87400", "16 probes": "#634700"}  # fmt: skip
SPREAD = "s.d. of log"


def exact(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Norms ``[B]`` over all parameters, and over those of some layers alone. Gradients in ``.grad`` stay what they were."""
    with per_sample.grad_norms(model, len(y), weighted=True, reduction="sum", per_layer=True) as norms:
        ops.cross_entropy_sample(model(x), y).loss.sum().backward()
    layers = {name: module for name, module in model.named_modules() if name in norms.per_layer}
    groups = torch.stack([norms.per_layer[name] for name, module in layers.items() if isinstance(module, nn.GroupNorm)])
    last = norms.per_layer[list(layers)[-1]]
    return norms.norm, {"last layer": last.sqrt(), "norm layers": groups.sum(0).sqrt()}


@torch.no_grad()
def differences(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``[DRAWN, B]``: change of every loss over DELTA, for a step of DELTA up or down in every weight."""
    optimizer, found = SAM(model.parameters(), "sgd", lr=0.0), []
    before, noise = ops.cross_entropy_sample(model(x), y).loss, optimizer.draw_noise()
    for _ in range(DRAWN):
        noise[1] += 1
        optimizer.perturb_signs(noise, DELTA)
        found.append((ops.cross_entropy_sample(model(x), y).loss - before) / DELTA)
        optimizer.restore()
    return torch.stack(found)


def correlation(estimates: Tensor, norms: Tensor) -> float:
    """Mean Spearman correlation of the rows of ``estimates`` with ``norms``."""
    return float(np.mean([spearmanr(row, norms).statistic for row in estimates.reshape(-1, len(norms))]))


def measure(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    norms, layers = exact(model, x, y)
    with torch.no_grad():
        loss, at_logits = ops.cross_entropy_sample(model(x), y)
    squares = differences(model, x, y).square()
    probes = {f"{n} probe{'s' * (n > 1)}": squares.view(-1, n, len(y)).mean(1).sqrt() for n in (1, 4, 16)}
    found = {name: correlation(row, norms) for name, row in {"loss": loss, "logits": at_logits, **layers, **probes}.items()}
    return {**found, SPREAD: norms.log().std().item()}


def follow(data: Data, method: Method, seed: int, epochs: int, steps: list[int]) -> list[dict[str, float]]:
    """Train with one seed and measure after so many steps."""
    found: list[dict[str, float]] = []

    def watch(step: int, model: nn.Module) -> None:
        if step in steps:
            found.append(measure(model, data.x[:SAMPLES], data.y[:SAMPLES]))

    train(method, data, seed, epochs, None, watch)
    return found


def print_table(steps: list[int], values: dict[str, np.ndarray]) -> None:
    rows = [("steps", *values)]
    for k, step in enumerate(steps):
        rows.append((str(step), *(mean_and_deviation([float(x) for x in mine[:, k]], 2) for mine in values.values())))
    print_rows(rows, 0)
    print(f"Spearman correlation with the exact norm, {SAMPLES} samples, mean ± s.d. over seeds (here {len(values[SPREAD])})\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", type=chosen_method, default="sam", metavar="NAME", help=f"one of {','.join(BY_KEY)}, default sam")
    parser.add_argument("--threads", type=int, help="threads of torch, default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figure, default out/")
    parser.add_argument("--quick", action="store_true", help="smoke test: one epoch, one seed")
    arguments, begin = parser.parse_args(), time.perf_counter()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seeds, epochs, points = (1, 1, 3) if arguments.quick else (3, 40, 11)
    total = epochs * -(-len(load_data(0).x) // BATCH)
    steps = [0, *sorted({round(float(step)) for step in np.geomspace(1, total, points)})]
    print(f"{arguments.method.name}, {epochs} epochs, {total} steps; {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print(f"parameters: {sum(p.numel() for p in build_model(0).parameters())}")
    found = [follow(load_data(seed), arguments.method, seed, epochs, steps) for seed in range(seeds)]
    values = {name: np.array([[point[name] for point in run] for run in found]) for name in found[0][0]}
    print_table(steps, values)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figure = arguments.out / "estimators.png"
    plot_correlations(steps, {name: values[name] for name in COLORS}, COLORS, figure)
    print(f"finished in {time.perf_counter() - begin:.0f} s, {time.process_time():.0f} s of CPU time")
    print(figure)


if __name__ == "__main__":
    main()
