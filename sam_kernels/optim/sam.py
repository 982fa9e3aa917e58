"""The optimizer and its state machine: clean -> perturbed -> clean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..batchnorm import frozen_batchnorm
from ..ops.lists import check_aliasing, is_dense
from ..registry import OPS
from . import engine
from .bases import build_base, fused_name
from .bucket import Bucket
from .rules import Descent, EveryStep, Gradient, Plain, WholeBatch

_PEER_KEYS = ("old_p", "e_w")  # what other SAM wrappers leave in their checkpoints


class SAM(Optimizer):
    """Sharpness-aware minimization around a base optimizer (arXiv 2010.01412), in two fused launches per step.

    Two calling habits::

        loss_fn(model(x), y).backward(); opt.first_step(zero_grad=True)
        loss_fn(model(x), y).backward(); opt.second_step(zero_grad=True)

        loss = opt.step(closure)     # closure: forward, backward, return the loss; called twice, the clean loss comes back

    Args:
        params: parameters, named parameters, or parameter groups. ``rho``, ``adaptive`` and ``eta`` may be set per group, like
            every option of the base; a group with ``rho=0`` is neither perturbed nor counted in the norm.
        base_optimizer: a ``torch.optim.Optimizer`` class, an instance over the same parameters, or ``"sgd"``, ``"adam"``,
            ``"adamw"``. ``torch.optim.SGD`` itself is fused; any other is stepped after an exact restore.
        rho: radius of the perturbation, >= 0, in the norm over all groups together.
        adaptive, eta: scale the perturbation by ``(|w| + eta)**2`` (ASAM, arXiv 2102.11600).
        normalize: divide by the norm of the gradient; ``perturb_eps`` guards that division.
        max_norm: clip the gradient of the update to this norm, inside the step; None: no clipping.
        batch, ascent, descent, schedule: the four rules, see ``optim.rules``.
        model: normalization layers of this module record no statistics in passes that ``step(closure)`` runs after the first.
        backend: ``"reference"``, ``"cpp"``, ``"triton"`` or ``"cuda"``; None: the preferred one that is available.
        capturable: ``lr`` and ``rho`` given as tensors are read on the device, never on the host.
        base_kwargs: options of the base optimizer (``lr``, ``momentum``, ``weight_decay``, ...).

    State: ``state[p]`` is the base's own; checkpoints go to and come from the plain base optimizer. The clean weights are kept in
    one flat buffer of the size of the parameters, which never enters a checkpoint. Parameters keep their storage.

    A first gradient that is not finite perturbs nothing and skips the step, on the device. A zero gradient perturbs nothing.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Any,
        rho: float | Tensor = 0.05,
        adaptive: bool = False,
        *,
        eta: float = 0.0,
        normalize: bool = True,
        perturb_eps: float = 1e-12,
        max_norm: float | None = None,
        batch: WholeBatch | None = None,
        ascent: Gradient | None = None,
        descent: Descent | None = None,
        schedule: EveryStep | None = None,
        model: nn.Module | None = None,
        backend: str | None = None,
        capturable: bool = False,
        **base_kwargs: Any,
    ) -> None:
        self._own_defaults = {"rho": rho, "adaptive": adaptive, "eta": eta}
        super().__init__(params, dict(self._own_defaults))
        for group in self.param_groups:
            _check_group(group)
        self.base_optimizer = build_base(base_optimizer, self.param_groups, base_kwargs)
        self._share()
        self.defaults = {**self.base_optimizer.defaults, **self._own_defaults}
        self.max_norm = engine.has_limit(max_norm)
        self.normalize, self.perturb_eps, self.capturable = bool(normalize), float(perturb_eps), bool(capturable)
        self.batch, self.ascent = _rule("batch", batch, WholeBatch), _rule("ascent", ascent, Gradient)
        self.descent, self.schedule = _rule("descent", descent, Descent, Plain), _rule("schedule", schedule, EveryStep)
        self.model, self.backend = model, backend
        self._fused = fused_name(self.base_optimizer)
        self._buckets: list[Bucket] | None = None
        self._phase = "clean"  # or "perturbed", or "empty": a first step that found no gradient
        self._check_backend()

    # ---- the two phases

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb the parameters along their gradients and stash the clean values.

        Mutates parameters (in place). With ``zero_grad`` the gradients are set to None. No gradient anywhere: a no-op.

        Raises:
            RuntimeError: the parameters are already perturbed.
            TypeError, ValueError: sparse or sharded gradients, invalid hyperparameters; nothing has been written.
        """
        self._require_clean("first_step()")
        for bucket in self._get_buckets():
            bucket.perturbed = []
        selection = engine.collect(self._get_buckets())
        if selection:
            engine.ascend_all(selection, self.param_groups, self.ascent.direction, self.normalize, self.perturb_eps, self.backend, self.capturable)
            if self.descent.coefficients.reads("g"):
                self._keep_gradients(selection, zero_grad)
        self._phase = "perturbed" if selection else "empty"
        if zero_grad:
            self.zero_grad(set_to_none=True)

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the parameters exactly and apply the base update with their current gradients.

        Runs through ``step()``, so that schedulers, step hooks and profilers see it.

        Raises:
            RuntimeError: no ``first_step()`` came before.
        """
        if self._phase == "clean":
            raise RuntimeError("second_step() without first_step(): nothing is perturbed; call first_step() after the first backward")
        self.step()
        if zero_grad:
            self.zero_grad(set_to_none=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """With a closure: both passes, returning the loss at the clean weights. Without: the second step, after ``first_step()``.

        The closure computes the loss, calls backward and returns the loss; gradients are cleared before each call. Afterwards
        ``.grad`` holds the gradients of the second pass. If it raises, the parameters are restored and the error passes on.
        """
        if closure is None:
            if self._phase == "clean":
                raise RuntimeError("step() needs a closure, or a first_step() before it; a step without its ascent would not be SAM")
            self._descend()
            return None
        self._require_clean("step(closure)")
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = closure()
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad(), frozen_batchnorm(self.model):
                closure()
            self._descend()
        except BaseException:
            self.restore()
            raise
        return loss

    @torch.no_grad()
    def restore(self) -> None:
        """Put the clean weights back, bit for bit, without an update. Does nothing where nothing is perturbed."""
        for bucket in self._buckets or ():
            engine.restore(bucket, bucket.perturbed, self.backend)
            bucket.perturbed, bucket.grads = [], [None] * len(bucket.params)
        self._phase = "clean"

    @contextmanager
    def perturbed(self, zero_grad: bool = False) -> Iterator[None]:
        """Inside, the parameters are perturbed: ``first_step`` on entry unless it was called, clean weights on every way out.

        Call ``second_step()`` inside for the update; without it, leaving only restores.
        """
        if self._phase == "clean":
            self.first_step(zero_grad)
        try:
            yield
        finally:
            self.restore()

    @property
    def needs_second_pass(self) -> bool:
        """Whether the current step wants a second backward; schedules that skip it say so here."""
        return True

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of the last first gradient over all parameters, on the device; None before the first step."""
        return self._buckets[0].gram[0].sqrt() if self._buckets else None

    # ---- descent

    @torch.no_grad()
    def _descend(self) -> None:
        buckets = self._get_buckets()
        selection = engine.collect(buckets)
        ascended = self._phase == "perturbed"
        present = {id(bucket): set(indices) for bucket, indices, _ in selection}
        for bucket in buckets:
            perturbed = set(bucket.perturbed)
            here = present.get(id(bucket), set())
            engine.restore(bucket, sorted(perturbed - here), self.backend)
            for i in sorted(here - perturbed):  # first gradient only now: its clean weight is its weight
                bucket.stash[i].copy_(bucket.params[i])
        if ascended:
            for bucket, _, _ in selection:
                self._align_norms(bucket)
        rule = self.descent if ascended else Plain()
        if selection and self._fused:
            engine.descend_sgd(selection, self.param_groups, rule, self.max_norm, self.state, ascended, self.backend, self.capturable)
        elif selection:
            self._step_base(selection, rule, ascended)
        for bucket in buckets:
            bucket.perturbed, bucket.grads = [], [None] * len(bucket.params)
        self._phase = "clean"

    def _align_norms(self, bucket: Bucket) -> None:
        """A bucket whose gradients appear only in the second pass takes the ascent's norms from one that had them."""
        source = next(b for b in self._get_buckets() if b.perturbed)
        if not bucket.perturbed:
            bucket.sq_norm.copy_(source.sq_norm)
            bucket.gram.copy_(source.gram)

    def _step_base(self, selection: engine.Selection, rule: Descent, ascended: bool) -> None:
        """Restore, then the base's own step on the combined gradient. Skipping it has to ask the device: one sync."""
        u, finite = engine.combined_gradients(selection, rule, self.max_norm, self.backend)
        for bucket, indices, _ in selection:
            engine.restore(bucket, indices, self.backend)
        good = torch.isfinite(selection[0][0].sq_norm[0]) if ascended else torch.ones((), dtype=torch.bool)
        if not bool(good if finite is None else good & finite.to(good.device)):
            return
        pairs = [(bucket.params[i], x) for (bucket, indices, _), xs in zip(selection, u, strict=True) for i, x in zip(indices, xs, strict=True)]
        held = [p.grad for p, _ in pairs]
        for p, x in pairs:
            p.grad = x
        try:
            self.base_optimizer.step()
        finally:
            for (p, _), grad in zip(pairs, held, strict=True):
                p.grad = grad

    def _keep_gradients(self, selection: engine.Selection, taken: bool) -> None:
        for bucket, indices, grads in selection:
            for i, grad in zip(indices, grads, strict=True):
                own = taken and grad._base is None  # nobody else writes it once .grad lets go of it
                bucket.grads[i] = grad if own else grad.clone(memory_format=torch.preserve_format)

    # ---- groups, buckets, checkpoints

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it lacks take the defaults of this optimizer and of its base."""
        if not hasattr(self, "base_optimizer"):
            return super().add_param_group(param_group)
        self._require_clean("add_param_group()")
        for key, value in self._own_defaults.items():
            param_group.setdefault(key, value)
        before = len(self.param_groups)
        self.base_optimizer.add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            del self.param_groups[before:]
            raise
        self._drop_buckets()
        return None

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict with ``rho``, ``adaptive``, ``eta`` in the groups. Raises while perturbed."""
        self._require_clean("state_dict()")
        self._publish()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer, of its plain base, or of another SAM wrapper (whose saved weights are ignored)."""
        self._require_clean("load_state_dict()")
        saved = list(state_dict["param_groups"])
        groups = [{**{k: ours.get(k, v) for k, v in self._own_defaults.items()}, **theirs} for ours, theirs in zip(self.param_groups, saved, strict=False)]
        state = {k: {n: v for n, v in s.items() if n not in _PEER_KEYS} for k, s in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": {k: s for k, s in state.items() if s}, "param_groups": groups + saved[len(groups) :]})
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share()
        self._buckets = None

    def __getstate__(self) -> dict[str, Any]:
        self._require_clean("copying or pickling")
        self._publish()
        skipped = ("step", "_buckets", "_warned_capturable_if_run_uncaptured", "_zero_grad_profile_name")
        return {k: v for k, v in self.__dict__.items() if k not in skipped and not k.startswith("_optimizer_")} | {"_buckets": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "base_optimizer" in state:
            self._share()

    def _share(self) -> None:
        """One list of groups and one state for the wrapper and its base, whoever is asked."""
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state
        for group in self.param_groups:
            for key, value in self._own_defaults.items():
                group.setdefault(key, value)

    def _publish(self) -> None:
        for bucket in self._buckets or ():
            bucket.publish(self.state)

    def _drop_buckets(self) -> None:
        self._publish()
        self._buckets = None

    def _get_buckets(self) -> list[Bucket]:
        if self._buckets is None:
            members: dict[Any, tuple[list[Tensor], list[int]]] = {}
            for row, group in enumerate(self.param_groups):
                for p in group["params"]:
                    params, rows = members.setdefault((p.device, p.dtype), ([], []))
                    params.append(p)
                    rows.append(row)
            self._buckets = [Bucket(params, rows) for params, rows in members.values()]
        return self._buckets

    def _check_backend(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        check_aliasing({"params": params}, {})
        if self.backend is not None:
            for p in params[:1]:
                for op in OPS.values():
                    op.named(self.backend, p.device.type, p.dtype)

    def _require_clean(self, what: str) -> None:
        if self._phase == "perturbed":
            raise RuntimeError(f"{what} while the parameters are perturbed; call second_step() or restore() first")


def _rule(name: str, given: Any, kind: type, default: type | None = None) -> Any:
    if given is not None and not isinstance(given, kind):
        raise TypeError(f"{name} is {given!r}; expected an instance of optim.rules.{kind.__name__} (did you pass the class?)")
    return (default or kind)() if given is None else given


def _check_group(group: dict[str, Any]) -> None:
    for key in ("rho", "eta"):
        value = group[key]
        if isinstance(value, Tensor):
            continue
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{key} is {value!r}; expected a finite number >= 0")
    for i, p in enumerate(group["params"]):
        if p.is_complex() or not p.is_floating_point():
            raise TypeError(f"params[{i}] is {p.dtype}; expected a real floating-point parameter")
        if p.layout != torch.strided or not is_dense(p):
            raise ValueError(f"params[{i}] has layout {p.layout} and strides {p.stride() if p.layout == torch.strided else None}; expected dense")
