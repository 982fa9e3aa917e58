"""One list of groups and one state for the wrapper and its base: groups, buckets, checkpoints, copies."""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..ops.lists import accumulator, check_aliasing, is_dense
from . import engine
from .bases import options_of
from .batches import BatchRule
from .bucket import Bucket
from .checkpoints import BATCH, RULE, check_groups, check_shape, check_state, checked_batch
from .state import names_of

if TYPE_CHECKING:
    from .sam import SAM

_PEER_KEYS = ("old_p", "e_w")  # what other SAM wrappers leave in their checkpoints
_NOT_COPIED = ("step", "_buckets", "_norms", "_warned_capturable_if_run_uncaptured", "_zero_grad_profile_name")


class SharedState(Optimizer):
    """What ``SAM`` is besides its two phases: an optimizer whose groups and state are those of ``base_optimizer``."""

    base_optimizer: Optimizer
    backend: str | None
    batch: BatchRule
    _own_defaults: dict[str, Any]
    _buckets: list[Bucket] | None = None
    _fused: str | None = None
    _membership: list[list[Tensor]]  # the parameters of every group, when the buckets were made
    batch_state: dict[str, Any]  # what the batch rule keeps from step to step
    _phase = "clean"  # or "perturbed", or "empty": a first step that found no gradient

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
            self._check_members()
        except (TypeError, ValueError, RuntimeError):
            del self.param_groups[before:]
            raise
        self._drop_buckets()
        return None

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict with ``rho``, ``adaptive``, ``eta`` in the groups, and the state of the batch rule, where it
        keeps one, beside them under ``"batch"``. Raises while perturbed."""
        self._require_clean("state_dict()")
        self._publish()
        state = super().state_dict()
        return {**state, BATCH: {RULE: type(self.batch).__name__, **self.batch_state}} if self.batch_state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer, of its plain base, or of another SAM wrapper (whose saved weights are ignored)."""
        self._require_clean("load_state_dict()")
        check_shape(state_dict)
        saved = list(state_dict["param_groups"])
        check_groups(saved, self.param_groups, self._fused)
        mine = [{key: group[key] for key in self._own_defaults} for group in self.param_groups]  # for groups of a plain optimizer
        groups = [{**own, **theirs} for own, theirs in zip(mine, saved, strict=True)]
        for group in groups:
            check_group({**group, "params": []})
        state = {k: {n: v for n, v in s.items() if n not in _PEER_KEYS} for k, s in state_dict["state"].items()}
        members = self.members()
        check_state(members, groups, state, self._fused)
        with torch.inference_mode(False):  # it outlives the mode
            batch_state = checked_batch(state_dict.get(BATCH), type(self.batch).__name__, self.batch.new_state(cast("SAM", self)))
        super().load_state_dict({**state_dict, "state": {k: s for k, s in state.items() if s}, "param_groups": groups})
        keys = [key for group in saved for key in group["params"]]
        for p, key in zip(members, keys, strict=True):  # torch has rounded the state to the dtype of the parameter
            for name, value in state.get(key, {}).items():
                if self._fused and isinstance(value, Tensor) and value.shape == p.shape and p.dtype != accumulator(p.dtype):
                    self.state[p][name] = value.detach().to(p.device, accumulator(p.dtype), copy=True)
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        self._share()
        self._buckets, self.batch_state = None, batch_state

    def __getstate__(self) -> dict[str, Any]:
        self._require_clean("copying or pickling")
        self._publish()
        return {k: v for k, v in self.__dict__.items() if k not in _NOT_COPIED and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._buckets = None
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
            bucket.state.publish(self.state)

    def _drop_buckets(self) -> None:
        self._publish()
        self._buckets = None

    def restore(self) -> None:
        raise NotImplementedError

    def members(self) -> list[Tensor]:
        """The parameters of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def device(self) -> torch.device:
        """Of the first parameter: where what is drawn for a step lives."""
        return next(p.device for group in self.param_groups for p in group["params"])

    @property
    def devices(self) -> set[torch.device]:
        """Of all parameters."""
        return {p.device for p in self.members()}

    def _get_buckets(self) -> list[Bucket]:
        if self._buckets is None:
            self._check_members()
            members: dict[Any, tuple[list[Tensor], list[int]]] = {}
            for row, group in enumerate(self.param_groups):
                for p in group["params"]:
                    params, rows = members.setdefault((p.device, p.dtype), ([], []))
                    params.append(p)
                    rows.append(row)
            with torch.inference_mode(False):  # buffers outlive the mode
                self._buckets = [Bucket(params, rows) for params, rows in members.values()]
            self._membership = [list(group["params"]) for group in self.param_groups]
            if self._fused and self.state:  # a state that does not fit is refused before anything is perturbed
                used = [names_of(self._fused, options_of(self._fused, group)) for group in self.param_groups]
                for bucket in self._buckets:
                    known = [i for i, p in enumerate(bucket.params) if self.state.get(p)]
                    bucket.state.adopt(self.state, self._fused, used, bucket.rows, known)
        return self._buckets

    def _same_members(self) -> bool:
        held, now = self._membership, self.param_groups
        return len(held) == len(now) and all(
            len(a) == len(b["params"]) and all(map(is_, a, b["params"])) for a, b in zip(held, now, strict=True)
        )

    def _refresh_buckets(self) -> None:
        """Between steps, follow edits of the groups."""
        if self._buckets is not None and not self._same_members():
            self._drop_buckets()

    def _follow_parameters(self) -> None:
        """Between steps, follow parameters that were cast, moved or laid out anew: ``_collect`` does so where there are gradients."""
        moved = [bucket for bucket in self._get_buckets() if bucket.moved()]
        if any(not bucket.fits() for bucket in moved):
            return self._drop_buckets()
        for bucket in moved:
            self._check_members()
            bucket.follow()
        return None

    def _collect(self) -> engine.Selection:
        """The parameters with a gradient, by bucket. Between the passes, a change of the model or the groups is an error, raised once
        the clean weights are back; between steps it is followed."""
        try:
            if self._phase == "perturbed" and not self._same_members():
                raise engine.StaleBucketError
            return engine.collect(self._get_buckets(), self._check_members)
        except engine.StaleBucketError:
            if self._phase != "perturbed":
                self._drop_buckets()
                return engine.collect(self._get_buckets(), self._check_members)
            self.restore()
            raise RuntimeError(
                "the parameters were cast, moved, laid out anew, or their groups edited between the two passes; the clean weights are "
                "restored: make such changes between steps"
            ) from None

    def _check_members(self) -> None:
        """No parameter may share memory with another, and the backend that was asked for must serve them all."""
        for group in self.param_groups:
            check_group(group)
        params = self.members()
        check_aliasing({"params": params}, {})
        if self.backend is not None:
            for device, dtype in {(p.device.type, p.dtype) for p in params}:
                for op in engine.STEP_OPS:
                    op.named(self.backend, device, dtype)

    def _require_clean(self, what: str) -> None:
        if self._phase == "perturbed":
            raise RuntimeError(f"{what} while the parameters are perturbed; call second_step() or restore() first")


def check_group(group: dict[str, Any]) -> None:
    for key in ("rho", "eta"):
        value = group[key]
        if isinstance(value, Tensor) and (value.numel() != 1 or value.is_cuda):  # a value on a GPU is not looked at
            if value.numel() != 1:
                raise ValueError(f"{key} is a tensor of shape {tuple(value.shape)}; expected one element per group")
            continue
        if not isinstance(value, int | float | Tensor) or not 0 <= value < float("inf"):
            raise ValueError(f"{key} is {value!r}; expected a finite number >= 0")
    if not isinstance(group["adaptive"], bool | int):
        raise TypeError(f"adaptive is {group['adaptive']!r}; expected True or False")
    for i, p in enumerate(group["params"]):
        if torch.nn.parameter.is_lazy(p):
            raise ValueError(f"params[{i}] is not initialized yet; run the model once before constructing the optimizer")
        if p.is_neg():
            raise TypeError(f"params[{i}] is a negated view; expected plain memory: use .resolve_neg()")
        if p.is_complex() or not p.is_floating_point():
            raise TypeError(f"params[{i}] is {p.dtype}; expected a real floating-point parameter")
        if p.layout != torch.strided or not is_dense(p):
            raise ValueError(
                f"params[{i}] has layout {p.layout} and strides {p.stride() if p.layout == torch.strided else None}; expected dense"
            )
