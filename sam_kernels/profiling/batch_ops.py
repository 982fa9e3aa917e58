"""Ops on what a batch brings along: how inputs are made, what is called, and how results are matched with the reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.conv_grad_norms import reference as conv_reference
from ..ops.cross_entropy_sample import BACKWARD
from ..ops.linear_grad_norms import reference as linear_reference
from ..ops.lists import accumulator
from ..registry import call
from .match import assert_bits, assert_elementwise, assert_sums

Sizes = tuple[int, ...]
Inputs = dict[str, Any]
LAM, SPREAD, TERM = 1.0, 2.0, 4  # of Gibbs; standard deviation of logits; roundings of a term before it is added


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- inputs, in fp32 on the host


def make_norms(n: int, *_: int) -> Inputs:
    return {"x": (0.5 * _normal(0, n)).exp()}  # skewed, as those of gradients are, but no weight falls below the smallest fp32 number


def make_logits(rows: int, classes: int) -> Inputs:
    target = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(1))
    return {"logits": SPREAD * _normal(0, rows, classes), "target": target}


def make_linear(b: int, t: int, d: int, p: int) -> Inputs:
    return {"a": _normal(0, b, t, d), "g": _normal(1, b, t, p)}


def make_conv(b: int, c: int, h: int, w: int, o: int, k: int) -> Inputs:
    return {"x": _normal(0, b, c, h + k - 1, w + k - 1), "g": _normal(1, b, o, h, w), "kernel": [k, k]}


def make_embedding(b: int, t: int, d: int, words: int) -> Inputs:
    chances = 1 / torch.arange(1.0, words + 1)  # frequent and rare ids, as in a text
    ids = torch.multinomial(chances, b * t, replacement=True, generator=torch.Generator().manual_seed(0)).view(b, t)
    return {"ids": ids, "g": _normal(1, b, t, d)}


def make_normalization(b: int, t: int, g: int, d: int, s: int) -> Inputs:
    x = _normal(0, b * t, g, d, s)
    wide = x.double()
    variance, mean = torch.var_mean(wide, (2, 3), correction=0)
    return {"grad": _normal(1, *x.shape), "x": x, "mean": mean, "rstd": (variance + 1e-5).rsqrt(), "weight": 1 + 0.1 * _normal(2, g * d),
            "samples": b}  # fmt: skip


# ---- calls


def run_gibbs(i: Inputs, backend: str) -> Any:
    return ops.gibbs_weights(i["x"], LAM, backend=backend)


def run_draw(scheme: str, i: Inputs, backend: str) -> Any:
    return ops.draw(i["x"], i["k"], scheme, i["state"], backend=backend)


def run_cross_entropy(i: Inputs, backend: str) -> Any:
    return ops.cross_entropy_sample(i["logits"], i["target"], backend=backend)


def run_cross_entropy_backward(i: Inputs, backend: str) -> Any:
    return (call(BACKWARD, backend, i["grad"], i["logits"], i["target"], i["log_norm"], 0.0, -100, None),)


def run_linear(method: str, i: Inputs, backend: str) -> Any:
    return ops.linear_grad_norms(i["a"], i["g"], method=method, backend=backend)


def run_conv(method: str, i: Inputs, backend: str) -> Any:
    return ops.conv_grad_norms(i["x"], i["g"], kernel=i["kernel"], stride=[1, 1], dilation=[1, 1], method=method, backend=backend)


def run_embedding(i: Inputs, backend: str) -> Any:
    return (ops.embedding_grad_norms(i["ids"], i["g"], backend=backend),)


def run_normalization(i: Inputs, backend: str) -> Any:
    return ops.normalization_grads(i["grad"], i["x"], i["mean"], i["rstd"], i["weight"], samples=i["samples"], backend=backend)


# ---- matches


@dataclass(frozen=True)
class Runs:
    """Results in the dtype of the case, those of the reference in fp32 and in fp64, and the inputs in fp64."""

    name: str
    got: Sequence[Tensor]
    plain: Sequence[Tensor]
    want: Sequence[Tensor]
    inputs: Inputs
    dtype: torch.dtype

    @property
    def wide(self) -> torch.dtype:
        return accumulator(self.dtype)


def match_gibbs(r: Runs) -> None:
    """Exponents are rounded, by as much as they are large."""
    far = 1 + LAM * r.inputs["x"].max().item()
    for label, x, y, size in zip(("weights", "effective size", "log partition"), r.got, r.want, (far, 2 * far, 1 + far), strict=False):
        assert_sums(f"{r.name}: {label}", x, y, len(r.inputs["x"]), size * y.abs(), r.wide)


def match_bits(r: Runs) -> None:
    assert_bits(r.name, list(r.got)[:3], list(r.want)[:3])


def match_losses(r: Runs) -> None:
    z = r.inputs["logits"]
    far = 1 + z.abs().amax(1)
    assert_sums(f"{r.name}: loss", r.got[0], r.want[0], z.shape[1], 2 * far, r.wide)
    assert_sums(f"{r.name}: norm", r.got[1], r.want[1], z.shape[1], far * r.want[1], r.wide)


def match_backward(r: Runs) -> None:
    z = r.inputs["logits"]
    one = torch.zeros_like(z).scatter_(1, r.inputs["target"][:, None], 1.0)
    size = r.inputs["grad"][:, None].abs() * (z.softmax(1) + one) * (1 + z.abs().amax(1, keepdim=True))
    assert_sums(f"{r.name}: gradient", r.got[0], r.want[0], z.shape[1], size, r.wide)


def match_linear(gram: bool, r: Runs) -> None:
    a, g = r.inputs["a"], r.inputs["g"]
    sizes = linear_reference(a.abs(), g.abs(), "direct", True, True, True)
    products = ((a @ a.mT).abs() * (g @ g.mT).abs()).sum((1, 2)) + g.sum(1).square().sum(1) if gram else r.want[0]
    terms = max(a.shape[1] ** 2 if gram else 0, a.shape[2] * g.shape[2], a.shape[1])
    _match_norms(r, terms, products, a.shape[0] * a.shape[1], sizes)


def match_conv(gram: bool, r: Runs) -> None:
    x, g, k = r.inputs["x"], r.inputs["g"], r.inputs["kernel"]
    sizes = conv_reference(x.abs(), g.abs(), len(x), k, [1, 1], [1, 1], 1, "direct", True, True, True)
    positions = prod(g.shape[2:])
    products = r.want[0]
    if gram:
        patches, rows = torch.nn.functional.unfold(x, k).mT, g.flatten(2).mT
        products = ((patches @ patches.mT).abs() * (rows @ rows.mT).abs()).sum((1, 2)) + rows.sum(1).square().sum(1)
    terms = max(positions**2 if gram else 0, g.shape[1] * x.shape[1] * prod(k), positions)
    _match_norms(r, terms, products, len(x) * positions, sizes)


def _match_norms(r: Runs, terms: int, products: Tensor, positions: int, sizes: Sequence[Tensor]) -> None:
    """Norms are sums of squares, by Gram matrices sums of products; gradients are sums over all positions. Half types may round the
    products of a sample to their own dtype on the way: torch's own convolution, which gives the weight gradient, does."""

    def rounded(sizes: Tensor, terms: int) -> Tensor:
        return sizes * (1 + (torch.finfo(r.dtype).eps / torch.finfo(r.wide).eps / terms**0.5 if r.dtype.itemsize == 2 else 0.0))

    assert_sums(f"{r.name}: norms", r.got[0], r.want[0], terms, rounded(products, terms), r.wide)
    for k, label in ((1, "weight"), (2, "bias")):
        assert_sums(f"{r.name}: gradient of the {label}", r.got[k], r.want[k], positions, rounded(sizes[k], positions), r.wide)


def match_embedding(r: Runs) -> None:
    assert_sums(f"{r.name}: norms", r.got[0], r.want[0], r.inputs["g"][0].numel(), r.want[0], r.wide)


def match_normalization(r: Runs) -> None:
    assert_elementwise(f"{r.name}: dx", [r.got[0]], [r.plain[0]], [r.want[0]], r.dtype)
    n, g, d, s = r.inputs["x"].shape
    xhat = (r.inputs["x"] - r.inputs["mean"].view(n, g, 1, 1)) * r.inputs["rstd"].view(n, g, 1, 1)
    terms = n // r.inputs["samples"] * s
    grad, samples = r.inputs["grad"].abs(), r.inputs["samples"]
    far = torch.stack([(grad * xhat.abs()).sum(3), grad.sum(3)], 1).view(samples, -1, 2, g * d).sum(1)
    assert_sums(f"{r.name}: rows", r.got[1], r.want[1], terms + TERM, far, r.wide)
