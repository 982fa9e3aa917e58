"""Arguments of ``draw``: what the public function refuses, by name, and what no kernel could survive."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .guards import require

SCHEMES = ("systematic", "multinomial", "top_k", "bernoulli")
LIMIT = 1 << 31  # of n and k
_OUTSIDE = f"scheme must be one of {SCHEMES}, k and n in [0, 2^31)"


def guard(a: Mapping[str, Any]) -> None:
    weights, k, state = a["weights"], a["k"], a["state"]
    n = weights.numel()
    require(
        weights.dim() == 1 and weights.is_floating_point() and weights.is_contiguous(), "weights must be [n], contiguous, floating point"
    )
    require(a["scheme"] in SCHEMES and 0 <= k < LIMIT and n < LIMIT, _OUTSIDE)
    require(k == 0 or n > 0, "there is nothing to draw from")
    fits = state.shape == (2,) and state.dtype == torch.int64 and state.is_contiguous() and state.device == weights.device
    require(fits, "state must be (seed, offset) in int64 beside weights")


def check(weights: Tensor, k: int, scheme: str, indices: bool) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"weights is {type(weights).__name__}; expected a torch.Tensor")
    if not weights.is_floating_point():
        raise TypeError(f"weights are {weights.dtype}; expected a floating-point tensor")
    if weights.layout != torch.strided:
        raise TypeError(f"weights are {weights.layout}; expected a dense tensor: call .to_dense()")
    if weights.dim() != 1 or len(weights) >= LIMIT:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; expected one weight per sample, [n], n < 2^31")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k is {k!r}; expected an int, the number of samples to draw")
    if not 0 <= k < LIMIT or (k and not len(weights)):
        raise ValueError(f"k is {k} for {len(weights)} weights; expected 0 <= k < 2^31, and 0 where there is nothing to draw from")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; expected one of {SCHEMES}")
    if indices and scheme == "bernoulli":
        raise ValueError("indices with scheme 'bernoulli', whose number of samples only the device knows; use counts, or counts.nonzero()")


def check_generator(generator: torch.Generator | Tensor | None, device: torch.device) -> None:
    if isinstance(generator, Tensor):
        if generator.shape != (2,) or generator.dtype != torch.int64 or generator.device != device or not generator.is_contiguous():
            raise ValueError(
                f"generator is a tensor {tuple(generator.shape)} of {generator.dtype} on {generator.device}; expected (seed, offset): "
                f"contiguous int64 [2] on {device}"
            )
    elif generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {type(generator).__name__}; expected a torch.Generator, an int64 tensor [2], or None")
    elif generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator is on {generator.device} but weights are on {device}; expected torch.Generator({device.type!r})")
