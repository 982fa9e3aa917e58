"""Providers: who takes a sharpness-aware step: ``provider.build(params, method, variant)`` is a ``sam_kernels.profiling.steps.Step``.

A provider may have several variants, its keyword arguments; the benchmark times them all for a moment and keeps the fastest on the
machine at hand, so every peer shows its best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import peers
import torch
from torch.nn import Parameter

from sam_kernels.profiling.methods import VARIANTS, Method
from sam_kernels.profiling.steps import Ours, Step


@dataclass(frozen=True, eq=False)
class Provider:
    name: str
    steps: Callable[..., Step]
    variants: tuple[dict[str, Any], ...] = ({},)
    methods: tuple[str, ...] = VARIANTS
    package: str = "torch"

    @property
    def is_ours(self) -> bool:
        return self.steps is Ours

    def takes(self, method: Method) -> bool:
        return method.variant in self.methods and find_spec(self.package) is not None

    def state_dtype(self, method: Method) -> torch.dtype:
        """Of the base's state: ours keeps it in fp32 where the parameters are narrower, torch's optimizers keep the parameters'."""
        return torch.float32 if self.is_ours else method.dtype

    def usable(self, method: Method, device: str) -> list[dict[str, Any]]:
        return [v for v in self.variants if not v.get("fused") or peers.fused_works(method, device)]

    def build(self, params: Sequence[Parameter], method: Method, variant: dict[str, Any]) -> Step:
        return self.steps(params, method, **variant)


def ours(backend: str) -> Provider:
    return Provider(f"sam_kernels {backend}", Ours, ({"backend": backend},))


def _product(**options: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(options, values, strict=True)) for values in product(*options.values()))


_FUSED = (True, False)
PEERS = (
    Provider("per-tensor loop", peers.PerTensorLoop, _product(fused=_FUSED)),
    Provider("add, subtract", peers.AddSubtract, _product(fused=_FUSED), methods=("sam",)),
    Provider(
        "pytorch_optimizer 4.1.0",
        peers.PytorchOptimizer,
        _product(foreach=(True, None), fused=_FUSED),
        methods=("sam", "asam"),
        package="pytorch_optimizer",
    ),
    Provider("_foreach_ + fused base", peers.ForeachFused, _product(radius=("host", "device"), fused=_FUSED)),
)
