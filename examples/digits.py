"""Sharpness-aware training against label noise: a demonstration of a few minutes on two CPU cores.

    python examples/digits.py            # a table, and two figures in out/
    python examples/digits.py --quick    # smoke test
    python examples/digits.py --methods sam,esam,ausam    # some of the methods
    python examples/digits.py --threads 1    # on a machine with other work: two threads that wait for one busy core are far slower

Data and network: ``digits_data.py``. Noise, initial weights and batch order are functions of the seed and the same for every method.
The accuracy in the table is that after the last epoch, when plain SGD has had time to memorise the wrong labels. The methods and how
their hyperparameters were chosen: ``digits_methods.py``.

Reweighted SAM (RW-SAM) gives the samples with the largest gradients the largest weights in the ascent, and has three ways to know
those norms. ESAM descends on the half of the batch whose loss the ascent raises most, AUSAM does both passes on a half that it draws
by such rises of the loss. Which samples they are is measured: the table says which share of the weight falls on wrong labels.

The last columns time the optimizer alone, see ``digits_timing.py``.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from digits_data import NOISE, build_model, load_data
from digits_figures import plot_accuracy, plot_time
from digits_methods import BY_KEY, METHODS, chosen_methods
from digits_tables import mean_and_deviation, print_rows, spread
from digits_timing import Stopwatch, time_methods
from digits_train import BATCH, LAST_EPOCHS, Run, train

import sam_kernels


def print_table(runs: dict[str, list[Run]], watches: Sequence[Stopwatch], rounds: int) -> None:
    rows = [("method", "clean test accuracy, %", "weight on wrong labels, %", "ms per training step", "ms in the optimizer",
             "ms in a plain per-tensor loop")]  # fmt: skip
    for watch in watches:
        mine = runs[watch.method.name]
        found = (mean_and_deviation([run.curve[-1] for run in mine]),
                 mean_and_deviation([mean(run.weight) for run in mine if run.weight]),
                 spread(watch.step_ms, 1), spread(watch.ours_ms, 2), spread(watch.loop_ms, 2))  # fmt: skip
        rows.append((watch.method.name, *found))
    print_rows(rows, 1)
    seeds, epochs = len(runs[rows[1][0]]), len(runs[rows[1][0]][0].curve)
    print(f"accuracy: after the last epoch, mean ± s.d. over seeds (here {seeds}); times: median of {rounds} steps (quartiles)")
    if shares := [value for found in runs.values() for run in found for value in run.share]:
        last = f"the last {min(LAST_EPOCHS, epochs)} epochs"
        print(f"weight on wrong labels: share of RW-SAM's weights in the ascent, and of the samples that ESAM and AUSAM choose, in {last};")
        print(f"equal weights, as in SAM, would give {mean(shares):.1f}")
    print()


# ---- the program


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, help="default 40, with --quick 2")
    parser.add_argument("--seeds", type=int, help="number of seeds, default 3, with --quick 1")
    names = ",".join(BY_KEY)
    parser.add_argument("--methods", type=chosen_methods, default=METHODS, metavar="NAMES", help=f"default {names}")
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
    methods, seeds, rounds = arguments.methods, range(arguments.seeds), 20 if arguments.quick else 200
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
