"""The ops over lists of tensors, ``inner_products``, ``ascend_`` and ``descend_``.

A native op takes the lists of a call as one table of sizes and addresses, made here and kept with the lists that an optimizer passes
again and again (``ops.lists.Row``): from step to step only the addresses of new gradients are written into it.
"""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from weakref import ref

import torch
from torch import Tensor

from ...ops.guards import KEPT
from ...ops.lists import Row, accumulator
from ...registry import OPS
from .call import TAIL, native, tail

SCHEMAS = {  # a table instead of the lists; numbers that grow with the groups as tensors
    "inner_products": "(Tensor table, float eta, Tensor(a!) gram, " + TAIL,
    "ascend_": "(Tensor table, Tensor(a!) sq_norm, Tensor(b!)? gram, Tensor(c!)? q_steps, Tensor? rho, Tensor? direction_device, "
    "Tensor hyper, float[] direction, float[] ema, float eps, bool normalize, str phase, Tensor? noise, "
    "int noise_stream, " + TAIL,
    "descend_": "(Tensor table, Tensor(a!)? steps, Tensor(b!)? gram, Tensor? sq_norm, Tensor? found_inf, Tensor? loss_scale, Tensor? lr, "
    "Tensor hyper, str base, Tensor coefficients, bool write_q, bool match_norm, float max_norm, bool decay_at_perturbed, int needed, "
    "int given, " + TAIL,
}
_OPERANDS = ("params", "stash", "h", "g", "q", "m", "v", "v_max")  # csrc/core/tensor_table.h
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---- tables


class Table:
    """The words of one call's lists: [count, place of the dtype, place of every list or -1, sizes, groups, addresses list by list]."""

    def __init__(self, lists: Sequence[Sequence[Tensor]], group: Sequence[int] | None) -> None:
        first = next(x for x in lists if x)
        self.count, self.group = len(first), group
        self.rows = [ref(x) if isinstance(x, Row) else None for x in lists]  # weak: a table must not keep gradients alive
        places = [-1] * len(lists)
        for place, k in enumerate(k for k, x in enumerate(lists) if x):
            places[k] = place
        dtype = next((x[0].dtype for x, name in zip(lists, _OPERANDS, strict=True) if x and name not in KEPT), first[0].dtype)
        self.words = array("q", [self.count, _DTYPES.index(dtype), *places, *map(Tensor.numel, first), *(group or [0] * self.count)])
        self.begin = [len(self.words) + place * self.count for place in places]
        for x in lists:
            if x:
                self.words.extend(_addresses(x))
        self.tensor = torch.frombuffer(self.words, dtype=torch.int64)

    def follow(self, lists: Sequence[Sequence[Tensor]]) -> Tensor:
        """The table for these rows, which are where those were that it was made of, or new."""
        for k, row in enumerate(lists):
            known = self.rows[k]
            if isinstance(row, Row) and row and (known is None or known() is not row):
                self.words[self.begin[k] : self.begin[k] + self.count] = row.addresses
                self.rows[k] = ref(row)
        return self.tensor


def _addresses(tensors: Sequence[Tensor]) -> Sequence[int]:
    return tensors.addresses if isinstance(tensors, Row) else array("q", list(map(Tensor.data_ptr, tensors)))


def _table(op: str, lists: Sequence[Sequence[Tensor]], group: Sequence[int] | None) -> Tensor:
    owner = next(x for x in lists if x)
    if not (isinstance(owner, Row) and all(isinstance(x, Row) for x in lists if x)):
        return Table(lists, group).tensor
    key = (op, *map(bool, lists))
    known = owner.tables.get(key)
    if known is None or known.group is not group:
        known = owner.tables[key] = Table(lists, group)
    return known.follow(lists)


@lru_cache(maxsize=256)
def _numbers(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- the ops


def _inner_products(g: list[Tensor], h: list[Tensor], q: list[Tensor], weights: list[Tensor], eta: float) -> Tensor:
    like = next(x[0] for x in (g, h, q) if x)
    gram = like.new_empty(6, dtype=accumulator(like.dtype))
    table = _table("inner_products", (weights, (), h, g, q, (), (), ()), None)
    native("inner_products")(table, eta, gram, *tail(like, max(len(g), len(h), len(q))))
    return gram


def _ascend(
    params: list[Tensor], grads: list[Tensor], stash: list[Tensor], q: list[Tensor], sq_norm: Tensor, gram: Tensor | None,
    q_steps: Tensor | None, rho: Tensor | None, direction_device: Tensor | None, group: list[int], hyper: list[float],
    direction: list[float], ema: list[float], eps: float, normalize: bool, phase: str, noise: Tensor | None, noise_stream: int,
) -> None:  # fmt: skip
    if not params:  # only scalars to write
        return OPS["ascend_"].implementations["reference"].function(
            params, grads, stash, q, sq_norm, gram, q_steps, rho, direction_device, group, hyper, direction, ema, eps, normalize, phase,
            noise, noise_stream,
        )  # fmt: skip
    table = _table("ascend_", (params, stash, (), grads, q, (), (), ()), group)
    native("ascend_")(table, sq_norm, gram, q_steps, rho, direction_device, _numbers(tuple(hyper)), direction, ema, eps, normalize, phase,
                       noise, noise_stream, *tail(sq_norm, len(params)))  # fmt: skip
    return None


def _descend(
    params: list[Tensor], stash: list[Tensor], h: list[Tensor], g: list[Tensor], q: list[Tensor], m: list[Tensor], v: list[Tensor],
    v_max: list[Tensor], steps: Tensor | None, gram: Tensor | None, sq_norm: Tensor | None, found_inf: Tensor | None,
    loss_scale: Tensor | None, lr: Tensor | None, group: list[int], hyper: list[float], base: str, coefficients: list[float],
    write_q: bool, match_norm: bool, max_norm: float, decay_at_perturbed: bool, needed: int, given: int,
) -> None:  # fmt: skip
    if params:
        table = _table("descend_", (params, stash, h, g, q, m, v, v_max), group)
        native("descend_")(table, steps, gram, sq_norm, found_inf, loss_scale, lr, _numbers(tuple(hyper)), base,
                            _numbers(tuple(coefficients)), write_q, match_norm, max_norm, decay_at_perturbed, needed, given,
                            *tail(params[0], len(params)))  # fmt: skip


FUNCTIONS = {"inner_products": _inner_products, "ascend_": _ascend, "descend_": _descend}
