"""What the profiler trains: one of its own models, or what a function of the user returns.

A function returns one of two things:

* ``(model, x, y)``: a classifier under cross-entropy. ``model(x)`` are logits ``[B, classes]``, ``y`` int64 ``[B]``.
* ``(model, losses, batch_size)``: ``losses(index=None)`` returns the losses ``[len]``, with their graph, of the samples at the positions
  ``index`` (None: all), as ``SAM.step`` wants them. It may return ``(losses, norms)``, as ``ops.cross_entropy_sample`` does.

It is called once for each method, with those of ``batch_size``, ``device`` and ``dtype`` as keyword arguments that it has parameters for;
None stands for what the command line leaves open. What it does not take is done to a model and a batch that it returns, but cannot be
done to a function ``losses``.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..optim.batches import Losses, per_sample_losses
from . import Refused
from .models import MODELS, Case
from .networks import NETWORKS, TINY

HERE = str(Path(__file__).parents[1])
CASES = MODELS | NETWORKS | TINY
FORMS = "expected (model, x, y) or (model, losses, batch_size)"


@dataclass(frozen=True)
class Wish:
    """What the command line says of the batch; None: as it comes."""

    batch_size: int | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    autocast: bool = False  # forwards in bf16, weights as they are


@dataclass(frozen=True)
class Objective:
    """A model under a loss of its outputs and targets: ``objective(x, y, index)`` returns the losses of the samples at ``index``, of all
    where it is None."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Any]
    autocast: bool = False

    def __call__(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Any:
        x, y = (x, y) if index is None else (x[index], y[index])
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):  # left before the backward: it forgets its copies
            return self.loss(self.model(x), y)


@dataclass(frozen=True)
class Subject:
    label: str
    model: nn.Module
    batch_size: int
    losses: Losses
    with_norms: Losses | None  # returns also the norms at the logits

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.requires_grad)


def subject_of(name: str, wish: Wish) -> Subject:
    """The model of the profiler or of the user that ``name`` stands for, on the device and in the dtype that are wished for."""
    if wish.batch_size is not None and wish.batch_size < 1:
        raise Refused(f"--batch-size is {wish.batch_size}; expected at least 1")
    if name in CASES:
        return of_case(CASES[name], wish)
    if ":" not in name:
        raise Refused(f"MODEL is {name!r}; expected one of {', '.join(MODELS | NETWORKS)}, or module:function")
    return _tried_out(name, _of_function(name, _imported(name), wish))


def of_case(case: Case, wish: Wish) -> Subject:
    model, x, y = placed(case, wish)
    return _of_batch(case.label.rpartition(", B ")[0], model, x, y, wish.autocast, case.losses)


def placed(case: Case, wish: Wish) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and targets: where and as they are wished for."""
    case = replace(case, shape=(wish.batch_size or case.samples, *case.shape[1:]))
    model, (x, y) = case.model(), case.batch()
    dtype = wish.dtype or torch.float32
    model, x, y = model.to(wish.device, dtype), _placed(x, wish.device, dtype), y.to(wish.device)
    if case.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    return model, x, y


def _cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def _of_batch(
    label: str, model: nn.Module, x: Tensor, y: Tensor, autocast: bool, loss: Callable[[Tensor, Tensor], Tensor] = _cross_entropy
) -> Subject:
    """Norms at the logits are those of one class for each sample."""
    losses = Objective(model, loss, autocast)
    with_norms = Objective(model, ops.cross_entropy_sample, autocast) if y.dim() == 1 else None
    return Subject(label, model, len(y), partial(losses, x, y), None if with_norms is None else partial(with_norms, x, y))


def of_the_user(error: Exception) -> bool:
    """Whether an error was raised outside of this package, so that its traceback says more than its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not frames[-1].filename.startswith(HERE)


def _placed(x: Tensor, device: str, dtype: torch.dtype | None) -> Tensor:
    return x.to(device, dtype) if x.is_floating_point() and dtype is not None else x.to(device)


# ---- of the user


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise Refused(f"MODEL is {name!r}; expected module:function with the name that `import` takes, such as package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:  # a console script does not look where it is called
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        raise Refused(f"MODEL is {name!r}; there is no module {error.name!r} in {os.getcwd()} or on the Python path") from None
    for part in path.split("."):
        if not hasattr(found, part):
            inside = getattr(found, "__dict__", {})
            public = ", ".join(key for key, value in inside.items() if inspect.isfunction(value) and not key.startswith("_"))
            raise Refused(f"MODEL is {name!r}; {module_name} has no {path!r}. Its functions: {public or 'none'}")
        found = getattr(found, part)
    if not callable(found):
        raise Refused(f"MODEL is {name!r}, which is {type(found).__name__}; expected a function that returns (model, x, y)")
    function: Callable[..., Any] = found
    return function


def _of_function(name: str, function: Callable[..., Any], wish: Wish) -> Subject:
    given = _arguments(name, function, wish)
    torch.manual_seed(0)
    try:
        found = function(**given)
    except SystemExit as error:
        raise Refused(f"{name} ended with SystemExit({error.code!r}); {FORMS}") from None
    if not isinstance(found, tuple) or len(found) != 3:
        what = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise Refused(f"{name} returned {what}; {FORMS}")
    model, second, third = found
    if not isinstance(model, nn.Module):
        raise Refused(f"{name} returned {type(model).__name__} first; {FORMS}, model a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise Refused(f"{name} returned a model without trainable parameters; there is no step to measure")
    if isinstance(second, Tensor):
        return _checked_batch(name, model, second, third, wish, given)
    if callable(second):
        return _checked_losses(name, model, second, third, wish, given)
    raise Refused(f"{name} returned {type(second).__name__} second; {FORMS}, x a tensor or losses a function")


def _arguments(name: str, function: Callable[..., Any], wish: Wish) -> dict[str, Any]:
    """Those of the wishes that it takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise Refused(f"MODEL is {name!r}, whose arguments Python does not tell; expected a function written in Python") from None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wishes = {"batch_size": wish.batch_size, "device": wish.device, "dtype": wish.dtype}
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if required and key not in wishes:
            raise Refused(f"{name} needs an argument {key!r}; expected none but batch_size, device and dtype")
    return {key: value for key, value in wishes.items() if takes_all or key in parameters}


def _checked_batch(name: str, model: nn.Module, x: Tensor, y: Any, wish: Wish, given: dict[str, Any]) -> Subject:
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.dim() != 1:
        what = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise Refused(f"{name} returned {what} third; expected y int64 [B], classes. For another loss return (model, losses, batch_size)")
    if x.dim() == 0 or len(x) != len(y) or not len(y):
        raise Refused(f"{name} returned x of shape {tuple(x.shape)} and y of {tuple(y.shape)}; expected the same number of samples, > 0")
    if wish.batch_size is not None and wish.batch_size != len(y):
        if "batch_size" in given or wish.batch_size > len(y):
            raise Refused(f"{name} returned {len(y)} samples with --batch-size {wish.batch_size}; expected {wish.batch_size}")
        x, y = x[: wish.batch_size], y[: wish.batch_size]
    model = model.to(wish.device) if wish.dtype is None else model.to(wish.device, wish.dtype)
    return _of_batch(name, model, _placed(x, wish.device, wish.dtype), y.to(wish.device), wish.autocast)


def _checked_losses(name: str, model: nn.Module, losses: Losses, size: Any, wish: Wish, given: dict[str, Any]) -> Subject:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise Refused(f"{name} returned batch_size {size!r}; expected the number of samples, an int >= 1")
    if wish.autocast:
        raise Refused(f"{name} returned a function with --autocast: enter torch.autocast in it (losses cannot be changed from outside)")
    trained = [p for p in model.parameters() if p.requires_grad]
    devices, dtypes = {p.device.type for p in trained}, {p.dtype for p in trained}
    for option, wanted, has in (
        ("batch_size", wish.batch_size, {size}), ("device", wish.device, devices), ("dtype", wish.dtype, dtypes),
    ):  # fmt: skip
        if wanted is not None and has != {wanted}:
            flag, there = f"--{option.replace('_', '-')} {wanted}", ", ".join(map(str, has))
            hint = "do as its argument says" if option in given else f"give it a parameter {option} (losses cannot be changed from outside)"
            raise Refused(f"{name} returned {there} with {flag}: {hint}")
    return Subject(name, model, size, losses, losses)


def _tried_out(name: str, subject: Subject) -> Subject:
    """One forward, so that what is wrong with it is said here and not from inside of a step."""
    try:
        norms = per_sample_losses(subject.losses(), subject.batch_size)[1]
    except Exception as error:
        raise Refused(f"{name}: {error or type(error).__name__}") from (error if of_the_user(error) else None)
    return replace(subject, with_norms=None) if norms is None and subject.with_norms is subject.losses else subject
