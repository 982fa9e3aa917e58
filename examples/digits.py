"""Sharpness-aware training against label noise: a two-minute demonstration on two CPU cores.

    python examples/digits.py            # a table, and two figures in out/
    python examples/digits.py --quick    # smoke test
    python examples/digits.py --threads 1    # on a machine with other work: two threads that wait for one busy core are far slower

Data: scikit-learn's 1797 handwritten digits, 500 of them for testing. Of the training labels 40 % are replaced by one of the other
nine classes, drawn uniformly; test labels are clean. Noise, initial weights and batch order are functions of the seed and the same
for every method. The accuracy in the table is that after the last epoch, when plain SGD has had time to memorise the wrong labels.

The last columns time the optimizer alone. Beside each fused optimizer an everyday per-tensor loop (``plain_loop.py``) is fed the
same gradients; the two must agree on the weights before they are timed, in turns, within one run.

Hyperparameters were chosen by the accuracy on 300 held-out training images with their noisy labels (training on the other 997)
after the last of 40 epochs, mean of two seeds that are not used here; the test set was not looked at. The ceiling is about 60 %, the
standard error about 2 points, so neighbours are ties; the grid is coarse:

    SGD         lr 0.01, 0.02, 0.05, 0.1, 0.2: 44.3, 41.8, 43.8, 52.5, 52.0
    SAM         lr 0.02, rho 0.02, 0.05, 0.1, 0.15, 0.2, 0.3: 44.0, 43.8, 51.7, 55.3, 54.5, 46.2
                lr 0.05, rho 0.02, 0.05: 48.0, 52.7   lr 0.1, rho 0.02, 0.05: 52.3, 50.2
    ASAM        lr 0.02, rho 0.2, 0.5, 1, 2, 4: 43.8, 44.0, 45.3, 55.0, 13.5
    Stable SAM  lr 0.02, rho 0.02, 0.05, 0.1, 0.2, 0.4: 44.5, 45.7, 45.5, 55.2, 54.8

A large learning rate keeps SGD from memorising too. So SGD appears twice: at the learning rate of the others, and at its own best.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from plain_loop import PlainLoopSAM
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import sam_kernels
from sam_kernels.optim import ASAM, SAM, StableSAM

NOISE, TEST_IMAGES, BATCH = 0.4, 500, 64
INK, FAINT = "#22272e", "#d8dde3"


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

    def build(self, model: nn.Module, backend: str | None) -> Any:
        if not self.two_passes:
            return torch.optim.SGD(model.parameters(), lr=self.lr, **SGD)
        return self.optimizer(model.parameters(), torch.optim.SGD, backend=backend, lr=self.lr, **self.options, **SGD)

    def build_plain(self, model: nn.Module) -> PlainLoopSAM:
        return PlainLoopSAM(model.parameters(), **self.options, **self.plain, lr=self.lr, **SGD)


SGD = {"momentum": 0.9, "weight_decay": 5e-4}
METHODS = (
    Method("SGD", "#7a828c", torch.optim.SGD),
    Method("SGD, lr 0.1", "#22272e", torch.optim.SGD, lr=0.1),
    Method("SAM", "#0b6fd6", SAM, options={"rho": 0.15}),
    Method("ASAM", "#d9480f", ASAM, options={"rho": 2.0, "eta": 0.01}, plain={"adaptive": True}),
    Method("Stable SAM", "#2b8a3e", StableSAM, options={"rho": 0.2}, plain={"stable": True}),
)


# ---- data and model


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor  # noisy
    x_test: Tensor
    y_test: Tensor
    noise: float  # share of wrong labels in y


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
    return Data(x[train], noisy, x[test], y[test], (noisy != clean).float().mean().item())


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


def train(method: Method, seed: int, epochs: int, backend: str | None) -> list[float]:
    """Train once; the test accuracy after every epoch, in percent."""
    data, model = load_data(seed), build_model(seed)
    optimizer = method.build(model, backend)
    schedule = CosineAnnealingLR(optimizer, epochs)
    generator, curve = torch.Generator().manual_seed(seed), []
    for _ in tqdm(range(epochs), desc=f"{method.name}, seed {seed}", unit="epoch", leave=False, disable=None):
        for index in torch.randperm(len(data.x), generator=generator).split(BATCH):
            x, y = data.x[index], data.y[index]

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)  # the same loop for all: SGD calls the closure once, SAM twice
        schedule.step()
        curve.append(accuracy(model, data.x_test, data.y_test))
    fit = accuracy(model, data.x, data.y)
    print(f"  {method.name:<11}  seed {seed}   test {curve[-1]:5.1f} %   fits {fit:5.1f} % of the noisy training labels", flush=True)
    return curve


# ---- timing


def clock(job: Callable[[], Any]) -> float:
    """Milliseconds that one call takes."""
    begin = time.perf_counter()
    job()
    return 1e3 * (time.perf_counter() - begin)


class Stopwatch:
    """One method, timed step by step: the optimizer and the plain loop take turns on twin models with the same gradients."""

    def __init__(self, method: Method, backend: str | None) -> None:
        self.method, self.model = method, build_model(0)
        self.twin = copy.deepcopy(self.model)
        optimizer = method.build(self.model, backend)
        self.phases: list[tuple[Callable[[], Any], Callable[[], Any] | None]] = []
        if method.two_passes:
            loop = method.build_plain(self.twin)
            self.phases.append((lambda: optimizer.first_step(zero_grad=True), loop.first_step))
            self.phases.append((lambda: optimizer.second_step(zero_grad=True), loop.second_step))
        else:
            self.phases.append((lambda: (optimizer.step(), optimizer.zero_grad()), None))
        self.step_ms: list[float] = []
        self.ours_ms: list[float] = []
        self.loop_ms: list[float] = []

    def backward(self, x: Tensor, y: Tensor, on_twin: bool = False) -> float:
        """Compute gradients on one model, give the other a copy; milliseconds of the former."""
        source, target = (self.twin, self.model) if on_twin else (self.model, self.twin)
        spent = clock(lambda: F.cross_entropy(source(x), y).backward())
        for p, q in zip(source.parameters(), target.parameters(), strict=True):
            q.grad = p.grad.clone() if p.grad is not None else None
        return spent

    def check(self, x: Tensor, y: Tensor) -> float:
        """Two steps (momentum acts from the second on) must end at the loop's weights.

        Returns the largest difference as a fraction of the largest change of any weight, after every phase. The bound leaves room
        for rounding: weights are about 0.1 with a spacing of 1e-8, changes about 1e-3.
        """
        worst = 0.0
        before = _flat(self.model)
        for phase in range(2 * len(self.phases)):
            ours, loop = self.phases[phase % len(self.phases)]
            self.backward(x, y)
            ours()
            if loop is not None:
                loop()
                after, expected = _flat(self.model), _flat(self.twin)
                worst = max(worst, ((after - expected).abs().max() / (expected - before).abs().max()).item())
                before = expected
        if not worst < 1e-4:
            raise RuntimeError(f"{self.method.name}: the optimizer and the plain loop differ by {worst:.1e} of the step; not timing them")
        return worst

    def step(self, x: Tensor, y: Tensor, turn: int) -> None:
        """One timed step. Who goes first, and whose weights the backward pass left in cache, alternate independently."""
        whole = ours_ms = loop_ms = 0.0
        for ours, loop in self.phases:
            whole += self.backward(x, y, on_twin=loop is not None and turn % 4 >= 2)
            jobs = [ours, loop or (lambda: None)]
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            spent = {k: clock(jobs[k]) for k in order}
            ours_ms, loop_ms = ours_ms + spent[0], loop_ms + spent[1]
        self.step_ms.append(whole + ours_ms)
        self.ours_ms.append(ours_ms)
        self.loop_ms.append(loop_ms)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def time_methods(methods: Sequence[Method], rounds: int, backend: str | None) -> list[Stopwatch]:
    """Time all methods in turns, so that whatever else the machine does falls on all of them alike."""
    data, generator = load_data(0), torch.Generator().manual_seed(0)
    watches = [Stopwatch(method, backend) for method in methods]
    for watch in watches:
        worst = watch.check(data.x[:BATCH], data.y[:BATCH])
        if watch.method.two_passes:
            print(f"  {watch.method.name:<11}  matches the plain loop: largest difference {worst:.1e} of the step", flush=True)
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
        index = torch.randperm(len(data.x), generator=generator)[:BATCH]
        for watch in watches:
            watch.step(data.x[index], data.y[index], turn)
    return watches


# ---- table


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)


def spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def print_table(curves: dict[str, list[list[float]]], watches: Sequence[Stopwatch], rounds: int) -> None:
    head = ("method", "clean test accuracy, %", "ms per training step", "ms in the optimizer", "ms in a plain per-tensor loop")
    rows = [head]
    for watch in watches:
        last = [curve[-1] for curve in curves[watch.method.name]]
        deviation = f" ± {stdev(last):.1f}" if len(last) > 1 else ""
        loop = spread(watch.loop_ms, 2) if watch.method.two_passes else "-"
        rows.append((watch.method.name, f"{mean(last):.1f}{deviation}", spread(watch.step_ms, 1), spread(watch.ours_ms, 2), loop))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    print()
    for i, row in enumerate(rows):
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
        if i == 0:
            print("  ".join("-" * width for width in widths))
    seeds = len(next(iter(curves.values())))
    print(f"accuracy: after the last epoch, mean ± s.d. over seeds (here {seeds}); times: median of {rounds} steps (quartiles)\n")


# ---- figures


def new_axes(title: str, subtitle: str, right: float) -> Axes:
    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=200)
    figure.subplots_adjust(left=0.085, right=right, top=0.82, bottom=0.125)
    figure.text(0.02, 0.935, title, fontsize=13.5, fontweight="bold", color=INK)
    figure.text(0.02, 0.88, subtitle, fontsize=10, color="#57606a")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9aa4af")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, colors="#57606a")
    return axes


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed for neighbours to be ``gap`` apart; order is kept."""
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    placed = [heights[k] for k in order]
    for _ in range(200):
        for low in range(len(placed) - 1):
            lack = gap - (placed[low + 1] - placed[low])
            if lack > 0:
                placed[low], placed[low + 1] = placed[low] - lack / 2, placed[low + 1] + lack / 2
    return [placed[order.index(k)] for k in range(len(heights))]


def plot_accuracy(curves: dict[str, list[list[float]]], path: Path) -> None:
    used = [method for method in METHODS if method.name in curves]
    values = {name: np.array(runs) for name, runs in curves.items()}
    seeds, epochs = next(iter(values.values())).shape
    band = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    axes = new_axes(f"Accuracy on clean test digits, trained with {100 * NOISE:.0f} % wrong labels", band, right=0.765)
    for method in used:
        runs, epoch = values[method.name], np.arange(1, epochs + 1)
        middle = runs.mean(0)
        if seeds > 1:
            deviation = runs.std(0, ddof=1)
            axes.fill_between(epoch, middle - deviation, middle + deviation, color=method.color, alpha=0.16, linewidth=0)
        axes.plot(epoch, middle, color=method.color, linewidth=2.2, solid_capstyle="round")
    low = min(runs.mean(0)[epochs // 4 :].min() for runs in values.values())  # the climb of the first epochs may start below the axis
    bottom = max(0.0, 5 * np.floor((low - 3) / 5))
    axes.set(xlim=(1, epochs + 0.001), ylim=(bottom, 100), xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("test accuracy, %", color=INK, fontsize=10.5)
    axes.xaxis.label.set(color=INK, fontsize=10.5)
    ends = [values[method.name][:, -1].mean() for method in used]
    for method, end, height in zip(used, ends, apart(ends, gap=0.062 * (100 - bottom)), strict=True):
        axes.annotate(f"{method.name}  {end:.1f}", (epochs, end), (1.02, (height - bottom) / (100 - bottom)), textcoords="axes fraction",
                      color=method.color, fontsize=11, fontweight="bold", va="center", annotation_clip=False)  # fmt: skip
    axes.figure.savefig(path)
    plt.close(axes.figure)


def plot_time(watches: Sequence[Stopwatch], path: Path) -> None:
    title, subtitle = "Time in the optimizer per training step", "median, whiskers at the quartiles; same gradients, measured in turns"
    axes = new_axes(title, subtitle, right=0.97)
    watches = [watch for watch in watches if watch.method.two_passes or watch.method.name == "SGD"]  # its learning rate costs nothing
    top = 1.15 * max(quartiles(times)[1] for watch in watches for times in (watch.ours_ms, watch.loop_ms))  # whiskers may leave
    for k, watch in enumerate(watches):
        bars = [(watch.ours_ms, watch.method.color, "torch.optim.SGD")]
        if watch.method.two_passes:
            bars = [(watch.ours_ms, watch.method.color, "sam_kernels"), (watch.loop_ms, "#b6bec8", "plain loop")]
        for j, (times, color, label) in enumerate(bars):
            low, middle, high = quartiles(times)
            x = k + 0.43 * (j - (len(bars) - 1) / 2)
            axes.bar(x, middle, 0.36, color=color)
            axes.errorbar(x, middle, [[middle - low], [high - middle]], color=INK, linewidth=1, capsize=2.5)
            axes.text(x, min(high, 1.02 * top) + 0.02 * top, f"{middle:.2f}", ha="center", va="bottom", fontsize=10, color=INK)
            axes.text(x, -0.025 * top, label, ha="center", va="top", fontsize=8.5, color="#57606a")
        if watch.method.two_passes:
            ratio = quartiles(watch.loop_ms)[1] / quartiles(watch.ours_ms)[1]
            axes.text(k, 1.17 * top, f"{ratio:.1f}x", ha="center", fontsize=15, fontweight="bold", color=watch.method.color)
    axes.set_xticks(range(len(watches)), [watch.method.name for watch in watches], fontsize=11.5, fontweight="bold", color=INK)
    axes.tick_params(axis="x", pad=19)
    axes.set_ylabel("milliseconds", color=INK, fontsize=10.5)
    axes.set(xlim=(-0.55, len(watches) - 0.45), ylim=(0, 1.28 * top))
    axes.figure.savefig(path)
    plt.close(axes.figure)


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
    realised = ", ".join(f"{100 * load_data(seed).noise:.1f} %" for seed in seeds)
    print(f"wrong training labels: {realised} (seed {', '.join(map(str, seeds))})")
    print(f"\ntraining: {arguments.epochs} epochs")
    curves: dict[str, list[list[float]]] = {method.name: [] for method in methods}
    for seed in seeds:
        for method in methods:
            curves[method.name].append(train(method, seed, arguments.epochs, arguments.backend))
    print(f"\ntiming: {rounds} steps of each method, in turns")
    watches = time_methods(methods, rounds, arguments.backend)
    print_table(curves, watches, rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = (arguments.out / "accuracy.png", arguments.out / "optimizer_time.png")
    plot_accuracy(curves, figures[0])
    plot_time(watches, figures[1])
    print(f"finished in {time.perf_counter() - begin:.0f} s, {time.process_time():.0f} s of CPU time")
    print(*figures, sep="\n")


if __name__ == "__main__":
    main()
