"""Timing for ``digits.py``: all methods in turns, step by step, within one run.

The optimizer alone: beside each fused optimizer an everyday per-tensor loop (``plain_loop.py``) is fed the same gradients; the two must
agree on the weights before they are timed. Methods that work on the losses of samples call backward themselves, so that their steps are
timed whole, after as many steps as an epoch has, since AUSAM takes all samples in its first one; the exact norms of Reweighted SAM must
agree with gradients of one sample at a time before that.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from digits_methods import Method


def clock(job: Callable[[], Any]) -> float:
    """Milliseconds that one call takes."""
    begin = time.perf_counter()
    job()
    return 1e3 * (time.perf_counter() - begin)


class Stopwatch:
    """One method, timed step by step. Times that were not taken stay empty."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.step_ms: list[float] = []
        self.ours_ms: list[float] = []
        self.loop_ms: list[float] = []

    def forget(self) -> None:
        """Drop the times so far."""
        for times in (self.step_ms, self.ours_ms, self.loop_ms):
            times.clear()

    def check(self, x: Tensor, y: Tensor) -> str:
        """Raise if the method does not compute what it should; what was found, in words."""
        raise NotImplementedError

    def step(self, x: Tensor, y: Tensor, ids: Tensor, turn: int) -> None:
        """One timed step."""
        raise NotImplementedError


class PhaseWatch(Stopwatch):
    """A step in phases, each after a backward: the optimizer and the plain loop take turns on twin models with the same gradients."""

    def __init__(self, method: Method, model: nn.Module, backend: str | None) -> None:
        super().__init__(method)
        self.model, self.twin = model, copy.deepcopy(model)
        optimizer = method.build(self.model, backend, 0)
        self.phases: list[tuple[Callable[[], Any], Callable[[], Any] | None]] = []
        if method.two_passes:
            loop = method.build_plain(self.twin)
            self.phases.append((lambda: optimizer.first_step(zero_grad=True), loop.first_step))
            self.phases.append((lambda: optimizer.second_step(zero_grad=True), loop.second_step))
        else:
            self.phases.append((lambda: (optimizer.step(), optimizer.zero_grad()), None))

    def backward(self, x: Tensor, y: Tensor, on_twin: bool = False) -> float:
        """Compute gradients on one model, give the other a copy; milliseconds of the former."""
        source, target = (self.twin, self.model) if on_twin else (self.model, self.twin)
        spent = clock(lambda: F.cross_entropy(source(x), y).backward())
        for p, q in zip(source.parameters(), target.parameters(), strict=True):
            q.grad = p.grad.clone() if p.grad is not None else None
        return spent

    def check(self, x: Tensor, y: Tensor) -> str:
        """Two steps (momentum acts from the second on) must end at the loop's weights.

        Compared after every phase: the largest difference as a fraction of the largest change of any weight. The bound leaves room for
        rounding: weights are about 0.1 with a spacing of 1e-8, changes about 1e-3.
        """
        if not self.method.two_passes:
            return ""
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
        return f"matches the plain loop: largest difference {worst:.1e} of the step"

    def step(self, x: Tensor, y: Tensor, ids: Tensor, turn: int) -> None:
        """Who goes first, and whose weights the backward pass left in cache, alternate independently."""
        whole = ours_ms = loop_ms = 0.0
        for ours, loop in self.phases:
            whole += self.backward(x, y, on_twin=loop is not None and turn % 4 >= 2)
            jobs = [ours, loop or (lambda: None)]
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            spent = {k: clock(jobs[k]) for k in order}
            ours_ms, loop_ms = ours_ms + spent[0], loop_ms + spent[1]
        self.step_ms.append(whole + ours_ms)
        self.ours_ms.append(ours_ms)
        if self.method.two_passes:
            self.loop_ms.append(loop_ms)


class WholeWatch(Stopwatch):
    """A step from the losses to the new weights."""

    def __init__(self, method: Method, model: nn.Module, backend: str | None, samples: int) -> None:
        super().__init__(method)
        self.model, self.optimizer = model, method.build(model, backend, samples)

    def check(self, x: Tensor, y: Tensor) -> str:
        """The exact norms of a first step must be those of autograd, one sample at a time."""
        if not self.method.measures_norms:
            return ""
        expected = torch.stack([self._norm(x[i : i + 1], y[i : i + 1]) for i in range(len(y))])
        self.method.step(self.optimizer, self.model, x, y, torch.arange(len(y)))
        worst = (self.optimizer.sample_norms / expected - 1).abs().max().item()
        if not worst < 1e-4:
            raise RuntimeError(f"{self.method.name}: norms differ by {worst:.1e} from those of single samples; not timing it")
        return f"matches autograd on single samples: largest difference {worst:.1e} of a norm"

    def _norm(self, x: Tensor, y: Tensor) -> Tensor:
        grads = torch.autograd.grad(F.cross_entropy(self.model(x), y), list(self.model.parameters()))
        return torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()

    def step(self, x: Tensor, y: Tensor, ids: Tensor, turn: int) -> None:
        self.step_ms.append(clock(lambda: self.method.step(self.optimizer, self.model, x, y, ids)))


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def time_methods(
    methods: Sequence[Method], model: nn.Module, x: Tensor, y: Tensor, batch: int, rounds: int, backend: str | None
) -> list[Stopwatch]:
    """Time all methods on copies of the model, in turns, so that whatever else the machine does falls on all of them alike."""
    generator = torch.Generator().manual_seed(0)
    watches: list[Stopwatch] = [
        WholeWatch(method, copy.deepcopy(model), backend, len(x)) if method.of_losses else PhaseWatch(method, copy.deepcopy(model), backend)
        for method in methods
    ]
    width = max(len(method.name) for method in methods)
    for watch in watches:
        if found := watch.check(x[:batch], y[:batch]):
            print(f"  {watch.method.name:<{width}}  {found}", flush=True)
    epoch = -(-len(x) // batch) if any(method.of_losses for method in methods) else 0
    for turn in tqdm(range(epoch + rounds), desc="timing", unit="round", leave=False, disable=None):
        index = torch.randperm(len(x), generator=generator)[:batch]
        for watch in watches:
            watch.step(x[index], y[index], index, turn)
        if turn + 1 == epoch:
            for watch in watches:
                watch.forget()
    return watches
