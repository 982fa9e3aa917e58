"""What a step does to the parameters: clean -> perturbed -> clean, around the launches of engine.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo as eager  # as torch.optim does: options are data, not constants of a graph

from ..spans import spanned
from . import amp, engine
from .bucket import Bucket
from .generic import step_base
from .rules import Descent, Gradient, Plain
from .shared import SharedState


class Phases(SharedState):
    """The phases of a step; ``SAM`` puts them in order."""

    ascent: Gradient
    descent: Descent
    max_norm: float
    normalize: bool
    perturb_eps: float
    capturable: bool
    _norms: Bucket | None = None  # a bucket of the last ascent
    _first_scale: Tensor | None = None  # of the gradients of the last ascent, where it is known

    @eager
    @spanned("ascend")
    @torch.no_grad()
    def _ascend(self, zero_grad: bool, scaler: Any = None, own: bool = False, keep: bool = False) -> None:
        """``own``: nobody else writes the gradients once ``.grad`` lets go of them; ``keep``: hold them whatever the descent reads."""
        self._require_clean("first_step()")
        self._refresh_buckets()
        selection = self._collect()
        for bucket in self._get_buckets():
            bucket.finish()
        self._first_scale = amp.scale_of(self, scaler)
        self._norms = selection[0][0].bucket if selection else self._norms
        if selection:
            direction = self.ascent.direction
            if self._first_scale is not None:
                amp.set_first_scale(selection, self._first_scale, direction)
            scaled = self._first_scale is not None
            engine.ascend_all(selection, self._settings(), direction, scaled, self.normalize, self.perturb_eps)
            if keep or self.descent.keeps_g(self.max_norm):
                self._keep_gradients(selection, own)
        self._phase = "perturbed" if selection else "empty"
        if zero_grad:
            self.zero_grad(set_to_none=True)

    @eager
    @spanned("restore")
    @torch.no_grad()
    def restore(self) -> None:
        """Put the clean weights back, bit for bit, without an update. Does nothing where nothing is perturbed."""
        for bucket in self._buckets or ():
            if bucket.perturbed is not None:
                engine.restore(bucket.perturbed, self.backend)
            bucket.finish()
        self._phase = "clean"

    @eager
    @spanned("perturb")
    @torch.no_grad()
    def perturb_signs(self, noise: Tensor, delta: float) -> None:
        """Move every weight by ``delta`` up or down at random, until ``restore()``."""
        self._require_clean("perturb_signs()")
        self._refresh_buckets()
        self._follow_parameters()
        launches = engine.signs(self._get_buckets(), self._settings(), noise, delta)  # all checks before any launch
        self._phase = "perturbed"
        try:
            launches()
        except BaseException:
            self.restore()
            raise

    @eager
    @spanned("descend")
    @torch.no_grad()
    def _descend(self) -> None:
        selection = self._collect()
        ascended = self._phase == "perturbed"
        update = engine.Update(self._fused or "none", self.descent if ascended else Plain(), self.max_norm, ascended)
        update = replace(amp.scaled_update(self, update, selection), lost=self._settle(selection))
        if selection and self._fused:
            engine.descend_all(selection, self._settings(), update, self.state)
        elif selection:
            step_base(self.base_optimizer, selection, update, self.backend)
        for bucket in self._get_buckets():
            bucket.finish()
        self._phase = "clean"
        self.base_optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler may have been given the base: it was stepped

    def _settle(self, selection: engine.Selection) -> bool:
        """Clean weights for all that will not be updated, a stash for all that will be. Whether there are any of the first."""
        lost = False
        present = {part.bucket: part for part, _ in selection}
        source = next((bucket for bucket in self._get_buckets() if bucket.perturbed), None)
        for bucket in self._get_buckets():
            part, perturbed = present.get(bucket), bucket.perturbed
            if part is perturbed:
                continue
            here, there = (set(x.indices) if x is not None else set() for x in (part, perturbed))
            if gone := tuple(sorted(there - here)):
                engine.restore(bucket.part(gone), self.backend)
                lost = True
            if late := sorted(here - there):  # first gradient only now: its clean weight is its weight
                torch._foreach_copy_([bucket.stash[i] for i in late], [bucket.params[i] for i in late])
            if perturbed is None and source is not None:  # the ascent's norms are those of a bucket that took part in it
                for mine, other in zip((bucket.sq_norm, bucket.gram), (source.sq_norm, source.gram), strict=True):
                    mine.copy_(other)
        return lost

    def _keep_gradients(self, selection: engine.Selection, own: bool) -> None:
        for part, grads in selection:
            for i, grad in zip(part.indices, grads, strict=True):
                taken = own and grad._base is None
                part.bucket.grads[i] = grad if taken else grad.clone(memory_format=torch.preserve_format)

    def _settings(self) -> engine.Settings:
        return engine.Settings(self.param_groups, self.backend, self.capturable, self.batch.radius)
