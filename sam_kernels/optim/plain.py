"""Base optimizers that torch does not have: Lion, and AMSGrad as AdaSAM needs it. Usable alone; inside ``SAM`` they are fused."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops import descend_


class _Plain(Optimizer):
    """An optimizer whose step is ``descend_`` without a stash. State is fp32 where parameters are bf16 or fp16."""

    _base: str
    _state: dict[str, str]  # list of descend_ -> key of the state

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what ``closure`` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            kinds: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    kinds.setdefault((p.device, p.dtype), []).append(p)
            for params in kinds.values():
                self._update(params, self._options(group))
        return loss

    def _update(self, params: list[Tensor], options: dict[str, Any]) -> None:
        entries: list[dict[str, Any]] = [self.state[p] for p in params]
        for p, entry in zip(params, entries, strict=True):
            if not entry:
                dtype = torch.promote_types(p.dtype, torch.float32)
                entry.update({key: torch.zeros_like(p, dtype=dtype, requires_grad=False) for key in self._state.values()})
                entry["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        steps = torch.stack([entry["step"].to(p.device) for p, entry in zip(params, entries, strict=True)])
        state: dict[str, Any] = {name: [entry[key] for entry in entries] for name, key in self._state.items()}
        grads = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p in params if (g := p.grad) is not None]
        descend_(params, grads, base=self._base, steps=steps, **{**state, **options})
        for entry, count in zip(entries, steps.unbind(), strict=True):
            entry["step"].copy_(count)


class Lion(_Plain):
    """Lion (arXiv 2302.06675): ``w -= lr (weight_decay w + sign(beta1 m + (1 - beta1) g))``, ``m = beta2 m + (1 - beta2) g``."""

    _base, _state = "lion", {"m": "exp_avg"}

    def __init__(self, params: Iterable[Any], lr: float | Tensor = 1e-4, betas: tuple[float, float] = (0.9, 0.99),
                 weight_decay: float = 0.0, *, maximize: bool = False) -> None:  # fmt: skip
        _check(lr=lr, weight_decay=weight_decay, betas=betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2, **{k: group[k] for k in ("weight_decay", "maximize")}}


class AMSGrad(_Plain):
    """AMSGrad as in the theory (arXiv 1904.09237) and in AdaSAM (2303.00565): no bias correction, eps 0, the maximum of the second
    moment starting from ``initial_v``; each of them may be chosen otherwise. Update: ``w -= lr m / (sqrt(v_max) + eps)``."""

    _base, _state = "adam", {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"}

    def __init__(self, params: Iterable[Any], lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 0.0,
                 weight_decay: float = 0.0, *, initial_v: float = 1e-16, bias_correction: bool = False,
                 decoupled_weight_decay: bool = False, maximize: bool = False) -> None:  # fmt: skip
        _check(lr=lr, weight_decay=weight_decay, eps=eps, initial_v=initial_v, betas=betas)
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "initial_v": initial_v, "bias_correction": bias_correction,
            "decoupled_weight_decay": decoupled_weight_decay, "amsgrad": True, "maximize": maximize,
        })  # fmt: skip

    def _options(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        names = ("eps", "weight_decay", "initial_v", "bias_correction", "amsgrad", "maximize")
        return {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2, "decoupled": group["decoupled_weight_decay"],
                **{k: group[k] for k in names}}  # fmt: skip


def _check(betas: tuple[float, float], **values: float | Tensor) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas}; expected two numbers in [0, 1)")
    for name, value in values.items():
        if not 0 <= float(value) < float("inf"):
            raise ValueError(f"{name} is {value}; expected a finite number >= 0")
