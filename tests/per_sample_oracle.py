"""The oracle of the per-sample tests, one sample at a time through plain autograd in fp64, and the check against it on every backend."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import GPU_PLACES, require_ops
from torch import Tensor, nn

from sam_kernels.per_sample import GradNorms, grad_norms

B = 3
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}  # of squared norms, each relative to itself
Grads = dict[str, Tensor]  # parameter -> [B, *shape], one gradient per sample
Loss = Callable[[Tensor], Tensor]  # output of the model -> [B]
Place = tuple[str | None, str]

_CPU: list[Place] = [(None, "cpu"), ("reference", "cpu"), ("cpp", "cpu")]
_GPU: list[Any] = [
    pytest.param(place, id="-".join(map(str, place)), marks=pytest.mark.gpu)
    for place in [(None, "cuda"), *GPU_PLACES]
    if torch.cuda.is_available()
]
everywhere = pytest.mark.parametrize("place", [pytest.param(place, id=str(place[0])) for place in _CPU] + _GPU)
"""Not with Triton's interpreter, which is too slow for more than a handful of cases."""
tiny = pytest.mark.parametrize("place", [pytest.param(place, id=str(place[0])) for place in [*_CPU, ("triton", "cpu")]] + _GPU)

_OP_OF = {
    "Linear": "linear_grad_norms", "Conv": "conv_grad_norms", "Embedding": "embedding_grad_norms", "Norm": "normalization_grads",
}  # fmt: skip


def on(place: Place, model: nn.Module) -> str | None:
    """Moves ``model`` to the place's device and returns the backend; skips where it lacks an op that the model needs."""
    backend, device = place
    dtype = next(model.parameters()).dtype
    kinds = {kind for m in model.modules() for kind in _OP_OF if kind in type(m).__name__}
    if backend is not None:
        require_ops(backend, device, sorted(_OP_OF[kind] for kind in kinds), dtype)
    model.to(device)
    return backend


# ---- the oracle


def losses(y: Tensor) -> Tensor:
    """``[B]``, with a gradient that differs in every entry, also for outputs that are normalized."""
    y = y.double().flatten(1)
    return (torch.sin(y) * torch.linspace(-1, 2, y.shape[1], dtype=y.dtype, device=y.device)).sum(1)


def token_losses(y: Tensor) -> Tensor:
    """``[B]``: mean cross-entropy over the positions of logits ``[B, T, V]``."""
    target = torch.arange(y.shape[1], device=y.device) * 7 % y.shape[2]
    return F.cross_entropy(y.double().mT, target.expand(len(y), -1), reduction="none").mean(1)


def _wide(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.double() if x.is_floating_point() else x


def _twin(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    twin = copy.deepcopy(model).cpu().double()
    for module in twin.modules():  # without checkpoints: reentrant ones do not work with autograd.grad
        if hasattr(module, "reentrant"):
            module.reentrant = None
    return twin, {name: p for name, p in twin.named_parameters() if p.requires_grad}


def _filled(grads: Sequence[Tensor | None], params: dict[str, Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, params.values(), strict=True)]


def oracle(model: nn.Module, x: Tensor, loss: Loss = losses) -> Grads:
    """Every sample alone: the gradient of its own loss."""
    twin, params = _twin(model)
    rows = [_filled(torch.autograd.grad(loss(twin(row)).sum(), [*params.values()], allow_unused=True), params) for row in _wide(x).split(1)]
    return {name: torch.stack(grads) for name, grads in zip(params, zip(*rows, strict=True), strict=True)}


def contributions(model: nn.Module, x: Tensor, loss: Loss = losses) -> Grads:
    """The batch at once: of the gradient of the summed loss, for every layer the part that passes through sample i's rows of its output.

    These parts sum to the batch gradient. With batch statistics they are not the gradients of the samples' own losses.
    """
    twin, params = _twin(model)
    outputs: dict[str, Tensor] = {}
    for name, module in twin.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            module.register_forward_hook(lambda _m, _x, y, name=name: outputs.update({name: y}))
    total = loss(twin(_wide(x))).sum()
    found = {}
    for (name, y), g in zip(outputs.items(), torch.autograd.grad(total, [*outputs.values()], retain_graph=True), strict=True):
        own = {k: p for k, p in params.items() if k.rpartition(".")[0] == name}
        masks = torch.eye(len(y), dtype=g.dtype).view(len(y), len(y), *[1] * (g.dim() - 1))
        rows = [torch.autograd.grad(y, [*own.values()], g * mask, retain_graph=True) for mask in masks]
        found.update({k: torch.stack(grads) for k, grads in zip(own, zip(*rows, strict=True), strict=True)})
    return found


def squares(grads: Grads) -> Tensor:
    return torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)


def combined(grads: Grads, w: Tensor) -> Grads:
    return {name: torch.tensordot(w.detach().double().cpu(), g, 1) for name, g in grads.items()}


def error(got: Tensor, want: Tensor) -> float:
    """The largest relative error of entries that each count."""
    assert got.shape == want.shape, f"{tuple(got.shape)} instead of {tuple(want.shape)}"
    return ((got.detach().double().cpu() - want).abs() / want.abs()).max().item()


def assert_grads(model: nn.Module, want: Grads, bound: float) -> None:
    """``.grad`` of every trainable parameter, relative to the largest entry."""
    got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert got.keys() == want.keys()
    for name, grad in got.items():
        assert grad is not None, f"{name}.grad is None"
        worst, most = (grad.double().cpu() - want[name]).abs().max().item(), want[name].abs().max().item()
        assert worst <= bound * most, f"{name}.grad errs by {worst:.2e} of {most:.2e}"


def run(model: nn.Module, x: Tensor, loss: Loss = losses, reduction: str = "mean", size: int | None = None, **options: Any) -> GradNorms:
    with grad_norms(model, len(x) if size is None else size, reduction=reduction, **options) as norms:
        each = loss(model(x))
        (each.mean() if reduction == "mean" else each.sum()).backward()
    return norms


def check(
    model: nn.Module,
    x: Tensor,
    backend: str | None,
    loss: Loss = losses,
    want: Grads | None = None,
    bound: float | None = None,
    **options: Any,
) -> None:
    """Both forms: norms, the ordinary gradient, the weighted one, and the gradient and value that go on through the model."""
    x = x.to(next(model.parameters()).device)
    bound = BOUND[next(model.parameters()).dtype] if bound is None else bound
    want = oracle(model, x, loss) if want is None else want
    leaf = x.clone().requires_grad_(x.is_floating_point())
    norms = run(model, leaf, loss, backend=backend, **options)
    assert error(norms.squared, squares(want)) <= bound
    assert error(norms.norm, squares(want).sqrt()) <= bound
    assert_grads(model, combined(want, torch.full((len(x),), 1 / len(x), dtype=torch.float64)), bound)
    through = leaf.grad
    model.zero_grad()
    norms = run(model, x, loss, backend=backend, weighted=True, **options)  # here nothing before the layer needs a gradient
    assert error(norms.squared, squares(want)) <= bound
    assert all(p.grad is None for p in model.parameters())
    w = torch.linspace(-1, 2, len(x), device=x.device)
    norms.weighted_backward(w)
    assert_grads(model, combined(want, w), bound)
    if not options and through is not None:
        leaf.grad = None
        loss(model(leaf)).mean().backward()
        worst = (through - leaf.grad).abs().max().item()
        assert worst <= bound * leaf.grad.abs().max().item(), f"the gradient of the input errs by {worst:.2e}"


@contextmanager
def refused(model: nn.Module, kind: type[Exception] | tuple[type[Exception], ...], match: str) -> Iterator[None]:
    """The error, gradients as they were, and no function intercepted any more."""
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(kind, match=match):
        yield
    assert all(p.grad is not None and p.grad.eq(1).all() for p in model.parameters()), "a refused call has changed .grad"
    assert torch._C._len_torch_function_stack() == 0
