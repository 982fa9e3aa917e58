"""Ops on what a batch brings along: per-sample losses, weights, draws and gradient norms, on sizes of your own or of a model's layers.

Bytes that have to move, of n samples, rows or positions with elements of s bytes and numbers in the accumulation dtype of a bytes:

    gibbs_weights                 norms, weights: s + a a sample
    draw                          weights, counts, inclusion: s + 4 + a a sample
    cross_entropy_sample          logits, targets, five numbers a row: s C + 8 + 5 a a row
    cross_entropy_sample_backward logits twice, targets, four numbers a row: 2 s C + 8 + 4 a a row
    linear_grad_norms             inputs and gradients of all positions, gradients of weight and bias, a norm a sample
    conv_grad_norms               the same, inputs padded
    embedding_grad_norms          gradients and ids of all positions, a norm a sample
    normalization_grads           gradient, input and its gradient, statistics, weight, two rows a sample
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ops.cross_entropy_sample import OP as CROSS_ENTROPY
from ..ops.lists import accumulator
from ..registry import call
from . import Refused
from .batch_ops import (
    Inputs,
    Runs,
    Sizes,
    make_conv,
    make_embedding,
    make_linear,
    make_logits,
    make_normalization,
    make_norms,
    match_backward,
    match_bits,
    match_conv,
    match_embedding,
    match_gibbs,
    match_linear,
    match_losses,
    match_normalization,
    run_conv,
    run_cross_entropy,
    run_cross_entropy_backward,
    run_draw,
    run_embedding,
    run_gibbs,
    run_linear,
    run_normalization,
)  # fmt: skip
from .cases import MATCHED, Case
from .device import Phases, nothing

SCHEMES = ("systematic", "multinomial", "bernoulli", "top_k")


@dataclass(frozen=True)
class BatchOp:
    """``dims``: names of the sizes, the first of which a match may cut. ``layer``: under which a model's sizes are found."""

    op: str
    dims: str
    layer: str
    make: Callable[..., Inputs]
    call: Callable[[Inputs, str], Any]
    match: Callable[[Runs], None]
    defaults: tuple[Sizes, ...]
    numbers: Callable[..., tuple[int, int, int]]  # of sizes: elements in the dtype, in the accumulation dtype, other bytes that move
    per_sample: Callable[..., int]  # elements that the reference makes for one sample
    cut: bool = True
    allocates: bool = False  # a result that is as large as an operand


def _linear_numbers(b: int, t: int, d: int, p: int) -> tuple[int, int, int]:
    return b * t * (d + p) + p * d + p, b, 0


def _conv_numbers(b: int, c: int, h: int, w: int, o: int, k: int) -> tuple[int, int, int]:
    return b * (c * (h + k - 1) * (w + k - 1) + o * h * w) + o * c * k * k + o, b, 0


def _normalization_numbers(b: int, t: int, g: int, d: int, s: int) -> tuple[int, int, int]:
    return 3 * b * t * g * d * s + g * d, 2 * b * t * g + 2 * b * g * d, 0


_SAMPLES, _MANY = (256,), (1_000_000,)
_LINEAR = ((256, 1, 1024, 1024), (16, 197, 768, 3072))
_CONV = ((32, 64, 28, 28, 64, 3),)
BATCH_OPS: dict[str, BatchOp] = {
    "gibbs_weights": BatchOp(
        "gibbs_weights", "n", "samples", make_norms, run_gibbs, match_gibbs, (_SAMPLES, _MANY), lambda n: (n, n, 0), lambda n: 1, cut=False
    ),
    **{
        f"draw:{scheme}": BatchOp(
            "draw", "nxk", "draws", make_norms, partial(run_draw, scheme), match_bits, ((256, 128), (1_000_000, 250_000)),
            lambda n, k: (n, n, 4 * n), lambda n, k: 1, cut=False,
        )
        for scheme in SCHEMES
    },
    "cross_entropy_sample": BatchOp(
        "cross_entropy_sample", "NxC", "classes", make_logits, run_cross_entropy, match_losses, ((256, 1000), (1024, 50257)),
        lambda n, c: (n * c, 5 * n, 8 * n), lambda n, c: c,
    ),
    "cross_entropy_sample_backward": BatchOp(
        "cross_entropy_sample_backward", "NxC", "classes", make_logits, run_cross_entropy_backward, match_backward,
        ((256, 1000), (1024, 50257)),
        lambda n, c: (2 * n * c, 4 * n, 8 * n), lambda n, c: c, allocates=True,
    ),
    **{
        f"linear_grad_norms:{method}": BatchOp(
            "linear_grad_norms", "BxTxdxp", "linear", make_linear, partial(run_linear, method), partial(match_linear, method == "gram"),
            _LINEAR, _linear_numbers, lambda b, t, d, p: max(t * (d + p), d * p, t * t),
        )
        for method in ("direct", "gram")
    },
    **{
        f"conv_grad_norms:{method}": BatchOp(
            "conv_grad_norms", "BxCxHxWxOxK", "conv", make_conv, partial(run_conv, method), partial(match_conv, method != "direct"),
            _CONV, _conv_numbers, lambda b, c, h, w, o, k: max(h * w * c * k * k, o * c * k * k, h * w * h * w),
        )
        for method in ("direct", "gram", "pixel_gram")
    },
    "embedding_grad_norms": BatchOp(
        "embedding_grad_norms", "BxTxdxV", "embedding", make_embedding, run_embedding, match_embedding, ((16, 256, 256, 8192),),
        lambda b, t, d, v: (b * t * d, b, 8 * b * t), lambda b, t, d, v: t * d,
    ),
    "normalization_grads": BatchOp(
        "normalization_grads", "BxTxGxDxS", "normalization", make_normalization, run_normalization, match_normalization,
        ((16, 197, 1, 768, 1), (32, 1, 32, 4, 784)), _normalization_numbers, lambda b, t, g, d, s: t * g * d * s, allocates=True,
    ),
}  # fmt: skip
SCHEMES_HELP = "; ".join(dict.fromkeys(f"{op.op} {op.dims}" for op in BATCH_OPS.values()))


def _transformer(samples: int, positions: int, width: int, words: int = 0) -> dict[str, Sizes]:
    """The wider layer of the feed-forward part, a norm, and the head; with an embedding where there are words."""
    found = {"linear": (samples, positions, width, 4 * width), "normalization": (samples, positions, 1, width, 1)}
    return found | ({"embedding": (samples, positions, width, words), "classes": (samples * positions, words)} if words else _HEAD)


_HEAD: dict[str, Sizes] = {"classes": (256, 1000), "samples": (256,), "draws": (256, 128)}
_TEXT: dict[str, Sizes] = {"samples": (256,), "draws": (256, 128)}
LAYERS: Mapping[str, dict[str, Sizes]] = {  # a typical layer of a model in a batch that fits beside it
    "resnet18": {"conv": (32, 128, 28, 28, 128, 3), "linear": (256, 1, 512, 1000), "normalization": (32, 1, 32, 4, 784)} | _HEAD,
    "resnet50": {"conv": (32, 128, 28, 28, 128, 3), "linear": (256, 1, 2048, 1000), "normalization": (32, 1, 32, 16, 784)} | _HEAD,
    "resnet152": {"conv": (32, 256, 14, 14, 256, 3), "linear": (256, 1, 2048, 1000), "normalization": (32, 1, 32, 32, 196)} | _HEAD,
    "wrn28_10": {"conv": (32, 320, 16, 16, 320, 3), "linear": (128, 1, 640, 10), "normalization": (32, 1, 32, 10, 256)}
    | _HEAD
    | {"classes": (128, 10)},
    "vit_s16": _transformer(16, 197, 384),
    "vit_b16": _transformer(16, 197, 768),
    "vit_l16": _transformer(8, 197, 1024),
    "gpt2": _transformer(2, 1024, 768, 50257) | _TEXT,
    "gpt2_xl": _transformer(1, 1024, 1600, 50257) | _TEXT,
    "llama7b": _transformer(1, 1024, 4096, 32000) | _TEXT | {"linear": (1, 1024, 4096, 11008)},
}


def sizes_of(
    what: str, sizes: str | None, workloads: Sequence[str] | None, left_out: list[str] | None = None
) -> Iterator[tuple[str, Sizes]]:
    """What an op is run on: sizes of its own, the layers of the named models, or its defaults. ``left_out`` is told of models without such
    a layer, which are refused without it."""
    op = BATCH_OPS[what]
    expected = f"expected {op.dims} for {op.op}, such as {'x'.join(map(str, op.defaults[0]))}"
    if sizes is not None:
        for text in sizes.split(","):
            parts = text.strip().split("x")
            if len(parts) != len(op.dims.split("x")) or not all(part.isdigit() and int(part) for part in parts):
                raise Refused(f"--sizes is {text.strip()!r}; {expected}")
            yield text.strip(), tuple(map(int, parts))
    elif workloads is not None:
        for name in workloads:
            if op.layer in LAYERS.get(name, {}):
                found = LAYERS[name][op.layer]
                yield f"{name} {'x'.join(map(str, found))}", found
            else:
                models = [model for model, layers in LAYERS.items() if op.layer in layers]
                why = f"--workload {name} has no layer for {what}; expected one of {', '.join(models)}, or --sizes {op.dims}"
                if left_out is None:
                    raise Refused(why)
                left_out.append(why)
    else:
        for found in op.defaults:
            yield "x".join(map(str, found)), found


class BatchCase(Case):
    def __init__(self, what: str, label: str, sizes: Sizes, dtype_name: str) -> None:
        self.what, self.on, self.sizes, self.dtype_name = what, label, sizes, dtype_name
        self.op = BATCH_OPS[what]
        self.ops, self.allocates = (self.op.op,), self.op.allocates
        self.counts = {"samples": sizes[0]}
        low, wide, other = self.op.numbers(*sizes)
        self.moved = low * self.dtype.itemsize + wide * accumulator(self.dtype).itemsize + other

    def needed(self, backends: int) -> int:
        """Operands, made in fp32; what the reference needs for all samples in fp32, and for those of a match in fp64, three times over."""
        low = self.op.numbers(*self.sizes)[0]
        work = self.sizes[0] * self.op.per_sample(*self.sizes)
        return self.moved + 4 * low + max(4 * 3 * work, 8 * 3 * self._matched()[0] * self.op.per_sample(*self.sizes))

    def _matched(self) -> Sizes:
        most = max(1, MATCHED // self.op.per_sample(*self.sizes)) if self.op.cut else self.sizes[0]
        return (min(self.sizes[0], most), *self.sizes[1:])

    def _inputs(self, sizes: Sizes, dtype: torch.dtype, device: str) -> Inputs:
        """With the same values in every dtype: those that the dtype of the case holds."""
        made = self.op.make(*sizes)
        if self.op.op == "draw":
            made |= {"k": sizes[1], "state": torch.tensor([5, 7])}
        for name, x in made.items():
            if isinstance(x, Tensor):
                stored = name in ("mean", "rstd")
                via, to = (accumulator(self.dtype), accumulator(dtype)) if stored else (self.dtype, dtype)
                made[name] = (x.to(via).to(to) if x.is_floating_point() else x).to(device)
        if self.op.op == "cross_entropy_sample_backward":
            wide = accumulator(dtype)
            made["log_norm"] = call(CROSS_ENTROPY, "reference", made["logits"], made["target"], 0.0, -100, None)[2]
            made["grad"] = torch.linspace(-1, 2, sizes[0], device=device, dtype=torch.float32).to(wide)
        return made

    def match(self, backend: str, device: str) -> int:
        sizes, runs = self._matched(), []
        kinds = ((backend, self.dtype), ("reference", torch.float32), ("reference", torch.float64))
        if self.op.op == "draw":  # the bits of the specification in the same dtype
            kinds = ((backend, self.dtype), *(2 * (("reference", self.dtype),)))
        inputs: Inputs = {}
        for name, dtype in kinds:
            inputs = self._inputs(sizes, dtype, device)
            runs.append([x for x in self.op.call(inputs, name) if isinstance(x, Tensor)])
        got, plain, want = runs
        self.op.match(Runs(self.name, got, plain, want, inputs, self.dtype))
        return sizes[0]

    def calls(self, backends: Sequence[str], device: str) -> dict[str, Phases]:
        inputs = self._inputs(self.sizes, self.dtype, device)
        return {backend: [(nothing, partial(self.op.call, inputs, backend))] for backend in backends}
