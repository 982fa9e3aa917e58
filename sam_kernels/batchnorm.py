"""Freeze the running statistics of normalization layers, for the passes that must not count."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def frozen_batchnorm(model: nn.Module | None) -> Iterator[None]:
    """Within this context, layers in training mode normalize with batch statistics as always but record none.

    Covers BatchNorm, SyncBatchNorm, and InstanceNorm with tracking: means, variances and ``num_batches_tracked`` keep their values,
    ``model.state_dict()`` stays whole, and a switch to evaluation inside reads the running statistics. Contexts may nest; an
    exception leaves the model as it was. ``None`` freezes nothing.
    """
    changed: list[tuple[nn.Module, str, object]] = []
    try:
        for module in model.modules() if model is not None else ():
            if not module.training or getattr(module, "running_mean", None) is None:
                continue
            if isinstance(module, _InstanceNorm):  # always hands its statistics on, to be mixed with a weight of `momentum`
                changed.append((module, "momentum", module.momentum))
                module.momentum = 0.0
            elif isinstance(module, _BatchNorm) and module.track_running_stats:
                changed.append((module, "track_running_stats", True))
                module.track_running_stats = False
        yield
    finally:
        for module, name, value in reversed(changed):
            setattr(module, name, value)
