"""Whether the norms of a model are what they are said to be: a few samples run alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .context import grad_norms


def verify(
    model: nn.Module,
    losses: Callable[..., Tensor],
    batch_size: int,
    *,
    samples: int = 3,
    batchnorm: str = "error",
    tolerance: float | None = None,
) -> None:
    """Compare the norms of the first ``samples`` samples with those of their losses computed alone.

    What no layer can see is found here: inputs whose first dimension is not the batch, two views of a batch in one call, rows that all
    samples share, losses that depend on other samples. Run it once, in evaluation mode or without dropout. ``.grad`` is left as it was.

    Args:
        model, batch_size, batchnorm: as in ``grad_norms``. ``losses``: a function ``losses(index=None)``, as ``ReweightedSAM`` takes it.
        tolerance: largest difference, relative to the norm; None: 1e-3, and 5e-2 with half-precision parameters.

    Raises:
        RuntimeError: a norm differs; the message has both.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    held = [p.grad for p in params]
    if tolerance is None:
        tolerance = 5e-2 if any(p.dtype.itemsize == 2 for p in params) else 1e-3
    try:
        for p in params:
            p.grad = None
        with grad_norms(model, batch_size, weighted=True, reduction="sum", batchnorm=batchnorm) as norms:
            losses().sum().backward()
        found = norms.norm
        for i in range(min(samples, batch_size)):
            alone = losses(torch.tensor([i], device=found.device)).sum()
            grads = torch.autograd.grad(alone, params, allow_unused=True)
            wanted = torch.stack([g.detach().double().square().sum().to(found.device) for g in grads if g is not None]).sum().sqrt()
            if not abs(found[i].item() - wanted.item()) <= tolerance * wanted.item():
                raise RuntimeError(
                    f"sample {i}: its gradient has norm {wanted.item():.6g} alone and {found[i].item():.6g} in the batch; look for inputs "
                    "whose first dimension is not the batch, for rows that samples share, and for losses that depend on other samples"
                )
    finally:
        for p, grad in zip(params, held, strict=True):
            p.grad = grad
