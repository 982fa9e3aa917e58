"""Freeze the running statistics of normalization layers, for the passes that must not count."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_batchnorm(model: nn.Module | None) -> Iterator[None]:
    """Within this context, layers in training mode normalize with batch statistics as always but record none.

    Covers every layer that keeps ``running_mean``: BatchNorm, SyncBatchNorm, InstanceNorm with tracking. Means, variances and
    ``num_batches_tracked`` keep their bits. Contexts may nest; an exception leaves the model as it was. ``None`` freezes nothing.
    """
    taken = []
    try:
        for module in model.modules() if model is not None else ():
            if module.training and module._buffers.get("running_mean") is not None:
                for name in _STATISTICS:
                    if name in module._buffers:
                        taken.append((module, name, module._buffers[name]))
                        module._buffers[name] = None
        yield
    finally:
        for module, name, value in taken:
            module._buffers[name] = value
