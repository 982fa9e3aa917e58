"""The peers: what users have today, each with the base optimizer of torch in its fused or foreach form."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sam_kernels.profiling.methods import BASES, Method
from sam_kernels.profiling.steps import Step

EPS = 1e-12


def torch_base(params: Sequence[Parameter], method: Method, fused: bool) -> torch.optim.Optimizer:
    cls, options = BASES[method.base]
    return cls(params, **options, **({"fused": True} if fused else {"foreach": True}))


@cache
def fused_works(method: Method, device: str) -> bool:
    """torch 2.13's fused SGD leaves most of a bf16 tensor as it was on CPU (pytorch/pytorch issue 191763): such a base is no peer."""
    p = Parameter(torch.ones(64, dtype=method.dtype, device=device))
    p.grad = torch.ones_like(p)
    torch_base([p], method, fused=True).step()
    return bool((p < 1).all())


class PerTensorLoop(Step):
    """The operations of the wrapper most people use, one tensor at a time: a norm of norms, clone and add, restore by swapping
    ``.data``, then the base. Where there is no scale per element it multiplies by 1.0, as that wrapper does."""

    def __init__(self, params: Sequence[Parameter], method: Method, fused: bool) -> None:
        super().__init__(params, method)
        self.optimizer = torch_base(self.params, method, fused)
        self.clean: list[Tensor] = []

    def norm(self, adaptive: bool) -> Tensor:
        return torch.stack([((p.abs() if adaptive else 1.0) * p.grad).norm() for p in self.params]).norm()

    @torch.no_grad()
    def first(self) -> None:
        self.ascent_norm = self.norm(self.method.adaptive)
        scale = self.rho / (self.ascent_norm + EPS)
        for p in self.params:
            self.clean.append(p.data.clone())
            p.add_((p.square() if self.method.adaptive else 1.0) * p.grad * scale)

    @torch.no_grad()
    def second(self) -> None:
        for p, clean in zip(self.params, self.clean, strict=True):
            p.data = clean
        self.clean.clear()
        if self.method.stable:
            factor = self.ascent_norm / (self.norm(adaptive=False) + EPS)
            for p in self.params:
                p.grad.mul_(factor)
        self.optimizer.step()


class AddSubtract(Step):
    """The least traffic of all known: keep the perturbation, add it, subtract it again, per tensor. The restore is not exact."""

    def __init__(self, params: Sequence[Parameter], method: Method, fused: bool) -> None:
        super().__init__(params, method)
        self.optimizer = torch_base(self.params, method, fused)
        self.added: list[Tensor] = []

    @torch.no_grad()
    def first(self) -> None:
        norm = torch.stack([torch.linalg.vector_norm(p.grad) for p in self.params]).norm()
        scale = self.rho / (norm + EPS)
        self.added = [p.grad * scale for p in self.params]
        for p, e in zip(self.params, self.added, strict=True):
            p.add_(e)

    @torch.no_grad()
    def second(self) -> None:
        for p, e in zip(self.params, self.added, strict=True):
            p.sub_(e)
        self.added = []
        self.optimizer.step()


class ForeachFused(Step):
    """What a careful user writes with torch alone: ``_foreach_`` operations, norms in fp32, a persistent stash, a fused base, and
    Stable SAM's factor handed to it as its gradient scale. The radius is a device scalar, or read by the host."""

    def __init__(self, params: Sequence[Parameter], method: Method, radius: str, fused: bool) -> None:
        super().__init__(params, method)
        self.optimizer, self.fused = torch_base(self.params, method, fused), fused
        self.stash = [torch.empty_like(p) for p in self.params]
        self.on_host = radius == "host"
        self.zero = torch.zeros((), device=self.params[0].device)

    @staticmethod
    def norm(values: Sequence[Tensor]) -> Tensor:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values, dtype=torch.float32)))

    @torch.no_grad()
    def first(self) -> None:
        grads = [p.grad for p in self.params]
        scaled = torch._foreach_mul(self.params, grads) if self.method.adaptive else None
        self.ascent_norm = self.norm(scaled or grads)
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
        if self.method.stable:
            grads = [p.grad for p in self.params]
            norm = self.norm(grads)
            if self.fused:
                self.optimizer.grad_scale, self.optimizer.found_inf = (norm + EPS) / self.ascent_norm, self.zero
            else:
                torch._foreach_mul_(grads, self.ascent_norm / (norm + EPS))
        self.optimizer.step()


@cache
def fused_inside(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A base that stays fused in a wrapper whose ``foreach=True`` would otherwise reach it through the shared parameter groups."""

    class FusedInside(base):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            for group in self.param_groups:
                group.update(foreach=False, fused=True)
            loss = super().step(closure)
            for group in self.param_groups:
                group.update(foreach=True)
            return loss

    return FusedInside


class PytorchOptimizer(Step):
    """``pytorch_optimizer.SAM``, the fastest package on PyPI that was found."""

    def __init__(self, params: Sequence[Parameter], method: Method, foreach: bool | None, fused: bool) -> None:
        from pytorch_optimizer import SAM

        super().__init__(params, method)
        base, options = BASES[method.base]
        base = fused_inside(base) if foreach and fused else base
        flags = {"fused": True} if fused and not foreach else {}
        self.optimizer = SAM(self.params, base, rho=self.rho, adaptive=method.adaptive, foreach=foreach, **flags, **options)

    def first(self) -> None:
        self.optimizer.first_step()

    def second(self) -> None:
        self.optimizer.second_step()
