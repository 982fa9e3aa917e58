"""What is watched while a model runs: one sink for every call of a layer, and whether all gradients came by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .embedding import Embedding
from .intercept import Call
from .layers import Instrumented, Layer
from .linear import Linear
from .tied import TiedLinear

REDUCTIONS = ("mean", "sum")


@dataclass
class Use:
    """One call of one layer."""

    layer: Layer
    name: str
    weight: Tensor | None  # the parameter, where it is trainable
    bias: Tensor | None
    sink: Tensor
    keeper: Tensor | None
    x: Tensor  # where the weighted form needs it, and the ids of an embedding
    version: int

    def require_unmodified(self, what: str) -> None:
        if self.x._version != self.version:
            raise RuntimeError(f"{self.name}: its input was modified in place after the forward; {what} needs it as it was")


class Watch:
    """The calls of one forward."""

    def __init__(
        self, model: nn.Module, batch_size: int, weighted: bool, reduction: str, scale: float | Tensor | None,
        per_layer: bool, method: str | None, backend: str | None,
    ) -> None:  # fmt: skip
        self.batch_size, self.weighted, self.backend, self._per_layer, self._method = batch_size, weighted, backend, per_layer, method
        self._params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = {id(p): name for name, p in self._params.items()}
        self._before = self._gradients_now()
        self._uses: list[Use] = []
        self._used: set[int] = set()
        self._factor, self._scale = _scale_of(reduction, scale, batch_size)  # a number, and a tensor besides where one is given
        self._after: dict[str, tuple[int, int] | None] | None = None  # state of .grad when the context was left, backward done

    def _run(self, call: Call) -> Tensor:
        watched = [p if p is not None and id(p) in self._names else None for p in (call.weight, call.bias)]
        name = self._name_of(watched)
        for p, mine in zip((call.weight, call.bias), watched, strict=True):
            if mine is None and p is not None and p.requires_grad:
                raise NotImplementedError(f"{name}: beside a trainable parameter it takes a weight that is computed; freeze one of them")
        embedding = self._embedding_of(watched[0]) if call.ties else None
        self._check_single_use(watched, embedding)
        x, weight, bias = call.operands(detached=self.weighted)
        try:
            counts = (watched[0] is not None, watched[1] is not None)
            layer = call.make(x, weight, (self.batch_size, *counts, self.backend, self.weighted, self._method))
            if embedding is not None:
                assert isinstance(layer, Linear) and isinstance(embedding.layer, Embedding)
                layer = TiedLinear.to(embedding.layer, embedding.x, layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        sink = torch.zeros(self.batch_size, dtype=layer.wide(x, weight), device=x.device, requires_grad=True)
        may_tie = isinstance(layer, Embedding | TiedLinear)
        keeper = layer.keeper(x, weight) if self.weighted or may_tie else None
        kept = x.detach() if (self.weighted and layer.uses_x) or isinstance(layer, Embedding) else x.new_empty(0)
        self._uses.append(Use(layer, name, watched[0], watched[1], sink, keeper, kept, kept._version))
        y: Tensor = Instrumented.apply(layer, x, weight, bias, sink, keeper)
        return y

    def _name_of(self, watched: list[Tensor | None]) -> str:
        name = next(self._names[id(p)] for p in watched if p is not None)
        return name.rpartition(".")[0] or "model"

    def _embedding_of(self, weight: Tensor | None) -> Use | None:
        """The call of an embedding that has looked up in ``weight``."""
        found = [use for use in self._uses if use.weight is weight and isinstance(use.layer, Embedding)]
        return found[-1] if found and weight is not None else None

    def _check_single_use(self, watched: list[Tensor | None], tied: Use | None) -> None:
        """Inside of a backward a checkpoint runs its forward again; which of the two counts is known once the sinks are."""
        if torch._C._current_graph_task_id() != -1:
            return
        own = [id(p) for p in watched if p is not None]
        if tied is not None and sum(use.weight is tied.weight for use in self._uses) == 1:
            own.remove(id(tied.weight))
        if again := [self._names[key] for key in own if key in self._used]:
            raise NotImplementedError(_TWICE.format(again[0]))
        self._used.update(own)

    # ---- after the backward

    def _reached(self) -> list[Use]:
        """The calls whose sink has a gradient, once it is certain that no other gradient went by."""
        uses = [use for use in self._uses if use.sink.grad is not None]
        if not uses:
            why = (
                "call backward() on the loss first" if self._uses else "no layer with trainable parameters was called inside of the context"
            )
            raise RuntimeError(f"there are no per-sample norms yet: {why}")
        seen: set[int] = set()
        tied = {id(use.weight) for use in uses if isinstance(use.layer, TiedLinear)}
        for use in uses:
            for p in (use.weight, use.bias):
                if p is not None and id(p) in seen and not (id(p) in tied and _one_of_each(uses, p)):
                    raise NotImplementedError(_TWICE.format(self._names[id(p)]))
                seen.add(id(p))
        after = self._after or self._gradients_now()
        for name, p in self._params.items():
            if (self.weighted or id(p) not in seen) and after[name] is not None and after[name] != self._before[name]:
                raise RuntimeError(
                    f"{name} received a gradient that no layer reported (a compiled or scripted part of the model, a custom function, or "
                    "a forward that a checkpoint ran again outside of the context); run forward and backward eagerly inside of the context"
                )
        self._after = after  # what happens to .grad from now on is no concern of these norms
        return uses

    def _gradients_now(self) -> dict[str, tuple[int, int] | None]:
        return {name: None if p.grad is None else (id(p.grad), p.grad._version) for name, p in self._params.items()}

    def close(self) -> None:
        """Remember what the backward has written, if there was one."""
        if any(use.sink.grad is not None for use in self._uses):
            self._after = self._after or self._gradients_now()

    def _scaled(self, x: Tensor, power: int) -> Tensor:
        """Numbers stay on the host: a copy to a GPU would wait for it."""
        x = x * self._factor**power
        return x if self._scale is None else x * self._scale.to(x.device, x.dtype) ** power


def _one_of_each(uses: list[Use], weight: Tensor) -> bool:
    """Whether ``weight`` belongs to one embedding and to one linear layer that is tied to it."""
    kinds = [type(use.layer) for use in uses if use.weight is weight or use.bias is weight]
    return sorted(kinds, key=str) == [Embedding, TiedLinear]


def products(uses: list[Use]) -> list[tuple[str, Tensor]]:
    """Name and twice the products of the gradients of every tied pair."""
    tables = {use.weight: use for use in uses if isinstance(use.layer, Embedding)}
    found = []
    for use in uses:
        if isinstance(use.layer, TiedLinear) and use.weight in tables and use.keeper is not None:
            table = tables[use.weight]
            assert table.keeper is not None
            for x in (use, table):
                x.require_unmodified("the norm of a tied weight")
            found.append((use.name, 2 * use.layer.product(grad_of(use.keeper), use.x, grad_of(table.keeper))))
    return found


_TWICE = (
    "{} is used by two calls in one forward, and the norm of the sum of two gradients needs their product, which is known for an embedding "
    "with a linear layer behind it alone; untie the weights, or take one context per forward"
)


def grad_of(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad.detach()


def _scale_of(reduction: str, scale: float | Tensor | None, batch_size: int) -> tuple[float, Tensor | None]:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; expected one of {REDUCTIONS}: how the loss is made of the samples' losses")
    factor = float(batch_size) if reduction == "mean" else 1.0
    if isinstance(scale, Tensor) and scale.shape not in ((), (1,), (batch_size,)):
        raise ValueError(f"scale has shape {tuple(scale.shape)}; expected [] or [{batch_size}]")
    return (factor, scale.detach()) if isinstance(scale, Tensor) else (factor * (1.0 if scale is None else float(scale)), None)
