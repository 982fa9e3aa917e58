"""Drop-in for the de-facto standard single-file SAM: same constructor, same methods, same closure rule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .optim.sam import SAM as _SAM


class SAM(_SAM):
    """``SAM`` whose ``step(closure)`` expects the first gradient to be there already and runs the closure once.

    ::

        loss_fn(model(x), y).backward()
        opt.step(closure)          # closure: zero_grad is not needed; second forward and backward
        opt.zero_grad()
    """

    def step(self, closure: Callable[..., Any] | None = None, *, batch_size: int | None = None, sample_ids: Tensor | None = None) -> Any:
        """Ascend with the gradients present, run the closure once at the perturbed weights, descend. Returns None."""
        for name, value in (("batch_size", batch_size), ("sample_ids", sample_ids)):
            if value is not None:
                raise TypeError(f"{name} belongs to the batch rules of sam_kernels.optim.SAM; this optimizer takes a closure alone")
        if closure is None:
            return self._finish()
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                closure()
            self._descend()
        except BaseException:
            self.restore()
            raise
        return None
