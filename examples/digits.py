"""Sharpness-aware training against label noise: a demonstration of a few minutes on two CPU cores.

    python examples/digits.py            # a table, and two figures in out/
    python examples/digits.py --quick    # smoke test
    python examples/digits.py --threads 1    # on a machine with other work: two threads that wait for one busy core are far slower

Data: scikit-learn's 1797 handwritten digits, 500 of them for testing. Of the training labels 40 % are replaced by one of the other
nine classes, drawn uniformly; test labels are clean. Noise, initial weights and batch order are functions of the seed and the same
for every method. The accuracy in the table is that after the last epoch, when plain SGD has had time to memorise the wrong labels.

Reweighted SAM (RW-SAM) gives the samples with the largest gradients the largest weights in the ascent, and has three ways to know
those norms. Which samples they are is measured: the table says which share of the weight falls on wrong labels.

The last columns time the optimizer alone, see ``digits_timing.py``.

Hyperparameters were chosen by the accuracy on 300 held-out training images with their noisy labels (training on the other 997)
after the last of 40 epochs, mean of two seeds that are not used here; the test set was not looked at. The ceiling is about 60 %, the
standard error about 2 points, so neighbours are ties; the grid is coarse:

    SGD         lr 0.01, 0.02, 0.05, 0.1, 0.2: 44.3, 41.8, 43.8, 52.5, 52.0
    SAM         lr 0.02, rho 0.02, 0.05, 0.1, 0.15, 0.2, 0.3: 44.0, 43.8, 51.7, 55.3, 54.5, 46.2
                lr 0.05, rho 0.02, 0.05: 48.0, 52.7   lr 0.1, rho 0.02, 0.05: 52.3, 50.2
    ASAM        lr 0.02, rho 0.2, 0.5, 1, 2, 4: 43.8, 44.0, 45.3, 55.0, 13.5
    Stable SAM  lr 0.02, rho 0.02, 0.05, 0.1, 0.2, 0.4: 44.5, 45.7, 45.5, 55.2, 54.8
    RW-SAM      lr 0.02        rho 0.15, lam 0.5, 1, 2, 4    rho 0.1, lam 0.5, 2    rho 0.2, lam 0.5
                exact          54.3, 54.0, 54.0, 52.5        52.2, 44.7             54.2
                logits         55.0, 54.8, 54.5, 51.8        51.2, 45.5             53.5
                finite diff.   54.3, 53.5, 44.0, 41.5        45.2, 40.7             53.3

RW-SAM's lam multiplies norms relative to their mean. It was tuned later, with two seeds of its own, on which SAM (lam 0) had 52.7, 53.8,
53.3 at rho 0.1, 0.15, 0.2. No setting is better than SAM's best by more than the standard error, and a large lam is worse. Of 43 % wrong
labels, lam 0.5, 1, 2, 4 at rho 0.15 made 52, 60, 74, 91 % of the exact weights: the larger a gradient, the likelier a wrong label.

A large learning rate keeps SGD from memorising too. So SGD appears twice: at the learning rate of the others, and at its own best.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from digits_figures import plot_accuracy, plot_time
from digits_timing import Stopwatch, spread, time_methods
from plain_loop import PlainLoopSAM
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import sam_kernels
from sam_kernels import ops
from sam_kernels.optim import ASAM, SAM, ReweightedSAM, StableSAM

NOISE, TEST_IMAGES, BATCH = 0.4, 500, 64
LAST_EPOCHS = 10  # over which the weight on wrong labels is averaged


@dataclass(frozen=True)
class Method:
    name: str
    color: str
    optimizer: type[Optimizer]
    lr: float = 0.02
    options: dict[str, Any] = field(default_factory=dict)  # of the SAM variant, in the words of sam_kernels
    plain: dict[str, Any] = field(default_factory=dict)  # the same choice, in the words of plain_loop.py

    @property
    def two_passes(self) -> bool:
        return self.optimizer is not torch.optim.SGD

    @property
    def reweighted(self) -> bool:
        return self.optimizer is ReweightedSAM

    def build(self, model: nn.Module, backend: str | None) -> Any:
        if not self.two_passes:
            return torch.optim.SGD(model.parameters(), lr=self.lr, **SGD)
        watched = {"model": model} if self.reweighted else {}
        return self.optimizer(model.parameters(), torch.optim.SGD, backend=backend, lr=self.lr, **watched, **self.options, **SGD)

    def build_plain(self, model: nn.Module) -> PlainLoopSAM:
        return PlainLoopSAM(model.parameters(), **self.options, **self.plain, lr=self.lr, **SGD)

    def step(self, optimizer: Any, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """One training step, the same for all but RW-SAM: SGD calls the closure once, SAM twice."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        def losses(index: Tensor | None = None) -> ops.SampleLoss:
            """Losses of the samples at these positions, and the norms of their gradients at the logits, which one estimator wants."""
            chosen = slice(None) if index is None else index
            return ops.cross_entropy_sample(model(x[chosen]), y[chosen])

        if self.reweighted:
            optimizer.step(losses, batch_size=len(y))
        else:
            optimizer.step(closure)


SGD = {"momentum": 0.9, "weight_decay": 5e-4}
METHODS = (
    Method("SGD", "#7a828c", torch.optim.SGD),
    Method("SGD, lr 0.1", "#22272e", torch.optim.SGD, lr=0.1),
    Method("SAM", "#0b6fd6", SAM, options={"rho": 0.15}),
    Method("ASAM", "#d9480f", ASAM, options={"rho": 2.0, "eta": 0.01}, plain={"adaptive": True}),
    Method("Stable SAM", "#2b8a3e", StableSAM, options={"rho": 0.2}, plain={"stable": True}),
    Method("RW-SAM exact", "#7048e8", ReweightedSAM, options={"rho": 0.15, "lam": 0.5, "relative": True}),
    Method("RW-SAM logits", "#c2255c", ReweightedSAM, options={"rho": 0.15, "lam": 0.5, "relative": True, "estimator": "logits"}),
    Method("RW-SAM finite diff.", "#b08900", ReweightedSAM,
           options={"rho": 0.15, "lam": 0.5, "relative": True, "estimator": "finite_difference"}),
)  # fmt: skip


# ---- data and model


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor  # noisy
    wrong: Tensor  # where y is
    x_test: Tensor
    y_test: Tensor


def load_data(seed: int) -> Data:
    """The split is always the same; which labels are wrong depends on the seed."""
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    x, y = (x - x[train].mean()) / x[train].std(), torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    clean = y[train]
    wrong = torch.rand(len(train), generator=generator) < NOISE
    noisy = torch.where(wrong, (clean + torch.randint(1, 10, clean.shape, generator=generator)) % 10, clean)
    return Data(x[train], noisy, wrong, x[test], y[test])


def build_model(seed: int) -> nn.Module:
    """Four 3x3 convolutions with GroupNorm and a linear layer: 75,434 parameters in 14 tensors."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(*block(1, 32, 1), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1), nn.Flatten(), nn.Linear(1024, 10))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (model(x).argmax(1) == y).float().mean().item()


# ---- training


@dataclass
class Run:
    """One training: test accuracy after every epoch, in percent; of the last epochs of RW-SAM, percentages that belong to wrong labels."""

    curve: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)  # of the weights of the ascent, step by step
    share: list[float] = field(default_factory=list)  # of the samples of the same batches


def train(
    method: Method, data: Data, seed: int, epochs: int, backend: str | None, watch: Callable[[int, nn.Module], None] | None = None
) -> Run:
    """Train once. ``watch(steps done, model)`` is called before every step and after the last."""
    model, run, step = build_model(seed), Run(), 0
    optimizer = method.build(model, backend)
    schedule = CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    for epoch in tqdm(range(epochs), desc=f"{method.name}, seed {seed}", unit="epoch", leave=False, disable=None):
        for index in torch.randperm(len(data.x), generator=generator).split(BATCH):
            if watch is not None:
                watch(step, model)
            method.step(optimizer, model, data.x[index], data.y[index])
            step += 1
            if method.reweighted and epoch >= epochs - LAST_EPOCHS:
                wrong = data.wrong[index].float()
                run.weight.append(100 * (optimizer.sample_weights.weights @ wrong).item())
                run.share.append(100 * wrong.mean().item())
        schedule.step()
        run.curve.append(accuracy(model, data.x_test, data.y_test))
    if watch is not None:
        watch(step, model)
    fit = accuracy(model, data.x, data.y)
    print(f"  {method.name:<{WIDTH}}  seed {seed}   test {run.curve[-1]:5.1f} %   fits {fit:5.1f} % of noisy training labels", flush=True)
    return run


WIDTH = max(len(method.name) for method in METHODS)


# ---- table


def mean_and_deviation(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def print_table(runs: dict[str, list[Run]], watches: Sequence[Stopwatch], rounds: int) -> None:
    rows = [("method", "clean test accuracy, %", "weight on wrong labels, %", "ms per training step", "ms in the optimizer",
             "ms in a plain per-tensor loop")]  # fmt: skip
    for watch in watches:
        mine = runs[watch.method.name]
        found = (mean_and_deviation([run.curve[-1] for run in mine]),
                 mean_and_deviation([mean(run.weight) for run in mine]) if watch.method.reweighted else "-",
                 spread(watch.step_ms, 1), spread(watch.ours_ms, 2), spread(watch.loop_ms, 2))  # fmt: skip
        rows.append((watch.method.name, *found))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    print()
    for i, row in enumerate(rows):
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
        if i == 0:
            print("  ".join("-" * width for width in widths))
    seeds, epochs = len(runs[rows[1][0]]), len(runs[rows[1][0]][0].curve)
    print(f"accuracy: after the last epoch, mean ± s.d. over seeds (here {seeds}); times: median of {rounds} steps (quartiles)")
    if shares := [value for found in runs.values() for run in found for value in run.share]:
        last = f"the last {min(LAST_EPOCHS, epochs)} epochs"
        print(f"weight on wrong labels: share of the ascent's weights in {last}; equal weights, as in SAM, would give {mean(shares):.1f}")
    print()


# ---- the program


def parse_arguments() -> argparse.Namespace:
    names = [method.name for method in METHODS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, help="default 40, with --quick 2")
    parser.add_argument("--seeds", type=int, help="number of seeds, default 3, with --quick 1")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    parser.add_argument("--backend", help="backend of sam_kernels by name; default: the preferred one")
    parser.add_argument("--threads", type=int, help="threads of torch, default: torch's own choice")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the figures, default out/")
    parser.add_argument("--quick", action="store_true", help="smoke test: few epochs, one seed")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (2 if arguments.quick else 40)
    arguments.seeds = arguments.seeds or (1 if arguments.quick else 3)
    if arguments.epochs < 1 or arguments.seeds < 1:
        parser.error("--epochs and --seeds must be at least 1")
    return arguments


def main() -> None:
    begin, arguments = time.perf_counter(), parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    methods = [method for method in METHODS if method.name in arguments.methods]
    seeds, rounds = range(arguments.seeds), 20 if arguments.quick else 200
    sam_kernels.show_backends()
    print(f"\nused here: {arguments.backend or 'the one marked *'} on cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    realised = ", ".join(f"{100 * load_data(seed).wrong.float().mean().item():.1f} %" for seed in seeds)
    print(f"wrong training labels: {realised} (seed {', '.join(map(str, seeds))})")
    print(f"\ntraining: {arguments.epochs} epochs")
    runs: dict[str, list[Run]] = {method.name: [] for method in methods}
    for seed in seeds:
        for method in methods:
            runs[method.name].append(train(method, load_data(seed), seed, arguments.epochs, arguments.backend))
    print(f"\ntiming: {rounds} steps of each method, in turns")
    data = load_data(0)
    watches = time_methods(methods, build_model(0), data.x, data.y, BATCH, rounds, arguments.backend)
    print_table(runs, watches, rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = [arguments.out / "accuracy.png"]
    curves = [(method.name, method.color, np.array([run.curve for run in runs[method.name]])) for method in methods]
    plot_accuracy(curves, f"Accuracy on clean test digits, trained with {100 * NOISE:.0f} % wrong labels", figures[0])
    if alone := [watch for watch in watches if watch.loop_ms or watch.method.name == "SGD"]:  # its learning rate costs nothing
        figures.append(arguments.out / "optimizer_time.png")
        plot_time(alone, figures[1])
    print(f"finished in {time.perf_counter() - begin:.0f} s, {time.process_time():.0f} s of CPU time")
    print(*figures, sep="\n")


if __name__ == "__main__":
    main()
