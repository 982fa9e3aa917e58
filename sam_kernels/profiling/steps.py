"""Whole steps at work: the interface that the command and ``bench/`` share, ours behind it, and what a match compares.

step.load(g); step.first()        set the gradients at w, perturb: w + e
step.load(h); step.second()       set the gradients at w + e, restore, rescale (Stable SAM), base update
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import optim
from .methods import BASES, RADIUS, STATE, Method
from .workloads import Shape, elements, tensors

COMPARED = 1 << 20  # elements per result, about
WEIGHT, GRADIENT, SECOND = 0.05, 0.1, 0.2  # standard deviations: perturbation and update are then of the weights' size
Results = tuple[list[Tensor], ...]  # thinned


class Step:
    """One provider at work on one list of parameters. ``optimizer`` holds the base's state as torch's own does."""

    optimizer: torch.optim.Optimizer

    def __init__(self, params: Sequence[Parameter], method: Method) -> None:
        self.params, self.method = list(params), method
        self.rho = RADIUS[method.variant] * sum(p.numel() for p in self.params) ** 0.5

    def load(self, grads: Sequence[Tensor]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def first(self) -> None:
        raise NotImplementedError

    def second(self) -> None:
        raise NotImplementedError

    def state(self) -> list[list[Tensor]]:
        return [[self.optimizer.state[p][key] for p in self.params] for key in STATE[self.method.base]]


class Ours(Step):
    """sam_kernels.optim by backend name."""

    optimizer: optim.SAM

    def __init__(self, params: Sequence[Parameter], method: Method, backend: str) -> None:
        super().__init__(params, method)
        preset = {"sam": optim.SAM, "asam": optim.ASAM, "stable_sam": optim.StableSAM}[method.variant]
        base, options = BASES[method.base]
        eta = {"eta": 0.0} if method.adaptive else {}
        self.optimizer = preset(self.params, base, rho=self.rho, backend=backend, **eta, **options)

    def first(self) -> None:
        self.optimizer.first_step()

    def second(self) -> None:
        self.optimizer.second_step()


def results_of(method: Method) -> tuple[str, ...]:
    return ("first perturbed weights", "last perturbed weights", "weights", *STATE[method.base])


def steps_of(shapes: Sequence[Shape]) -> int:
    return 2 if elements(shapes) < 50e6 else 1  # the reference in fp64 takes seconds per step there


def parameters(shapes: Sequence[Shape], method: Method, device: str, dtype: torch.dtype | None = None) -> list[Parameter]:
    return [Parameter(x) for x in tensors(shapes, 0, WEIGHT, device, method.dtype, dtype or method.dtype)]


def gradients(
    shapes: Sequence[Shape], method: Method, step: int, device: str, dtype: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Those of both phases. Lion gets the same in every step: where its momentum and a gradient cancel, a rounding decides about a sign."""
    step = 0 if method.base == "lion" else step
    g, h = ((2 * step + 1, GRADIENT), (2 * step + 2, SECOND))
    dtype = dtype or method.dtype
    return tensors(shapes, *g, device, method.dtype, dtype), tensors(shapes, *h, device, method.dtype, dtype)


def thinned(values: Sequence[Tensor]) -> list[Tensor]:
    """In one tensor; of a large list every k-th element and the end of every tensor."""
    stride = (1 + sum(x.numel() for x in values) // COMPARED) | 1  # odd
    flat = [x.detach().reshape(-1) for x in values]
    return [torch.cat([part for x in flat for part in ((x[::stride], x[-8:]) if stride > 1 else (x,))])]


def trajectory(
    build: Callable[[list[Parameter]], Step], shapes: Sequence[Shape], method: Method, device: str, dtype: torch.dtype | None = None,
    stored: torch.dtype | None = None,
) -> Results:  # fmt: skip
    """The results after the steps, computed in ``dtype``; the weights are rounded to ``stored`` at the end of every step."""
    step = build(parameters(shapes, method, device, dtype))
    perturbed = []
    for k in range(steps_of(shapes)):
        g, h = gradients(shapes, method, k, device, dtype)
        step.load(g)
        step.first()
        perturbed.append(thinned(step.params))
        step.load(h)
        step.second()
        for p in step.params if stored else ():
            p.data.copy_(p.data.to(stored))
    return perturbed[0], perturbed[-1], thinned(step.params), *map(thinned, step.state())
