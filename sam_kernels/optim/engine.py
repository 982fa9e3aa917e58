"""From parameter groups to op calls: collect gradients into buckets, form the hyperparameter tables, launch ascend_ and descend_.

Calls the implementations directly: the lists were checked when the bucket was built, and only gradients change from step to step.
A norm runs over all buckets. With one bucket it is reduced inside the launch; with several, ``inner_products`` of each bucket are
added up and handed to every launch.
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ..ops import ascend, descend
from ..ops.bases import HYPER
from ..ops.coefficients import entry_mask, needed_entries
from ..ops.inner_products import OP as INNER_PRODUCTS
from ..ops.lists import hyper_table, same_layout
from ..registry import Op
from .bucket import Bucket
from .rules import Descent

Group = dict[str, Any]
Selection = list[tuple[Bucket, list[int], list[Tensor]]]  # indices into the bucket and their gradients


def implementation(op: Op, bucket: Bucket, backend: str | None) -> Callable[..., Any]:
    device = bucket.device.type
    return op.named(backend or op.chosen(device, bucket.dtype), device, bucket.dtype)


class StaleBucketError(RuntimeError):
    """A parameter no longer has the dtype or the strides that its bucket was built for."""


def collect(buckets: list[Bucket]) -> Selection:
    """The parameters that have a gradient now, with gradients in the layout of their parameters."""
    selection: Selection = []
    for bucket in buckets:
        indices, grads = [], []
        for i, (p, stride) in enumerate(zip(bucket.params, bucket.strides, strict=True)):
            grad = p.grad
            if grad is None:
                continue
            if p.stride() != stride or p.dtype != bucket.dtype:
                raise StaleBucketError
            plain = type(grad) is Tensor and grad.layout is torch.strided and grad.dtype is bucket.dtype and grad.stride() == stride
            indices.append(i)
            grads.append(grad if plain else _checked(p, grad))
        if indices:
            selection.append((bucket, indices, grads))
    return selection


def _checked(p: Tensor, grad: Tensor) -> Tensor:
    if grad.layout != torch.strided:
        raise TypeError(
            f"a gradient of shape {tuple(p.shape)} has layout {grad.layout}; expected dense: construct the layer with sparse=False"
        )
    if type(grad) is not Tensor and hasattr(grad, "to_local"):
        raise TypeError(f"a gradient of shape {tuple(p.shape)} is a {type(grad).__name__}; sharded gradients are not supported")
    if grad.dtype != p.dtype:
        raise TypeError(f"a gradient of shape {tuple(p.shape)} is {grad.dtype} but its parameter is {p.dtype}; expected equal dtypes")
    return grad if same_layout(grad, p) else torch.empty_like(p).copy_(grad)


def column(groups: list[Group], key: str, bucket: Bucket, capturable: bool) -> tuple[list[float], Tensor | None]:
    """One hyperparameter of every group as host numbers, or as a device tensor where one of them lives there."""
    values = [group[key] for group in groups]
    if any(isinstance(x, Tensor) and (capturable or x.is_cuda) for x in values):
        like = bucket.sq_norm.new_empty(())
        parts = [x.to(like).reshape(()) if isinstance(x, Tensor) else torch.full_like(like, float(x)) for x in values]
        return [0.0] * len(values), torch.stack(parts)
    return values, None  # hyper_table checks them


def ascent_table(groups: list[Group], bucket: Bucket, capturable: bool) -> tuple[list[float], Tensor | None]:
    rho, rho_device = column(groups, "rho", bucket, capturable)
    columns = {
        "rho": rho,
        "eta": [group["eta"] for group in groups],
        "adaptive": [bool(group["adaptive"]) for group in groups],
        "maximize": [bool(group.get("maximize", False)) for group in groups],
    }
    return hyper_table(len(groups), columns, nonnegative=("rho", "eta")), rho_device


def ascend_all(selection: Selection, groups: list[Group], direction: tuple[float, float], normalize: bool, eps: float,
               backend: str | None, capturable: bool) -> None:  # fmt: skip
    """Perturb every selected parameter; ``sq_norm`` and ``gram[gg]`` of every bucket then hold the global norms."""
    tables = [ascent_table(groups, bucket, capturable) for bucket, _, _ in selection]  # all checks before any launch
    functions = [implementation(ascend.OP, bucket, backend) for bucket, _, _ in selection]
    given = len(selection) > 1
    if given:
        _sum_norms(selection, groups, direction, backend)
    for (bucket, indices, grads), (hyper, rho), function in zip(selection, tables, functions, strict=True):
        params, stash = bucket.pick(bucket.params, indices), bucket.pick(bucket.stash, indices)
        rows = bucket.pick(bucket.rows, indices)
        function(
            params, grads, stash, [], bucket.sq_norm, bucket.gram, None, rho, None, rows, hyper, list(direction), [], eps, normalize, given
        )
        torch.autograd.graph.increment_version([*params, *stash])
        bucket.perturbed = indices


def _sum_norms(selection: Selection, groups: list[Group], direction: tuple[float, float], backend: str | None) -> None:
    """Global |c d|^2 over the groups with rho != 0 and |g|^2 over all, written into every bucket."""
    total = torch.zeros(2, dtype=torch.float64, device=selection[0][0].device)
    for bucket, indices, grads in selection:
        function = implementation(INNER_PRODUCTS, bucket, backend)
        for row, group in enumerate(groups):
            chosen = [k for k, i in enumerate(indices) if bucket.rows[i] == row]
            if not chosen:
                continue
            g = [grads[k] for k in chosen]
            plain = function(g, [], [], [], 0.0)[0]
            weights = [bucket.params[indices[k]] for k in chosen] if group["adaptive"] else []
            weighted = function(g, [], [], weights, float(group["eta"]))[0] if weights else plain
            rho = torch.as_tensor(group["rho"], device=bucket.device).reshape(())
            counted = torch.where(rho != 0, weighted * direction[0] ** 2, torch.zeros_like(weighted))
            total += torch.stack((counted, plain)).to(total)
    if any(bucket.accumulator == torch.float32 for bucket, _, _ in selection):
        total = total.float()  # a norm that overflows in one bucket overflows in all: they skip together
    for bucket, _, _ in selection:
        bucket.sq_norm.copy_(total[:1])
        bucket.gram[:1].copy_(total[1:])


def descent_norms(selection: Selection, rule: Descent, max_norm: float, backend: str | None) -> tuple[int, int]:
    """Masks (needed, given) of Gram entries; with several buckets the needed ones are summed here and all given."""
    needed = needed_entries(rule.coefficients, rule.match_norm, max_norm)
    given = needed & entry_mask(["gg"])  # the ascent has left it in gram
    if len(selection) > 1 and needed & ~given:
        total = torch.zeros(6, dtype=torch.float64, device=selection[0][0].device)
        for bucket, indices, grads in selection:
            g = bucket.kept(indices) if rule.keeps_g(max_norm) else []
            total += implementation(INNER_PRODUCTS, bucket, backend)(g, grads, [], [], 0.0).to(total)
        for bucket, _, _ in selection:
            bucket.gram[1:].copy_(total[1:])
        given = needed
    return needed, given


def sgd_table(groups: list[Group], bucket: Bucket, capturable: bool) -> tuple[list[float], Tensor | None]:
    lr, lr_device = column(groups, "lr", bucket, capturable)
    columns: dict[str, Sequence[float]] = {key: [group[key] for group in groups] for key in HYPER["sgd"]}
    return hyper_table(len(groups), {**columns, "lr": lr}, nonnegative=("lr", "momentum", "weight_decay")), lr_device


def descend_sgd(selection: Selection, groups: list[Group], rule: Descent, max_norm: float, state: dict[Tensor, dict[str, Any]],
                skip_on: bool, backend: str | None, capturable: bool) -> None:  # fmt: skip
    """Restore, combine and update in one launch per bucket. ``skip_on``: a first gradient that is not finite skips the step."""
    tables = [sgd_table(groups, bucket, capturable) for bucket, _, _ in selection]
    needed, given = descent_norms(selection, rule, max_norm, backend)
    if skip_on:  # |g|^2 over all groups, also those with rho = 0, which the ascent's own norm leaves out
        needed, given = needed | entry_mask(["gg"]), given | entry_mask(["gg"])
    keep_g = rule.keeps_g(max_norm)
    for (bucket, indices, grads), (hyper, lr) in zip(selection, tables, strict=True):
        whole = len(indices) == len(bucket.params)
        buffers = bucket.momentum(state, indices) if any(group["momentum"] for group in groups) else []
        steps = bucket.steps if whole else bucket.steps[torch.tensor(indices, device=bucket.device)]
        params, stash = bucket.pick(bucket.params, indices), bucket.pick(bucket.stash, indices)
        g = bucket.kept(indices) if keep_g else []
        rows = bucket.pick(bucket.rows, indices)
        implementation(descend.OP, bucket, backend)(
            params, stash, grads, g, [], buffers, steps, bucket.gram, bucket.sq_norm if skip_on else None, None, lr, rows,
            hyper, "sgd", rule.coefficients.flat, False, rule.match_norm, max_norm, False, needed, given,
        )  # fmt: skip
        torch.autograd.graph.increment_version([*params, *buffers])
        if not whole:
            bucket.steps[torch.tensor(indices, device=bucket.device)] = steps


def restore(bucket: Bucket, indices: list[int], backend: str | None) -> None:
    if not indices:
        return
    if any(bucket.params[i].stride() != bucket.strides[i] or bucket.params[i].dtype != bucket.dtype for i in indices):
        # cast or laid out anew while perturbed: the clean values are right all the same
        for i in indices:
            bucket.params[i].copy_(bucket.stash[i])
        return
    params, stash = bucket.pick(bucket.params, indices), bucket.pick(bucket.stash, indices)
    rows = [0] * len(indices)
    implementation(descend.OP, bucket, backend)(
        params, stash, [], [], [], [], None, None, None, None, None, rows, [], "none", _NO_COEFFICIENTS, False, False, inf, False, 0, 0
    )
    torch.autograd.graph.increment_version(params)


_NO_COEFFICIENTS = [0.0] * 45


def has_limit(max_norm: float | None) -> float:
    """``max_norm`` as a number: None means no limit."""
    if max_norm is None:
        return inf
    if not isinstance(max_norm, int | float) or not isfinite(max_norm) or max_norm <= 0:
        raise ValueError(f"max_norm is {max_norm!r}; expected a number > 0, or None for no clipping")
    return float(max_norm)
