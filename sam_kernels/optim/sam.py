"""The optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..batchnorm import frozen_batchnorm
from ..ops.coefficients import entry_mask, needed_entries
from ..ops.gibbs_weights import Gibbs
from ..spans import span
from . import amp, engine
from .bases import build_base, fused_name
from .batches import Batch, BatchRule, Turn, WholeBatch
from .phases import Phases
from .rules import Descent, EveryStep, Gradient, Plain
from .shards import Shards
from .shared import check_group


class SAM(Phases):
    """Sharpness-aware minimization around a base optimizer (arXiv 2010.01412), in two fused launches per step.

    Two calling habits::

        loss_fn(model(x), y).backward(); opt.first_step(zero_grad=True)
        loss_fn(model(x), y).backward(); opt.second_step(zero_grad=True)

        loss = opt.step(closure)     # closure: forward, backward, return the loss; called twice, the clean loss comes back

    Batch rules that look at samples take ``opt.step(losses, batch_size=B)`` instead, see ``step``.

    Args:
        params: parameters, named parameters, or parameter groups. ``rho``, ``adaptive`` and ``eta`` may be set per group, like
            every option of the base; a group with ``rho=0`` is neither perturbed nor counted in the norm.
        base_optimizer: a ``torch.optim.Optimizer`` class, an instance over the same parameters, or ``"sgd"``, ``"adam"``,
            ``"adamw"``, ``"lion"``, ``"amsgrad"``. torch's SGD, Adam and AdamW themselves and our Lion and AMSGrad are fused; any other
            is stepped after an exact restore.
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

    ``GradScaler``: ``scaler.step(opt)`` as the second step, without ``unscale_``; the scale is taken out inside the update.

    A first gradient that is not finite skips the step, on the device, and perturbs nothing (unless it stands in a group with rho = 0,
    which has no part in the norm). A zero gradient perturbs nothing.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves scale and found_inf to the step
    sample_norms: Tensor | None = None  # [B]: what the batch rule of the last step knew of its samples,
    sample_weights: Gibbs | None = None  # made of it,
    sample_indices: Tensor | None = None  # and chose: positions in the batch, None for all

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
        batch: BatchRule | None = None,
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
            check_group(group)
        if not 0 <= perturb_eps < float("inf"):
            raise ValueError(f"perturb_eps is {perturb_eps!r}; expected a finite number >= 0")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module, or None")
        self.base_optimizer = build_base(base_optimizer, self.param_groups, base_kwargs)
        self._share()
        self.defaults = {**self.base_optimizer.defaults, **self._own_defaults}
        self.max_norm = engine.has_limit(max_norm)
        self.normalize, self.perturb_eps, self.capturable = bool(normalize), float(perturb_eps), bool(capturable)
        self.batch, self.ascent = _rule("batch", batch, BatchRule, WholeBatch), _rule("ascent", ascent, Gradient)
        self.descent, self.schedule = _rule("descent", descent, Descent, Plain), _rule("schedule", schedule, EveryStep)
        self.model, self.backend = model, backend
        self.batch.check(self)
        with torch.inference_mode(False):  # it outlives the mode
            self.batch_state = self.batch.new_state(self)
        self._fused = fused_name(self.base_optimizer)
        if self._fused is None and any(self.descent.coefficients.flat[15:30]):
            raise ValueError(f"descent has a direct term, which a {type(self.base_optimizer).__name__} base has no place for; use SGD")
        self._check_members()

    # ---- the two phases

    def first_step(self, zero_grad: bool = False, scaler: Any = None) -> None:
        """Perturb the parameters along their gradients and stash the clean values.

        Mutates parameters (in place). With ``zero_grad`` the gradients are set to None. No gradient anywhere: a no-op. ``scaler``: the
        ``GradScaler`` whose scale the gradients carry. A normalized direction does not depend on it; what does is listed in
        ``needs_scaler``, and is refused at the second step where the scale is not known.

        Raises:
            RuntimeError: the parameters are already perturbed.
            TypeError, ValueError: sparse or sharded gradients, invalid hyperparameters; nothing has been written.
        """
        if not isinstance(self.batch, WholeBatch):
            raise RuntimeError(
                f"first_step() with the batch rule {type(self.batch).__name__}, which needs the losses of the samples; use "
                "step(losses, batch_size=len(y))"
            )
        self._ascend(zero_grad, scaler)

    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the parameters exactly and apply the base update with their current gradients.

        Runs through ``step()``, so that schedulers, step hooks and profilers see it.

        Raises:
            RuntimeError: no ``first_step()`` came before.
        """
        if self._phase == "clean" and isinstance(self.batch, WholeBatch):
            raise RuntimeError("second_step() without first_step(): nothing is perturbed; call first_step() after the first backward")
        self.step()
        if zero_grad:
            self.zero_grad(set_to_none=True)

    def step(self, closure: Callable[..., Any] | None = None, *, batch_size: int | None = None, sample_ids: Tensor | None = None) -> Any:
        """With a closure: both passes, returning the loss at the clean weights. Without: the second step, after ``first_step()``.

        The closure computes the loss, calls backward and returns the loss; gradients are cleared before each call. Afterwards
        ``.grad`` holds the gradients of the second pass. If it raises, the parameters are restored and the error passes on.

        Batch rules other than ``WholeBatch`` take a function of sample positions instead, and call backward themselves::

            def losses(index=None):  # None: the whole batch
                xb, yb = (x, y) if index is None else (x[index], y[index])
                return F.cross_entropy(model(xb), yb, reduction="none")  # [len]
            loss = opt.step(losses, batch_size=len(y))  # the clean mean loss

        ``sample_ids``: int64 ``[batch_size]``, which samples of the training set these are, for the rules that remember them.
        """
        if closure is None:
            return self._finish()
        self._require_clean("step(closure)")
        if not isinstance(self.batch, WholeBatch):
            amp.refuse_scaler(self)
        turns = self.batch.turns(self, closure, Batch(batch_size, sample_ids))
        shards = Shards(self) if len(turns) > 1 else None
        try:
            losses = [self._turn(turn, shards, later=i > 0) for i, turn in enumerate(turns)]
            if shards is not None and shards.settle():
                self._phase = "perturbed"
            self._descend()
        except BaseException:
            self.restore()
            raise
        for turn in turns:
            turn.done()
        return losses[0] if shards is None else sum(turn.share * loss for turn, loss in zip(turns, losses, strict=True))

    def _turn(self, turn: Turn, shards: Shards | None, later: bool) -> Any:
        """Both passes of one shard, up to the update."""
        if later:
            self.restore()
        self.zero_grad(set_to_none=True)
        with span("first pass"), torch.enable_grad(), frozen_batchnorm(self.model if later else None):
            loss = turn.first()
        self._ascend(zero_grad=True, own=True, keep=shards is not None and shards.sees_g)
        if shards is not None:
            shards.ascended(self._get_buckets(), turn.share)
        with span("second pass"), torch.enable_grad(), frozen_batchnorm(self.model):
            turn.second()
        if shards is not None:
            shards.descended(turn.share)
        return loss

    def _finish(self) -> None:
        try:
            if self._phase == "clean":
                how = "a closure, or a first_step() before it" if isinstance(self.batch, WholeBatch) else "step(losses, batch_size=len(y))"
                raise RuntimeError(f"step() needs {how}; a step without its ascent would not be SAM")
            self._descend()
        except BaseException:
            for name in ("grad_scale", "found_inf"):  # a GradScaler that does not get to remove them would multiply by them next time
                self.__dict__.pop(name, None)
            raise

    @contextmanager
    def perturbed(self, zero_grad: bool = False) -> Iterator[None]:
        """Inside, the parameters are perturbed: ``first_step`` on entry unless it was called, clean weights on every way out.

        Call ``second_step()`` inside for the update; without it, leaving only restores.
        """
        if self._phase != "perturbed":
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
        """Norm of the last first gradient over all parameters, on the device; None before the first step. Under a ``GradScaler`` that
        ``first_step`` was not told of, the norm of the scaled gradient."""
        if self._norms is None:
            return None
        norm = self._norms.gram[0].sqrt()
        return norm if self._first_scale is None else norm / self._first_scale.to(norm)

    @property
    def needs_scaler(self) -> bool:
        """Whether the step depends on the scale of the first gradient, so that a ``GradScaler`` has to be handed to ``first_step``,
        unless ``scaler.step`` itself takes the scale out of both."""
        return not self.normalize

    def step_taken(self) -> Tensor:
        """Whether the last update was one, on the device: norms that it depends on may have forbidden it."""
        norms = self._norms
        if norms is None:
            return torch.ones((), dtype=torch.bool, device=self.device)
        entries = entry_mask(["gg"]) | needed_entries(self.descent.coefficients, self.descent.match_norm, self.max_norm)
        return torch.isfinite(torch.stack([norms.sq_norm[0], *(norms.gram[k] for k in range(6) if entries >> k & 1)])).all()

    def draw_noise(self) -> Tensor:
        """Seed and offset of random signs, from torch's generator of the device of the first parameter."""
        return torch.randint(2**62, (2,), device=self.device)


def _rule(name: str, given: Any, kind: type, default: type | None = None) -> Any:
    if given is not None and not isinstance(given, kind):
        raise TypeError(f"{name} is {given!r}; expected an instance of optim.rules.{kind.__name__} (did you pass the class?)")
    return (default or kind)() if given is None else given
