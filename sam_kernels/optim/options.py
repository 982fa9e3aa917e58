"""Options of parameter groups -> the flat tables of the ops, checked when they change and not at every step.

A table is kept with its bucket under the numbers that it was made from. Options that are tensors may change in place, so that a table
with one of them is made anew each time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.bases import BASES, checked_table
from ..ops.lists import hyper_table
from .bases import options_of
from .bucket import Bucket
from .state import names_of

Group = dict[str, Any]
Numbers = list[float]


def column(values: list[Any], bucket: Bucket, capturable: bool) -> tuple[Numbers, Tensor | None]:
    """One option of every group as host numbers, or as a device tensor where one of them lives there."""
    if any(isinstance(x, Tensor) and (capturable or x.is_cuda) for x in values):
        like = bucket.sq_norm
        if len(values) == 1 and values[0].dtype == like.dtype and values[0].device == like.device:
            return [0.0], values[0].reshape(1)
        parts = [x.to(like).reshape(()) if isinstance(x, Tensor) else torch.full_like(like[0], float(x)) for x in values]
        return [0.0] * len(values), torch.stack(parts)
    return values, None  # hyper_table checks them


def _kept(bucket: Bucket, key: str, rows: list[tuple[Any, ...]], make: Callable[[], Any]) -> Any:
    if any(isinstance(x, Tensor) for row in rows for x in row):
        return make()
    known = bucket.tables.get(key)
    if known is None or known[0] != rows:
        known = bucket.tables[key] = (rows, make())
    return known[1]


def ascent_table(bucket: Bucket, groups: list[Group], capturable: bool, radius: float = 1.0) -> tuple[Numbers, Tensor | None]:
    """rho times ``radius``, eta, adaptive, maximize of every group; rho as a tensor where it is one on the device."""

    def make() -> tuple[Numbers, Tensor | None]:
        rho, rho_device = column([row[0] for row in rows], bucket, capturable)
        columns = {"rho": rho, "eta": [row[1] for row in rows], "adaptive": [bool(row[2]) for row in rows]}
        columns["maximize"] = [bool(row[3]) for row in rows]
        return hyper_table(len(rows), columns, nonnegative=("rho", "eta")), rho_device

    radii = [group["rho"] if radius == 1 else radius * group["rho"] for group in groups]
    rows = [(rho, group["eta"], group["adaptive"], group.get("maximize", False)) for rho, group in zip(radii, groups, strict=True)]
    return _kept(bucket, "ascent", rows, make)


def descent_table(
    bucket: Bucket, groups: list[Group], base: str, capturable: bool
) -> tuple[Numbers, Tensor | None, Sequence[dict[str, str]]]:
    """The options of the base update, lr as a tensor where it is one on the device, and the state that every group uses."""

    def make() -> tuple[Numbers, Tensor | None, Sequence[dict[str, str]]]:
        columns = {name: [o[name] for o in options] for name in BASES[base].hyper}
        columns["lr"], lr_device = column(columns["lr"], bucket, capturable)
        return checked_table(base, len(options), columns), lr_device, [names_of(base, o) for o in options]

    options = [options_of(base, group) for group in groups]
    return _kept(bucket, base, [tuple(o.values()) for o in options], make)
