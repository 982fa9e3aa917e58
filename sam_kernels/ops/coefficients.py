"""What a descent combines, as data: coefficient vectors over a fixed basis of device scalars.

With the Gram entries of g (first gradient), h (second gradient) and q (a kept vector),

    basis = (1, |g|/|h|, g.h/|h|^2, g.h/|g|^2, |g|/|q|)          x/0 is taken as 0

and for each of the three outputs  u (what the base update sees),  direct (a term beside it)  and  q (the vector kept for later)

    output = sum over inputs i in (h, g, q) of  (coefficient[output, i] . basis) * i

Coefficients that depend on this step's gradients exist only on the device, so they travel as these 45 host floats and the
kernel multiplies them out once it has the norms. A published algorithm is a row of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

GRAM = ("gg", "gh", "hh", "gq", "hq", "qq")  # the order of every Gram vector in the project
BASIS = ("1", "|g|/|h|", "g.h/|h|^2", "g.h/|g|^2", "|g|/|q|")
INPUTS = ("h", "g", "q")
OUTPUTS = ("u", "direct", "q")
_BASIS_NEEDS = ((), ("gg", "hh"), ("gh", "hh"), ("gh", "gg"), ("gg", "qq"))

Vector = float | Sequence[float]


@dataclass(frozen=True)
class Combination:
    """Coefficients of one descent: for each output a mapping from input (``"h"``, ``"g"``, ``"q"``) to its vector over ``BASIS``.

    A plain number stands for that multiple of the first basis element, and missing trailing entries are zero:
    ``Combination(u={"h": 1.0})`` is SAM, ``Combination(u={"h": (1, 0, alpha), "g": -alpha})`` is GSAM.
    """

    u: Mapping[str, Vector] = field(default_factory=lambda: {"h": 1.0})
    direct: Mapping[str, Vector] = field(default_factory=dict)
    q: Mapping[str, Vector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flat  # noqa: B018  (an unknown input or a bad vector is an error here, not in the middle of a step)

    @cached_property
    def flat(self) -> tuple[float, ...]:
        """The 45 floats in the order [output][input][basis]."""
        flat: list[float] = []
        for name, row in zip(OUTPUTS, (self.u, self.direct, self.q), strict=True):
            if unknown := set(row) - set(INPUTS):
                raise ValueError(f"coefficients.{name}: unknown inputs {sorted(unknown)}; expected a subset of {INPUTS}")
            for key in INPUTS:
                value = row.get(key, 0.0)
                vector = [float(value)] if isinstance(value, int | float) else [float(x) for x in value]
                if len(vector) > len(BASIS) or not all(map(math.isfinite, vector)):
                    raise ValueError(f"coefficients.{name}[{key!r}] is {value}; expected up to {len(BASIS)} finite numbers over {BASIS}")
                flat += vector + [0.0] * (len(BASIS) - len(vector))
        return tuple(flat)

    @cached_property
    def inputs(self) -> frozenset[str]:
        """The inputs that any output depends on."""
        rows = (self.u, self.direct, self.q)
        return frozenset(key for key in INPUTS if any(any(_vector(row.get(key, 0.0))) for row in rows))

    def reads(self, key: str) -> bool:
        """Whether any output depends on the input ``key``."""
        return key in self.inputs

    @cached_property
    def needs(self) -> dict[tuple[bool, bool], int]:
        """Masks found by ``needed_entries``, by (match_norm, whether there is a limit)."""
        return {}

    def writes_q(self) -> bool:
        """Whether q is an output."""
        return any(any(_vector(value)) for value in self.q.values())


PLAIN = Combination()


def _vector(value: Vector) -> Sequence[float]:
    return (value,) if isinstance(value, int | float) else value


def entry_mask(names: Sequence[str]) -> int:
    """Bit mask of Gram entries, bit k for ``GRAM[k]``."""
    if unknown := set(names) - set(GRAM):
        raise ValueError(f"given names unknown Gram entries {sorted(unknown)}; expected a subset of {GRAM}")
    return sum(1 << GRAM.index(name) for name in set(names))


def needed_entries(combination: Combination, match_norm: bool, max_norm: float) -> int:
    """Mask of the Gram entries that a descent with these coefficients has to know."""
    key = (bool(match_norm), math.isfinite(max_norm))
    if key not in combination.needs:
        combination.needs[key] = _find_entries(combination, *key)
    return combination.needs[key]


def _find_entries(combination: Combination, match_norm: bool, limited: bool) -> int:
    names = {"gg"} if match_norm else set()
    for row in (combination.u, combination.direct, combination.q):
        for value in row.values():
            for k, x in enumerate(_vector(value)):
                names |= set(_BASIS_NEEDS[k]) if x else set()
    if match_norm or limited:
        used = [key for key in INPUTS if key in combination.u and any(_vector(combination.u[key]))]
        names |= {name for name in GRAM if name[0] in used and name[1] in used}
    return entry_mask(sorted(names))


def check_sources(
    combination: Combination, lists: Mapping[str, Sequence[Tensor] | None], match_norm: bool, max_norm: float,
    given: Sequence[str], gram: Tensor | None, idle: bool,
) -> tuple[int, int]:  # fmt: skip
    """Masks (needed, given) of Gram entries, once everything that they and the combination read is there. ``idle``: a pure restore."""
    needed, known = 0 if idle else needed_entries(combination, match_norm, max_norm), entry_mask(given)
    if known and gram is None:
        raise ValueError(f"given names {tuple(given)} but gram is None; pass the [6] tensor that holds them")
    for key in INPUTS:
        if lists[key] is not None:
            continue
        if not idle and (combination.reads(key) or (key == "q" and combination.writes_q())):
            raise ValueError(f"coefficients involve {key}, which is None; pass the list")
        if needed & ~known & entry_mask([name for name in GRAM if key in name]):
            raise ValueError(f"the norms need {key}, which is None; pass the list, or the entries in gram with given=")
    return needed, known


def resolve(flat: Sequence[float], gram: Tensor, match_norm: bool, max_norm: float, loss_scale: Tensor | None = None) -> Tensor:
    """Reference: the 3x3 factors ``[output][input]`` of one descent, on the device of ``gram`` and in its dtype. ``loss_scale``: what
    (g, h), and with them the entries of ``gram``, were multiplied by; norms, limits and outputs are those of the true gradients."""

    def ratio(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, x / y, torch.zeros_like(x))

    of_g, of_h = torch.ones_like(gram[:2]) if loss_scale is None else 1 / loss_scale.to(gram)
    gg, gh, hh, gq, hq, qq = (
        x * unit for x, unit in zip(gram.unbind(), (of_g * of_g, of_g * of_h, of_h * of_h, of_g, of_h, 1.0), strict=True)
    )
    g, h, q = gg.sqrt(), hh.sqrt(), qq.sqrt()
    basis = torch.stack((torch.ones_like(gg), ratio(g, h), ratio(gh, hh), ratio(gh, gg), ratio(g, q)))
    table = torch.tensor(list(flat), dtype=gram.dtype, device=gram.device).view(3, 3, len(BASIS))
    basis = torch.where(torch.any(table.view(9, -1) != 0, dim=0), basis, torch.zeros_like(basis))  # unused entries may be anything
    factors = (table * basis).sum(-1)
    if match_norm or math.isfinite(max_norm):
        quadratic = torch.stack((hh, gh, hq, gh, gg, gq, hq, gq, qq)).view(3, 3)
        u = factors[0]
        pairs = (u[:, None] * u[None, :]) != 0
        norm = torch.where(pairs, u[:, None] * u[None, :] * quadratic, torch.zeros_like(quadratic)).sum().clamp(min=0).sqrt()
        scale = ratio(g, norm) if match_norm else torch.ones_like(norm)
        if math.isfinite(max_norm):
            scale = scale * (max_norm / (scale * norm + 1e-6)).clamp(max=1.0)
        factors = torch.cat((u * scale, factors[1], factors[2])).view(3, 3)
    return factors * torch.stack((of_h, of_g, torch.ones_like(of_g)))
