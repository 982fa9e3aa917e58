"""What a captured step takes for granted, because the host has decided by it: checked before every replay."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from .sam import SAM

RULES = ("max_norm", "normalize", "perturb_eps", "batch", "ascent", "descent", "schedule", "model", "backend")
_AGAIN = "the graph would go on as before: capture again"


class Fixed:
    """The optimizer's rules, parameters and state; mode, parameters and buffers of ``modules``."""

    def __init__(self, optimizer: SAM, modules: Iterable[nn.Module]) -> None:
        self._optimizer, self._modules = optimizer, list(modules)
        self._rules = [getattr(optimizer, name) for name in RULES]
        self._trained = [p.requires_grad for p in optimizer.members()]
        self._buckets = optimizer._get_buckets()
        self._state = [dict(bucket.state.buffers) for bucket in self._buckets]
        self._modes = [module.training for module in self._modules]
        places: list[tuple[dict[str, Any], str]] = [
            (owned, name) for m in self._modules for owned in (m._parameters, m._buffers) for name in owned
        ]
        self._owned, self._names = [owned for owned, _ in places], [name for _, name in places]
        self._tensors = list(map(dict.get, self._owned, self._names))
        members = set(map(id, optimizer.members()))
        self._others = [x for x in self._tensors if isinstance(x, Tensor) and id(x) not in members]
        self._addresses = list(map(Tensor.data_ptr, self._others))

    def check(self) -> None:
        """Raise RuntimeError where something is not as it was; take over what has been put into ``optimizer.state``."""
        optimizer = self._optimizer
        for name, then in zip(RULES, self._rules, strict=True):
            if (now := getattr(optimizer, name)) is not then and now != then:
                raise RuntimeError(f"{name} of the optimizer is {now!r}, and was {then!r} when the step was captured; {_AGAIN}")
        if self._trained != [p.requires_grad for p in optimizer.members()]:
            raise RuntimeError(f"requires_grad of a parameter is not what it was when the step was captured; {_AGAIN}")
        for module, then in zip(self._modules, self._modes, strict=True):
            if module.training is not then:
                modes = [("training" if mode else "evaluation") for mode in (module.training, then)]
                raise RuntimeError(f"a {type(module).__name__} is in {modes[0]} mode, and was captured in {modes[1]} mode; {_AGAIN}")
        if not all(map(is_, map(dict.get, self._owned, self._names), self._tensors)) or self._addresses != list(
            map(Tensor.data_ptr, self._others)
        ):
            raise RuntimeError(f"a buffer or a frozen parameter of the model was replaced since the step was captured; {_AGAIN}")
        if not self._same_state():
            raise RuntimeError(
                "the optimizer's parameters were moved or its groups edited, or a checkpoint was loaded, since the step was captured; "
                "the graph would write to what it was before: capture again"
            )

    def _same_state(self) -> bool:
        optimizer = self._optimizer
        if optimizer._buckets is not self._buckets or not optimizer._same_members() or any(b.moved() for b in self._buckets):
            return False
        for bucket in self._buckets:
            bucket.state.follow(optimizer.state)
        return all(
            bucket.state.buffers.keys() == held.keys() and all(bucket.state.buffers[name] is row for name, row in held.items())
            for bucket, held in zip(self._buckets, self._state, strict=True)
        )
