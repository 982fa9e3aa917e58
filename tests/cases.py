"""The inputs of every op: named lists of shapes, and named options. A case is data; test_ops.py holds the checks.

Tensors sit inside guard bands of a sentinel, outputs are poisoned with NaN. ``make`` returns the keyword arguments of the public
function; lists whose name is in ``Case.written`` may change, everything else must keep its bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_kernels.ops import Combination

SENTINEL, BAND = -777.0, 32
Kwargs = dict[str, Any]

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "no_tensors": [],
    "one_element": [(1,)],
    "scalars": [(), (2,), ()],
    "small": [(4, 3), (5,), (2, 3, 4), (1,), (33,)],
    "empties": [(0,), (3, 4), (0, 5), (7,), (0,)],
    "chunk_edges": [(8191,), (8192,), (8193,), (16383,), (16384,), (16385,), (3, 5477)],
}
MANY = [(3,)] * 1030  # more tensors than the kernel arguments of one launch hold, more chunks than Triton's reduction has programs


def place(x: Tensor, offset: int) -> Tensor:
    """A copy of x with its strides, ``offset`` elements after a 64-byte boundary, between two bands of the sentinel."""
    buffer = torch.full((x.numel() + 2 * BAND + offset,), SENTINEL, dtype=x.dtype, device=x.device)
    return torch.as_strided(buffer, x.shape, x.stride(), BAND + offset).copy_(x)


def bands_intact(x: Tensor) -> bool:
    buffer = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    before, after = buffer[: x.storage_offset()], buffer[x.storage_offset() + x.numel() :]
    return bool((before == SENTINEL).all() and (after == SENTINEL).all())


@dataclass(frozen=True)
class Lists:
    """Fresh random lists: ``make("w")`` gives one list; views start ``offset`` elements past alignment, or each elsewhere."""

    shapes: tuple[tuple[int, ...], ...]
    seed: int = 0
    ragged: bool = False
    strided: bool = False

    def make(self, key: str, scale: float = 1.0, fill: float | None = None) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + sum(map(ord, key)))
        out = []
        for i, shape in enumerate(self.shapes):
            x = torch.randn(shape, generator=generator) * scale if fill is None else torch.full(shape, fill)
            if self.strided and len(shape) == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            elif self.strided and len(shape) == 2:
                x = x.t().contiguous().t()
            out.append(place(x, i % 17 if self.ragged else 0))
        return out


LISTS: dict[str, Lists] = {name: Lists(tuple(shapes)) for name, shapes in SHAPES.items()} | {
    "every_offset": Lists((*((40 + i,) for i in range(17)), (8200,), (16390,)), ragged=True),
    "strided": Lists(((2, 3, 4, 5), (6, 7), (8,)), strided=True),
    "many": Lists(tuple(MANY)),
    "streamed": Lists(
        ((64,), (700_001,), (7,), (1000, 400), (3,), (65,)), ragged=True
    ),  # beyond what the CPU kernels expect to stay in cache
}
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    op: str
    id: str
    lists: str
    options: Callable[[Lists], Kwargs]
    written: tuple[str, ...]

    def make(self) -> Kwargs:
        return self.options(LISTS[self.lists])


def _groups(x: Lists) -> list[int]:
    return [i % 3 for i in range(len(x.shapes))]


# ---- inner_products

INNER: dict[str, Callable[[Lists], Kwargs]] = {
    "g": lambda x: {"g": x.make("g")},
    "gh": lambda x: {"g": x.make("g"), "h": x.make("h")},
    "gq": lambda x: {"g": x.make("g"), "q": x.make("q")},
    "ghq": lambda x: {"g": x.make("g"), "h": x.make("h"), "q": x.make("q")},
    "weighted": lambda x: {"g": x.make("g"), "weights": x.make("w"), "eta": 0.01},
    "ghq_weighted": lambda x: {"g": x.make("g"), "h": x.make("h"), "q": x.make("q"), "weights": x.make("w")},
    "inf": lambda x: {"g": spoil(x.make("g"), INF), "h": x.make("h")},
}

# ---- ascend_


def spoil(tensors: list[Tensor], value: float) -> list[Tensor]:
    """Put ``value`` into the last element of the last non-empty tensor."""
    for x in reversed(tensors):
        if x.numel():
            torch.as_strided(x, (x.numel(),), (1,), x.storage_offset())[-1] = value
            break
    return tensors


def _ascend(x: Lists, **options: Any) -> Kwargs:
    base = {"params": x.make("w"), "grads": x.make("g", 0.1), "stash": x.make("stash", fill=NAN), "rho": 0.05}
    return base | {"sq_norm": torch.full((1,), NAN)} | options


def _noise(x: Lists, **options: Any) -> Kwargs:
    return _ascend(x, grads=None, noise=torch.tensor([0x123456789ABCDEF, 41]), **options)


def _friendly(x: Lists, steps: float) -> Kwargs:
    q = x.make("q", 0.1) if steps else x.make("q", fill=0.0)
    return _ascend(x, q=q, direction=(1.0, -0.9), ema=(0.6, 0.4), q_steps=torch.tensor([steps]))


ASCEND: dict[str, Callable[[Lists], Kwargs]] = {
    "sam": _ascend,
    "asam": lambda x: _ascend(x, adaptive=True, eta=0.01, rho=0.5),
    "unnormalized": lambda x: _ascend(x, normalize=False, rho=0.3),
    "gram": lambda x: _ascend(x, gram=torch.full((6,), NAN)),
    "maximize": lambda x: _ascend(x, maximize=True),
    "rho_zero": lambda x: _ascend(x, rho=0.0),
    "groups": lambda x: _ascend(
        x, group=_groups(x), rho=[0.05, 0.0, 0.2], adaptive=[False, False, True], eta=[0.0, 0.0, 0.1], maximize=[False, True, False],
        gram=torch.full((6,), NAN),
    ),
    "device_rho": lambda x: _ascend(x, group=_groups(x), rho=torch.tensor([0.1, 0.0, 0.3]), eta=[0.0] * 3),
    "friendly_first": lambda x: _friendly(x, 0.0),
    "friendly": lambda x: _friendly(x, 3.0),
    "ema_alone": lambda x: _ascend(x, q=x.make("q", fill=NAN), ema=(0.6, 0.4), q_steps=torch.zeros(1)),
    "unused_g_is_inf": lambda x: _ascend(x, grads=spoil(x.make("g"), INF), q=x.make("q"), direction=(0.0, 1.0)),
    "momentum": lambda x: _ascend(x, grads=None, q=x.make("q"), direction=(0.0, -1.0)),
    "device_direction": lambda x: _ascend(x, q=x.make("q"), direction=torch.tensor([0.7, -0.2]), normalize=False),
    "adaptive_direction": lambda x: _ascend(x, q=x.make("q"), direction=(0.5, 0.25), adaptive=True),
    "norm_alone": lambda x: _ascend(x, stash=None, phase="norm", gram=torch.full((6,), NAN), adaptive=True, eta=0.1),
    "given": lambda x: _ascend(x, sq_norm=torch.tensor([4.0]), phase="update"),
    "zero": lambda x: _ascend(x, grads=x.make("g", fill=0.0)),
    "inf": lambda x: _ascend(x, grads=spoil(x.make("g"), INF), gram=torch.full((6,), NAN)),
    "nan": lambda x: _ascend(x, grads=spoil(x.make("g"), NAN), q=x.make("q"), ema=(0.9, 0.1), q_steps=torch.tensor([2.0])),
    "noise": lambda x: _noise(x, rho=0.01, normalize=False),
    "noise_normalized": lambda x: _noise(x, direction=(-2.0, 0.0), maximize=True, noise_stream=7),
    "noise_adaptive": lambda x: _noise(x, adaptive=True, eta=0.01, rho=0.5),
    "noise_groups": lambda x: _noise(
        x, group=_groups(x), rho=[0.05, 0.0, 0.2], adaptive=[False, False, True], eta=[0.0, 0.0, 0.1], maximize=[True, True, False],
        gram=torch.full((6,), NAN),
    ),
    "noise_q": lambda x: _noise(x, q=x.make("q"), direction=torch.tensor([0.7, -0.2]), adaptive=True),
    "noise_norm": lambda x: _noise(x, stash=None, phase="norm", q=x.make("q"), direction=(0.5, 1.5), gram=torch.full((6,), NAN)),
    "noise_given": lambda x: _noise(x, sq_norm=torch.tensor([4.0]), phase="update"),
    "noise_inf_q": lambda x: _noise(x, q=spoil(x.make("q"), INF), direction=(1.0, 1.0)),
    "noise_unused": lambda x: _noise(x, q=x.make("q"), direction=(0.0, 1.0)),
    "given_inf": lambda x: _ascend(x, sq_norm=torch.tensor([INF]), phase="update"),
}  # fmt: skip

# ---- descend_

GSAM = Combination(u={"h": (1.0, 0.0, 0.3), "g": -0.3})
WSAM = Combination(u={"g": 1.0}, direct={"h": 9.0, "g": -9.0})
LOOK_REFRESH = Combination(u={"h": 1.0}, q={"h": 1.0, "g": (0.0, 0.0, 0.0, -1.0)})
LOOK_REUSE = Combination(u={"g": 1.0, "q": (0.0, 0.0, 0.0, 0.0, 0.7)})
VSAM_REFRESH = Combination(u={"h": 1.0}, q={"h": 1.0, "g": -1.0, "q": 0.5})


def _descend(x: Lists, **options: Any) -> Kwargs:
    base = {"params": x.make("w"), "stash": x.make("stash"), "h": x.make("h", 0.1), "base": "sgd", "lr": 0.1}
    return {k: v for k, v in (base | options).items() if v is not None}


def _momentum(x: Lists, steps: float = 1.0, **options: Any) -> Kwargs:
    buffers = x.make("m", fill=NAN) if steps == 0 else x.make("m", 0.1)
    counts = torch.full((len(x.shapes),), steps)
    return _descend(x, **({"momentum": 0.9, "weight_decay": 5e-4, "m": buffers, "steps": counts} | options))


def _adam(x: Lists, steps: float = 3.0, **options: Any) -> Kwargs:
    fill = NAN if steps == 0 else None
    state = {"m": x.make("m", 0.3, fill), "v": [y.abs_() for y in x.make("v", 0.01, fill)], "steps": torch.full((len(x.shapes),), steps)}
    return _descend(x, **({"base": "adam", "lr": 0.01, "weight_decay": 0.02} | state | options))


def _amsgrad(x: Lists, steps: float = 3.0, **options: Any) -> Kwargs:
    v_max = x.make("v_max", fill=NAN) if steps == 0 else [y.abs_() for y in x.make("v_max", 0.01)]
    return _adam(x, steps, **({"amsgrad": True, "v_max": v_max} | options))


def _lion(x: Lists, steps: float = 3.0, **options: Any) -> Kwargs:
    m = x.make("m", 0.1, NAN if steps == 0 else None)
    return _descend(
        x, **({"base": "lion", "lr": 0.01, "weight_decay": 0.1, "m": m, "steps": torch.full((len(x.shapes),), steps)} | options)
    )


DESCEND: dict[str, Callable[[Lists], Kwargs]] = {
    "restore": lambda x: {"params": x.make("w"), "stash": x.make("stash"), "base": "none"},
    "sgd": _descend,
    "momentum_first": lambda x: _momentum(x, 0.0, dampening=0.3),
    "momentum": _momentum,
    "buffers_without_steps": lambda x: _momentum(x, steps=1.0) | {"steps": None},
    "dampening": lambda x: _momentum(x, dampening=0.3),
    "nesterov_maximize": lambda x: _momentum(x, nesterov=True, maximize=True),
    "groups": lambda x: _momentum(
        x, group=_groups(x), lr=[0.1, 0.0, 0.3], momentum=[0.9, 0.0, 0.5], dampening=[0.0, 0.0, 0.1],
        weight_decay=[0.0, 0.1, 1e-4], nesterov=[True, False, False], maximize=[False, True, False],
    ),
    "device_lr": lambda x: _momentum(x, group=_groups(x), lr=torch.tensor([0.1, 0.2, 0.3]), momentum=[0.9] * 3),
    "no_stash": lambda x: _momentum(x, stash=None),
    "perturbed_decay": lambda x: _momentum(x, decay_at="perturbed", weight_decay=0.1),
    "stable": lambda x: _momentum(x, match_norm=True, gram=gram(gg=2.0), given=("gg",), sq_norm=torch.tensor([2.0])),
    "stable_from_g": lambda x: _momentum(x, match_norm=True, g=x.make("g"), gram=gram()),
    "stable_zero_h": lambda x: _momentum(x, match_norm=True, gram=gram(gg=2.0), given=("gg",), h=x.make("h", fill=0.0)),
    "stable_inf_h": lambda x: _momentum(x, match_norm=True, gram=gram(gg=2.0), given=("gg",), h=spoil(x.make("h"), INF)),
    "ratio": lambda x: _momentum(x, coefficients=Combination(u={"h": (0.0, 0.5), "g": 0.5}), g=x.make("g"), gram=gram()),
    "clipped": lambda x: _momentum(x, max_norm=0.1, gram=gram()),
    "stable_gsam_clipped": lambda x: _momentum(x, match_norm=True, max_norm=0.5, coefficients=GSAM, g=x.make("g", 0.1), gram=gram()),
    "all_given": lambda x: _momentum(
        x, match_norm=True, coefficients=GSAM, g=x.make("g", 0.1), gram=gram(gg=1.0, gh=0.5, hh=2.0), given=("gg", "gh", "hh")
    ),
    "gsam": lambda x: _momentum(x, coefficients=GSAM, g=x.make("g", 0.1), gram=gram()),
    "wsam": lambda x: _momentum(x, coefficients=WSAM, g=x.make("g", 0.1)),
    "looksam_refresh": lambda x: _momentum(x, coefficients=LOOK_REFRESH, g=x.make("g", 0.1), q=x.make("q", fill=NAN), gram=gram()),
    "looksam_reuse": lambda x: _momentum(
        x, coefficients=LOOK_REUSE, h=None, stash=None, g=x.make("g", 0.1), q=x.make("q"), gram=gram(qq=3.0), given=("qq",)
    ),
    "direct_alone": lambda x: _momentum(x, coefficients=Combination(u={"h": 1.0}, direct={"h": 2.0}), maximize=True),
    "no_u": lambda x: _momentum(x, coefficients=Combination(u={}), h=spoil(x.make("h"), INF)),
    "three_lists_clipped": lambda x: _momentum(
        x, coefficients=Combination(u={"h": 1.0, "g": 0.5, "q": -0.7}), g=x.make("g", 0.1), q=x.make("q", 0.2), max_norm=0.3, gram=gram()
    ),
    "g_and_q_clipped": lambda x: _momentum(
        x, coefficients=Combination(u={"g": 0.5, "q": -0.7}), h=None, g=x.make("g", 0.1), q=x.make("q", 0.2), max_norm=0.3, gram=gram()
    ),
    "h_and_q_clipped": lambda x: _momentum(
        x, coefficients=Combination(u={"h": 0.5, "q": -0.7}), q=x.make("q", 0.2), max_norm=0.3, match_norm=False, gram=gram()
    ),
    "wsam_maximize": lambda x: _momentum(x, coefficients=WSAM, g=x.make("g", 0.1), maximize=True),
    "restore_ignores_norms": lambda x: {
        "params": x.make("w"), "stash": x.make("stash"), "base": "none", "match_norm": True, "max_norm": 1.0,
    },
    "vsam_refresh": lambda x: _descend(x, coefficients=VSAM_REFRESH, g=x.make("g", 0.1), q=x.make("q"), gram=gram()),
    "restore_keep_q": lambda x: {
        "params": x.make("w"), "stash": x.make("stash"), "h": x.make("h"), "g": x.make("g"), "q": x.make("q", fill=NAN), "base": "none",
        "coefficients": Combination(q={"h": 1.0, "g": -1.0}), "gram": gram(),
    },
    "adam": _adam,
    "adam_first": lambda x: _adam(x, 0.0, decoupled=True),
    "adamw": lambda x: _adam(x, decoupled=True),
    "adam_late": lambda x: _adam(x, 1e6, beta1=0.0, eps=1e-3),
    "adam_groups": lambda x: _amsgrad(
        x, group=_groups(x), lr=[0.1, 0.0, 0.03], beta1=[0.9, 0.5, 0.0], beta2=[0.999, 0.9, 0.99], eps=[1e-8, 0.0, 1e-3],
        weight_decay=[0.0, 0.1, 1e-4], decoupled=[False, True, True], amsgrad=[True, False, True], maximize=[False, True, False],
        bias_correction=[True, False, True],
    ),
    "amsgrad": _amsgrad,
    "adasam": lambda x: _amsgrad(x, bias_correction=False, eps=0.0, weight_decay=0.0),
    "adasam_first": lambda x: _amsgrad(x, 0.0, bias_correction=False, eps=0.0, weight_decay=0.0, initial_v=1e-4),
    "adam_zero_h": lambda x: _adam(x, 0.0, h=x.make("h", fill=0.0), eps=0.0),
    "adam_inf_h": lambda x: _amsgrad(x, h=spoil(x.make("h"), INF)),
    "adam_nan_h": lambda x: _amsgrad(x, h=spoil(x.make("h"), NAN)),
    "adam_bad_norm": lambda x: _amsgrad(x, 0.0, sq_norm=torch.tensor([NAN])),
    "adam_device_lr": lambda x: _adam(x, group=_groups(x), lr=torch.tensor([0.1, 0.2, 0.3]), beta1=[0.9] * 3),
    "adam_wsam": lambda x: _adam(x, coefficients=WSAM, g=x.make("g", 0.1), maximize=True),
    "adam_perturbed_decay": lambda x: _adam(x, decay_at="perturbed", decoupled=True),
    "adam_stable_clipped": lambda x: _adam(x, match_norm=True, max_norm=0.5, g=x.make("g", 0.1), gram=gram()),
    "adam_no_stash_keeps_q": lambda x: _adam(
        x, stash=None, coefficients=LOOK_REFRESH, g=x.make("g", 0.1), q=x.make("q", fill=NAN), gram=gram()
    ),
    "lion": _lion,
    "lion_first": lambda x: _lion(x, 0.0, maximize=True),
    "lion_without_steps": lambda x: _lion(x) | {"steps": None},
    "lion_zero": lambda x: _lion(x, 0.0, h=spoil(x.make("h", fill=0.0), NAN)),
    "lion_groups": lambda x: _lion(
        x, group=_groups(x), lr=[0.1, 0.0, 0.03], beta1=[0.9, 0.5, 0.0], beta2=[0.99] * 3, weight_decay=[0.0, 0.1, 0.2]
    ),
    "scaled": lambda x: _momentum(x, h=x.make("h", 800.0), loss_scale=torch.tensor([4096.0, 8192.0])),
    "scaled_gsam_clipped": lambda x: _adam(
        x, h=x.make("h", 800.0), g=x.make("g", 400.0), q=x.make("q", fill=NAN), max_norm=0.5, gram=gram(), match_norm=True,
        coefficients=Combination(u=GSAM.u, q={"h": 1.0, "g": (0.0, 0.0, 0.0, -1.0)}), loss_scale=torch.tensor([4096.0, 8192.0]),
    ),
    "scaled_reuse": lambda x: _momentum(
        x, coefficients=LOOK_REUSE, h=None, stash=None, g=x.make("g", 400.0), q=x.make("q"), gram=gram(qq=3.0), given=("qq",),
        loss_scale=torch.tensor([4096.0, 1.0]),
    ),
    "found_inf": lambda x: _momentum(x, found_inf=torch.ones(1), coefficients=VSAM_REFRESH, g=x.make("g"), q=x.make("q"), gram=gram()),
    "not_found_inf": lambda x: _momentum(x, found_inf=torch.zeros(1), sq_norm=torch.tensor([1.0])),
    "bad_norm": lambda x: _momentum(x, sq_norm=torch.tensor([NAN])),
    "inf_h": lambda x: _momentum(x, h=spoil(x.make("h"), INF)),
}  # fmt: skip


def gram(**entries: float) -> Tensor:
    names = ("gg", "gh", "hh", "gq", "hq", "qq")
    return torch.tensor([entries.get(name, NAN) for name in names])


WRITTEN = {
    "inner_products": (),
    "ascend_": ("params", "stash", "q", "sq_norm", "gram", "q_steps"),
    "descend_": ("params", "m", "v", "v_max", "q", "steps", "gram"),
}
_EVERYWHERE = {  # options that meet every list of shapes; the others meet "small"
    "inner_products": ("g", "ghq_weighted"),
    "ascend_": ("sam", "friendly", "groups", "noise", "noise_q"),
    "descend_": ("momentum", "stable", "groups", "vsam_refresh", "adam_groups", "lion"),
}
_MANY = {"inner_products": ("g",), "ascend_": ("groups",), "descend_": ("stable",)}  # thousands of chunks take an interpreter its time
_OPTIONS = {"inner_products": INNER, "ascend_": ASCEND, "descend_": DESCEND}

CASES = [
    Case(op, f"{option}-{lists}", lists, make, WRITTEN[op])
    for op, options in _OPTIONS.items()
    for option, make in options.items()
    for lists in LISTS
    if lists == "small" or (lists != "streamed" and option in (_MANY if lists == "many" else _EVERYWHERE)[op])
]
