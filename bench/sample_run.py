"""One provider of per-sample gradient norms at work on one case. Model, batch and gradients are each provider's own.

run.norms()     forward, backward, and the squared norms [B] of each sample's own loss
run.finish()    then .grad = sum_i weights_i grad l_i, where the provider can; run.weights is [B]
"""

import torch
from sample_cases import Case
from torch import Tensor


class Run:
    """Plain forward and backward: what everything is compared with."""

    finishes = False

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.model()
        self.x, self.y = case.batch()
        self.params = list(self.model.parameters())
        self.weights = torch.full((case.samples,), 1 / case.samples)
        self.build()

    def build(self) -> None:
        """Wrap the model."""

    def clear(self) -> None:
        """Not timed."""
        for p in self.params:
            p.grad = None

    def losses(self) -> Tensor:
        return self.case.losses(self.model(self.x), self.y)

    def norms(self) -> Tensor | None:
        self.losses().mean().backward()
        return None

    def finish(self) -> None:
        raise NotImplementedError
