"""From parameter groups to op calls: collect gradients into parts of buckets, form the option tables, launch ascend_ and descend_.

Calls the implementations directly: the lists were checked when the bucket was built, and only gradients change from step to step.
A norm runs over all buckets. With one bucket it is reduced inside the launch; with several, each reduces its own share, and the sum is
handed to every launch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..ops import ascend, descend
from ..ops.coefficients import entry_mask, needed_entries
from ..ops.inner_products import OP as INNER_PRODUCTS
from ..ops.lists import Row, same_layout
from ..registry import Op
from .bucket import Bucket, Part
from .options import ascent_table, descent_table
from .rules import Descent

STEP_OPS = (INNER_PRODUCTS, ascend.OP, descend.OP)
Group = dict[str, Any]
Selection = list[tuple[Part, Row]]  # the parameters that have a gradient now, and their gradients
GG = entry_mask(["gg"])
_grad = attrgetter("grad")


@dataclass(frozen=True)
class Settings:
    """What holds for a whole step."""

    groups: list[Group]
    backend: str | None
    capturable: bool
    radius: float = 1.0  # times rho


@dataclass(frozen=True)
class Update:
    """How a step ends: the base, what it sees, and what may forbid it."""

    base: str
    rule: Descent
    max_norm: float
    ascended: bool  # a first gradient that is not finite skips the step
    lost: bool = False  # a parameter with a first gradient has no second
    found_inf: Tensor | None = None
    scaled: bool = False  # the loss_scale of every bucket counts


class StaleBucketError(RuntimeError):
    """A parameter no longer is of the kind that its bucket was built for."""


def implementation(op: Op, bucket: Bucket, backend: str | None) -> Callable[..., Any]:
    device = bucket.device.type
    return op.named(backend or op.chosen(device, bucket.dtype), device, bucket.dtype)


def collect(buckets: list[Bucket], moved: Callable[[], None]) -> Selection:
    """The parameters that have a gradient now, with gradients in the layout of their parameters. ``moved`` is called where some have
    changed their storage but still fit."""
    selection: Selection = []
    for bucket in buckets:
        part = bucket.whole
        row = part.gradients()
        if row is None:  # the compiled look at all of them found something to sort out, or there is none
            if bucket.moved():
                if not bucket.fits():
                    raise StaleBucketError
                moved()
                bucket.follow()
            grads = list(map(_grad, bucket.params))
            part = bucket.part(tuple(i for i, grad in enumerate(grads) if grad is not None))
            row = part.gradients()
            if row is None:
                row = Row(map(_checked, part.params, part.pick(grads)))
        if row:
            selection.append((part, row))
    return selection


def _checked(p: Tensor, grad: Tensor) -> Tensor:
    """A gradient that pairs with its parameter element by element, in plain memory: itself or a copy."""
    name = f"a gradient of shape {tuple(grad.shape)}"
    if grad.layout != torch.strided:
        raise TypeError(f"{name} has layout {grad.layout}; expected dense: construct the layer with sparse=False")
    if type(grad) is not Tensor and hasattr(grad, "to_local"):
        raise TypeError(f"{name} is a {type(grad).__name__}; sharded gradients are not supported")
    if grad.dtype != p.dtype or grad.shape != p.shape or grad.device != p.device:
        raise TypeError(
            f"{name} is {grad.dtype} on {grad.device} but its parameter of shape {tuple(p.shape)} is {p.dtype} on {p.device}; "
            "expected equal shape, dtype and device"
        )
    plain = same_layout(grad, p) and not grad.is_neg() and (grad.data_ptr() != 0 or not grad.numel())
    return grad if plain else torch.empty_like(p, requires_grad=False).copy_(grad)  # also of what has no memory of its own


# ---- launches


def ascend_all(selection: Selection, s: Settings, direction: tuple[float, float], on_device: bool, normalize: bool, eps: float) -> None:
    """Perturb every selected parameter; ``sq_norm`` and ``gram[gg]`` of every bucket then hold the global norms. ``on_device``: the
    factors of the direction are in ``bucket.direction``."""
    tables = [ascent_table(part.bucket, s.groups, s.capturable, s.radius) for part, _ in selection]  # all checks before any launch
    functions = [implementation(ascend.OP, part.bucket, s.backend) for part, _ in selection]

    def launch(phase: str) -> None:
        for (part, grads), (hyper, rho), function in zip(selection, tables, functions, strict=True):
            b, stash = part.bucket, part.stash if phase != "norm" else []
            function(part.params, grads, stash, [], b.sq_norm, b.gram, None, rho, b.direction if on_device else None, part.rows, hyper,
                     list(direction), [], eps, normalize, phase, None, 0)  # fmt: skip

    buckets = [part.bucket for part, _ in selection]
    if len(buckets) > 1:
        launch("norm")
        add_up(buckets, [bucket.sq_norm for bucket in buckets])
        add_up(buckets, [bucket.gram[:1] for bucket in buckets])
    launch("all" if len(buckets) == 1 else "update")
    for part, _ in selection:
        written(part.params)
        part.bucket.perturbed = part


def first_norm(buckets: list[Bucket], backend: str | None) -> None:
    """``gram[gg]`` of every bucket: of the first gradients that they hold, all together."""
    for bucket in buckets:
        g = Row(g for g in bucket.grads if g is not None)
        bucket.gram[:1].copy_(implementation(INNER_PRODUCTS, bucket, backend)(g, [], [], [], 0.0)[:1])
    if len(buckets) > 1:
        add_up(buckets, [bucket.gram[:1] for bucket in buckets])


def signs(buckets: list[Bucket], s: Settings, noise: Tensor, delta: float) -> Callable[[], None]:
    """A function that does ``w += delta z`` with random signs z for every trainable parameter, whatever its rho, and stashes the clean
    weights."""
    hyper = [delta, 0.0, 0.0, 0.0] * len(s.groups)
    parts = [bucket.part(tuple(i for i, p in enumerate(bucket.params) if p.requires_grad)) for bucket in buckets]
    functions = [implementation(ascend.OP, bucket, s.backend) for bucket in buckets]

    def launch() -> None:
        for stream, (part, function) in enumerate(zip(parts, functions, strict=True)):
            b = part.bucket
            b.sq_norm.fill_(1.0)  # given, and finite
            function(part.params, [], part.stash, [], b.sq_norm, None, None, None, None, part.rows, hyper, [1.0, 0.0], [], 0.0, False,
                     "update", noise.to(b.device), stream)  # fmt: skip
            written(part.params)
            b.perturbed = part

    return launch


def add_up(buckets: list[Bucket], shares: list[Tensor]) -> None:
    """Replace every bucket's share by the sum. In fp32 where one of them is: what overflows in one bucket overflows in all."""
    wide = all(bucket.accumulator == torch.float64 for bucket in buckets)
    total = torch.stack([x.to(shares[0].device, torch.float64) for x in shares]).sum(0)
    total = total if wide else total.float()
    for x in shares:
        x.copy_(total)


def descent_norms(selection: Selection, update: Update, backend: str | None) -> tuple[int, int]:
    """Masks (needed, given) of Gram entries; with several buckets the needed ones are summed here and all given. The ascent has left
    |g|^2, of all parameters; where some of them have no part in the update, a rule that reads g itself needs it without those."""
    rule, max_norm = update.rule, update.max_norm
    needed = needed_entries(rule.coefficients, rule.match_norm, max_norm)
    given = 0 if update.lost and rule.keeps_g(max_norm) else needed & GG
    if len(selection) > 1 and needed & ~given:
        for part, grads in selection:
            form_gram(part, grads, rule.keeps_g(max_norm), needed & ~given, backend)
        first = first_entry(needed & ~given)
        add_up([part.bucket for part, _ in selection], [part.bucket.gram[first:] for part, _ in selection])
        given = needed
    return needed, given


def form_gram(part: Part, grads: Row, keeps_g: bool, entries: int, backend: str | None) -> None:
    """The Gram entries of one bucket, those of the ascent left alone unless they are among ``entries``."""
    found = implementation(INNER_PRODUCTS, part.bucket, backend)(part.kept() if keeps_g else [], grads, [], [], 0.0)
    first = first_entry(entries)
    part.bucket.gram[first:].copy_(found[first:])


def first_entry(entries: int) -> int:
    """Where the Gram entries that are not the ascent's begin."""
    return 0 if entries & GG else 1


def descend_all(selection: Selection, s: Settings, update: Update, state: dict[Tensor, dict[str, Any]]) -> None:
    """Restore, combine and update in one launch per bucket."""
    tables = [descent_table(part.bucket, s.groups, update.base, s.capturable) for part, _ in selection]
    for (part, _), (_, _, used) in zip(selection, tables, strict=True):
        part.bucket.state.adopt(state, update.base, used, part.bucket.rows, part.indices)
    needed, given = descent_norms(selection, update, s.backend)
    if update.ascended and not needed & GG:  # |g|^2 over all groups, also those with rho = 0, which the ascent's own norm leaves out
        needed, given = needed | GG, given | GG
    keep_g = update.rule.keeps_g(update.max_norm)
    for (part, grads), (hyper, lr, _) in zip(selection, tables, strict=True):
        b = part.bucket
        m, v, v_max = (part.state(name) for name in ("m", "v", "v_max"))
        steps = b.state.steps if part.index is None else b.state.steps[part.index]
        implementation(descend.OP, b, s.backend)(
            part.params, part.stash, grads, part.kept() if keep_g else [], [], m, v, v_max, steps, b.gram,
            b.sq_norm if update.ascended else None, on(b, update.found_inf), b.loss_scale if update.scaled else None, lr, part.rows, hyper,
            update.base, update.rule.coefficients.flat, False, update.rule.match_norm, update.max_norm, False, needed, given,
        )  # fmt: skip
        written([*part.params, *m[:1], *v[:1], *v_max[:1]])  # views of one buffer share a counter
        if part.index is not None:
            b.state.steps[part.index] = steps


def on(bucket: Bucket, flag: Tensor | None) -> Tensor | None:
    return None if flag is None else flag.to(bucket.device, torch.float32).reshape(1)


def restore(part: Part, backend: str | None) -> None:
    bucket = part.bucket
    moved = bucket.moved()
    if moved and not bucket.fits():  # cast or laid out anew while perturbed: the clean values are right all the same
        for p, clean in zip(part.params, part.stash, strict=True):
            if p.shape == clean.shape:  # one that was resized has no clean value any more
                p.copy_(clean)
        written([])
        return
    params = Row(part.params) if moved else part.params
    implementation(descend.OP, bucket, backend)(
        params, part.stash, [], [], [], [], [], [], None, None, None, None, None, None, part.rows, [], "none", _NO_COEFFICIENTS,
        False, False, inf, False, 0, 0,
    )  # fmt: skip
    written(params)


def written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd what kernels have written, and autocast that its copies of weights in lower precision are stale: within one autocast
    region around both passes it would hand the old ones to the second."""
    torch.autograd.graph.increment_version(tensors)
    torch.clear_autocast_cache()


_NO_COEFFICIENTS = [0.0] * 45


def has_limit(max_norm: float | None) -> float:
    """``max_norm`` as a number: None means no limit."""
    if max_norm is None:
        return inf
    if not isinstance(max_norm, int | float) or not isfinite(max_norm) or max_norm <= 0:
        raise ValueError(f"max_norm is {max_norm!r}; expected a number > 0, or None for no clipping")
    return float(max_norm)
