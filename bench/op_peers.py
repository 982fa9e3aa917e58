"""torch's counterparts of our ops on batches, as far as it has any: what they do is less, and none of it is more."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from sam_kernels.profiling.batch_ops import LAM, Inputs


def draws(replacement: bool, i: Inputs) -> Callable[[], Any]:
    return partial(torch.multinomial, i["x"], i["k"], replacement=replacement)


def loss_gradient(i: Inputs) -> Callable[[], Any]:
    logits = i["logits"].detach().requires_grad_()
    losses = F.cross_entropy(logits, i["target"], reduction="none")
    grad = i["grad"].to(losses.dtype)
    return lambda: torch.autograd.grad(losses, logits, grad, retain_graph=True)


def linear_gradient(i: Inputs) -> Callable[[], Any]:
    a, g = i["a"].flatten(0, 1), i["g"].flatten(0, 1)
    return lambda: g.T @ a


def conv_gradient(i: Inputs) -> Callable[[], Any]:
    x, g = i["x"], i["g"]
    weight = x.new_empty(g.shape[1], x.shape[1], *i["kernel"])
    rest = ([g.shape[1]], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, (False, True, False))
    return lambda: torch.ops.aten.convolution_backward(g, x, weight, *rest)


def embedding_gradient(i: Inputs) -> Callable[[], Any]:
    words = int(i["ids"].max()) + 1
    return lambda: torch.ops.aten.embedding_dense_backward(i["g"], i["ids"], words, -1, False)


def normalization_gradient(i: Inputs) -> Callable[[], Any]:
    grad, x, mean, rstd, weight = (i[name] for name in ("grad", "x", "mean", "rstd", "weight"))
    n, g, d, s = x.shape
    if (g, s) == (1, 1):
        rows, mean, rstd = (x.view(n, d), mean.view(n, 1), rstd.view(n, 1))
        return lambda: torch.ops.aten.native_layer_norm_backward(grad.view(n, d), rows, [d], mean, rstd, weight, weight, [True] * 3)
    mean, rstd = mean.to(x.dtype), rstd.to(x.dtype)  # as torch keeps them
    return lambda: torch.ops.aten.native_group_norm_backward(grad, x, mean, rstd, weight, n, g * d, s, g, [True] * 3)


PEERS: dict[str, Callable[[Inputs], Callable[[], Any]]] = {
    "gibbs_weights": lambda i: lambda: torch.softmax(LAM * i["x"], 0),
    **{f"draw:{scheme}": partial(draws, scheme != "top_k") for scheme in ("systematic", "multinomial", "bernoulli", "top_k")},
    "cross_entropy_sample": lambda i: lambda: F.cross_entropy(i["logits"], i["target"], reduction="none"),
    "cross_entropy_sample_backward": loss_gradient,
    **{f"linear_grad_norms:{method}": linear_gradient for method in ("direct", "gram")},
    **{f"conv_grad_norms:{method}": conv_gradient for method in ("direct", "gram")},
    "embedding_grad_norms": embedding_gradient,
    "normalization_grads": normalization_gradient,
}
