"""Providers: who takes a sharpness-aware step, behind one interface.

    step = provider.build(params, method, variant)
    step.load(g); step.first()        set the gradients at w, perturb: w + e
    step.load(h); step.second()       set the gradients at w + e, restore, rescale (Stable SAM), base update

Methods: ``sam``, ``asam`` (eta 0), ``stable_sam``; base SGD with lr 0.1, momentum 0.9, weight decay 5e-4. A provider may have several
variants; the benchmark times them all for a moment and keeps the fastest on the machine at hand, so every peer shows its best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

METHODS = ("sam", "asam", "stable_sam")
BASE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
RHO = {"sam": 0.05, "asam": 0.5, "stable_sam": 0.05}
EPS = 1e-12


class Step:
    """One provider at work on one list of parameters. ``optimizer`` holds the momentum buffers as torch.optim.SGD does."""

    optimizer: torch.optim.Optimizer

    def __init__(self, params: Sequence[Parameter], method: str) -> None:
        self.params, self.method = list(params), method
        self.adaptive, self.stable, self.rho = method == "asam", method == "stable_sam", RHO[method]

    def load(self, grads: Sequence[Tensor]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def first(self) -> None:
        raise NotImplementedError

    def second(self) -> None:
        raise NotImplementedError

    def momentum(self) -> list[Tensor]:
        return [self.optimizer.state[p]["momentum_buffer"] for p in self.params]


class Ours(Step):
    """sam_kernels.optim by backend name."""

    def __init__(self, params: Sequence[Parameter], method: str, backend: str) -> None:
        from sam_kernels import optim

        super().__init__(params, method)
        preset = {"sam": optim.SAM, "asam": optim.ASAM, "stable_sam": optim.StableSAM}[method]
        eta = {"eta": 0.0} if self.adaptive else {}
        self.optimizer = preset(self.params, torch.optim.SGD, rho=self.rho, backend=backend, **eta, **BASE)

    def first(self) -> None:
        self.optimizer.first_step()

    def second(self) -> None:
        self.optimizer.second_step()


class PerTensorLoop(Step):
    """The operations of the wrapper most people use, one tensor at a time: a norm of norms, clone and add, restore by swapping
    ``.data``, then torch.optim.SGD as it comes. Where there is no scale per element it multiplies by 1.0, as that wrapper does."""

    def __init__(self, params: Sequence[Parameter], method: str) -> None:
        super().__init__(params, method)
        self.optimizer = torch.optim.SGD(self.params, **BASE)
        self.clean: list[Tensor] = []

    def norm(self, adaptive: bool) -> Tensor:
        return torch.stack([((p.abs() if adaptive else 1.0) * p.grad).norm() for p in self.params]).norm()

    @torch.no_grad()
    def first(self) -> None:
        self.ascent_norm = self.norm(self.adaptive)
        scale = self.rho / (self.ascent_norm + EPS)
        for p in self.params:
            self.clean.append(p.data.clone())
            p.add_((p.square() if self.adaptive else 1.0) * p.grad * scale)

    @torch.no_grad()
    def second(self) -> None:
        for p, clean in zip(self.params, self.clean, strict=True):
            p.data = clean
        self.clean.clear()
        if self.stable:
            factor = self.ascent_norm / (self.norm(adaptive=False) + EPS)
            for p in self.params:
                p.grad.mul_(factor)
        self.optimizer.step()


class ForeachFused(Step):
    """What a careful user writes with torch alone: ``_foreach_`` operations, a persistent stash, torch.optim.SGD(fused=True), and
    Stable SAM's factor handed to the fused update as its gradient scale. The radius is a device scalar, or read by the host."""

    def __init__(self, params: Sequence[Parameter], method: str, radius: str) -> None:
        super().__init__(params, method)
        self.optimizer = torch.optim.SGD(self.params, fused=True, **BASE)
        self.stash = [torch.empty_like(p) for p in self.params]
        self.on_host = radius == "host"
        self.zero = torch.zeros((), device=self.params[0].device)

    @torch.no_grad()
    def first(self) -> None:
        grads = [p.grad for p in self.params]
        scaled = torch._foreach_mul(self.params, grads) if self.adaptive else None
        self.ascent_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled or grads)))
        scale = self.rho / (self.ascent_norm + EPS)
        torch._foreach_copy_(self.stash, self.params)
        if self.on_host:
            if scaled is None:
                torch._foreach_add_(self.params, grads, alpha=scale.item())
            else:
                torch._foreach_addcmul_(self.params, scaled, self.stash, value=scale.item())
        elif scaled is None:
            torch._foreach_add_(self.params, torch._foreach_mul(grads, scale))
        else:
            torch._foreach_mul_(scaled, scale)
            torch._foreach_addcmul_(self.params, scaled, self.stash)

    @torch.no_grad()
    def second(self) -> None:
        torch._foreach_copy_(self.params, self.stash)
        if self.stable:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([p.grad for p in self.params])))
            self.optimizer.grad_scale, self.optimizer.found_inf = (norm + EPS) / self.ascent_norm, self.zero
        self.optimizer.step()


class _FusedInside(torch.optim.SGD):
    """SGD that stays fused inside a wrapper whose ``foreach=True`` would otherwise reach it through the shared parameter groups."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            group.update(foreach=False, fused=True)
        loss = super().step(closure)
        for group in self.param_groups:
            group.update(foreach=True)
        return loss


class PytorchOptimizer(Step):
    """``pytorch_optimizer.SAM``, the fastest package on PyPI that was found."""

    def __init__(self, params: Sequence[Parameter], method: str, foreach: bool | None, fused: bool) -> None:
        from pytorch_optimizer import SAM

        super().__init__(params, method)
        base = _FusedInside if foreach and fused else torch.optim.SGD
        flags = {"fused": True} if fused and not foreach else {}
        self.optimizer = SAM(self.params, base, rho=self.rho, adaptive=self.adaptive, foreach=foreach, **flags, **BASE)

    def first(self) -> None:
        self.optimizer.first_step()

    def second(self) -> None:
        self.optimizer.second_step()


@dataclass(frozen=True)
class Provider:
    name: str
    steps: Callable[..., Step]
    variants: tuple[dict[str, Any], ...] = ({},)
    methods: tuple[str, ...] = METHODS
    package: str = "torch"

    @property
    def is_ours(self) -> bool:
        return self.steps is Ours

    @property
    def missing(self) -> bool:
        return find_spec(self.package) is None

    def build(self, params: Sequence[Parameter], method: str, variant: dict[str, Any]) -> Step:
        return self.steps(params, method, **variant)


def ours(backend: str) -> Provider:
    return Provider(f"sam_kernels {backend}", Ours, ({"backend": backend},))


PEERS = (
    Provider("per-tensor loop", PerTensorLoop),
    Provider(
        "pytorch_optimizer 4.1.0",
        PytorchOptimizer,
        tuple({"foreach": foreach, "fused": fused} for foreach in (True, None) for fused in (True, False)),
        methods=("sam", "asam"),
        package="pytorch_optimizer",
    ),
    Provider("_foreach_ + fused SGD", ForeachFused, ({"radius": "host"}, {"radius": "device"})),
)
