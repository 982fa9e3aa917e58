"""A whole step of sharpness-aware training as one CUDA graph: both passes, the ascent, the update.

The host's part of a step, some hundreds of launches, is done once; a replay is one launch. What the graph computes is what the step
launched while it was captured, so shapes, addresses and every decision of the host are fixed; ``lr`` and ``rho`` are read on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_map_only

from .cuda_graph import RECORDERS
from .optim import engine
from .optim.fixed import Fixed
from .optim.live import LiveOptions
from .optim.sam import SAM
from .optim.snapshot import SEEN, Snapshot

R = TypeVar("R")


class Captured(Generic[R]):
    """What ``capture`` returns. Calling it replays the step."""

    def __init__(self, step: Callable[..., R], optimizer: SAM, inputs: tuple[Tensor, ...], warmup: int) -> None:
        self.optimizer, self._step = optimizer, step  # the step keeps alive what its launches read
        self._inputs = tuple(torch.empty_like(x, device=optimizer.device, requires_grad=False) for x in inputs)
        self._recorder = RECORDERS[optimizer.device.type](optimizer.device)
        self._options = LiveOptions(optimizer)
        snapshot = Snapshot(optimizer)
        try:
            with self._options.in_groups():
                with snapshot.watching():
                    self._warm_up(inputs, warmup)
                if outside := snapshot.outside_gradients():
                    raise ValueError(
                        f"{outside[0]} gets a gradient in step() but is no parameter of the optimizer; a graph would add to it for ever: "
                        "freeze it there (requires_grad_(False)), or give it to the optimizer"
                    )
                optimizer.zero_grad(set_to_none=True)  # gradients are to be the graph's own, which nobody can free
                buffers = snapshot.buffers()
                self._outputs = tree_map_only(Tensor, Tensor.detach, self._recorder.record(self._run))
                self._options.check_untouched()
            _check_same(buffers, snapshot.buffers())
            self._grads = [p.grad for p in optimizer.members()]
            self._seen = {name: getattr(optimizer, name) for name in SEEN}
            self._fixed = Fixed(optimizer, snapshot.modules)
        except BaseException:
            optimizer.restore()
            snapshot.restore(failed=True)
            raise
        snapshot.restore()

    def _run(self) -> R:
        return self._step(*self._inputs)

    def _load(self, inputs: tuple[Tensor, ...]) -> None:
        for own, x in zip(self._inputs, inputs, strict=True):
            own.copy_(x.detach())  # from the host: not behind the back of a caller who writes the next batch into x

    def _warm_up(self, inputs: tuple[Tensor, ...], times: int) -> None:
        stepped: list[Any] = []
        handle = register_optimizer_step_post_hook(lambda other, *_: stepped.append(other))
        try:
            for i in range(times):
                self._load(inputs)
                self._warm_up_once(last=i == times - 1)
                self._require_clean("step() left them so; finish it")
                self._options.check_untouched()
        finally:
            handle.remove()
        if len([x for x in stepped if x is self.optimizer]) < times:
            raise ValueError("step() returned without a step of the optimizer; expected a function that calls optimizer.step()")
        if others := {type(x).__name__ for x in stepped if x not in (self.optimizer, self.optimizer.base_optimizer)}:
            raise ValueError(f"step() also steps a {', '.join(sorted(others))}, whose options a graph does not follow; step it outside")

    def _warm_up_once(self, last: bool) -> None:
        if not last:
            return self._recorder.warm_up(self._run)
        try:
            return self._recorder.watch(self._run)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("synchronizing", "captur")):
                raise
            raise RuntimeError(
                f"step waits for the device, which a capture cannot ({str(error).splitlines()[0]}): take .item(), print and copies from "
                "the host out of it; the lines above say where"
            ) from error

    def __call__(self, *inputs: Tensor) -> R:
        """Copy ``inputs`` into the graph's own tensors and replay the step. Returns what ``step`` returned, in tensors that the next
        call overwrites. Waits for the device only to copy an input from the host.

        Raises:
            TypeError, ValueError: inputs of other number, shape or dtype than those captured; ``lr`` or ``rho`` that is no number.
            RuntimeError: what was captured is not what is there: rules or options other than ``lr`` and ``rho`` changed, groups edited, a
                checkpoint loaded, parameters moved or frozen, modules in another mode, buffers replaced, or perturbed. Nothing has
                been written.
        """
        self._check_inputs(inputs)
        self._require_clean("finish that step first,")
        self._fixed.check()
        self._options.refresh()
        self._load(inputs)
        self._recorder.replay()
        optimizer = self.optimizer
        engine.written(optimizer.members())
        for p, grad in zip(optimizer.members(), self._grads, strict=True):
            if p.grad is not grad:
                p.grad = grad
        for name, value in self._seen.items():
            setattr(optimizer, name, value)
        optimizer._opt_called = optimizer.base_optimizer._opt_called = True  # type: ignore[attr-defined]  # for schedulers
        return self._outputs

    def _check_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise TypeError(f"{len(inputs)} inputs given; the step was captured with {len(self._inputs)}")
        for i, (own, x) in enumerate(zip(self._inputs, inputs, strict=True)):
            if not isinstance(x, Tensor) or x.shape != own.shape or x.dtype != own.dtype:
                given = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"inputs[{i}] is {given}; the step was captured with {tuple(own.shape)} {own.dtype}: a graph has fixed shapes, so drop "
                    "or pad a last batch that is smaller, or call the step itself with it"
                )

    def _require_clean(self, why: str) -> None:
        if self.optimizer._phase == "perturbed":
            raise RuntimeError(f"the parameters are perturbed: {why} by second_step() or restore()")


def _check_same(before: Mapping[Any, Tensor | None], now: Mapping[Any, Tensor | None]) -> None:
    """Buffers, by module and name, before and after a step."""
    for (module, name), x in now.items():
        if before.get((module, name)) is not x:
            raise ValueError(
                f"buffer {name!r} of {type(module).__name__} is another tensor after every step; a graph sees only what is written in "
                "place: use copy_()"
            )


def capture(step: Callable[..., R], optimizer: SAM, *inputs: Tensor, warmup: int = 3) -> Captured[R]:
    """Capture a whole training step in a CUDA graph::

        def train_step(x, y):
            def closure():
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss
            return optimizer.step(closure)

        fast = sam_kernels.capture(train_step, optimizer, x, y)
        for x, y in batches:
            loss = fast(x, y)
            scheduler.step()

    ``step`` is run ``warmup`` times, then captured. Afterwards weights, gradients and state of the optimizer, buffers of its ``model`` and
    of every module that ran, and torch's own generators are put back; until then they take their memory a second time. Not put back is
    what else ``step`` changes: generators of yours, the scale of a ``GradScaler`` (whose ``update()`` belongs into ``step``), averages of
    weights, tensors that are attributes of a module without being buffers.

    Replays follow ``lr`` and ``rho`` of the groups, numbers as well as tensors; a change of the other options, of the optimizer's rules, of
    a module's mode, or of what is frozen is an error. ``.grad`` and ``sample_norms`` are afterwards what an eager step leaves. Dropout
    and what else draws from torch's generator of the device goes on drawing. Hooks of optimizer and modules do not run in replays. Eager
    steps may be mixed in.

    Args:
        step: a function of tensors that makes one step with ``optimizer``, by ``step(closure)``, ``step(losses, batch_size=)`` or
            ``first_step`` and ``second_step``. It may return tensors, or nests of them.
        optimizer: a ``sam_kernels.optim.SAM``, of any preset that decides nothing on the host, with a fused base, on one CUDA device.
        inputs: examples, on any device: ``step`` is called with copies beside the parameters. A replay takes others of the same shapes and
            dtypes.
        warmup: eager steps before the capture, at least 2; in the last one a wait for the device is an error.

    Raises:
        TypeError, ValueError: what cannot be captured, named: arguments before anything is run; what shows only in a step (another
            optimizer, gradients of others, ``lr`` written, buffers replaced) after it is put back.
        RuntimeError: ``step`` waits for the device. All is put back.
    """
    _check(step, optimizer, inputs, warmup)
    return Captured(step, optimizer, inputs, warmup)


def _check(step: Any, optimizer: Any, inputs: tuple[Any, ...], warmup: Any) -> None:
    if not callable(step):
        raise TypeError(f"step is {type(step).__name__}; expected a function that makes one whole step")
    if not isinstance(optimizer, SAM):
        raise TypeError(f"optimizer is {type(optimizer).__name__}; expected a sam_kernels.optim.SAM: capture(step, optimizer, *inputs)")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs[{i}] is {type(x).__name__}; expected a tensor: what does not change belongs into step itself")
        if x.layout != torch.strided or x.is_meta:
            raise ValueError(f"inputs[{i}] has layout {x.layout} on {x.device}; expected a dense tensor with memory")
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 2:
        raise ValueError(f"warmup is {warmup!r}; expected an int >= 2: the first step allocates, the last is watched for waits")
    devices = sorted({str(p.device) for p in optimizer.members()})
    if len(devices) != 1 or optimizer.device.type not in RECORDERS:
        raise ValueError(f"the parameters are on {', '.join(devices)}; expected one CUDA device: graphs are captured there")
    if optimizer._fused is None:
        raise ValueError(
            f"the base {type(optimizer.base_optimizer).__name__} is not fused, so that its step waits for the device; expected SGD, Adam, "
            "AdamW, Lion or AMSGrad"
        )
    for dtype in {p.dtype for p in optimizer.members()}:
        if "reference" in {optimizer.backend or op.chosen(optimizer.device.type, dtype) for op in engine.STEP_OPS}:
            raise ValueError(
                f"the step of {dtype} parameters would run on the reference backend, which copies numbers from the host every time; "
                "expected backend 'cuda' or 'triton', and parameters in fp32, bf16 or fp16"
            )
    if why := optimizer.batch.on_host:
        raise ValueError(f"the batch rule {type(optimizer.batch).__name__} {why}, which a graph would do once and for all; step eagerly")
    if torch.is_inference_mode_enabled():
        raise RuntimeError("capture() under inference_mode, where no gradient can be taken; call it outside")
    optimizer._require_clean("capture()")
