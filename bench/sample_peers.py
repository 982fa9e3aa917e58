"""The peers of per-sample gradient norms, imported when they are built: a peer that does not import is left out with the reason."""

import torch
from sample_run import Run
from torch import Tensor


class OpacusHooks(Run):
    """The gradient of every sample, then norms and weighted sums of them, as its optimizer takes them."""

    finishes = True

    def build(self) -> None:
        from opacus.grad_sample import GradSampleModule

        self.model = GradSampleModule(self.model, loss_reduction="mean")

    def clear(self) -> None:
        super().clear()
        for p in self.params:
            p.grad_sample = None

    def norms(self) -> Tensor:
        self.losses().mean().backward()
        return torch.stack([p.grad_sample.flatten(1).norm(2, dim=-1) for p in self.params], dim=1).norm(2, dim=1).square()

    def finish(self) -> None:
        for p in self.params:
            p.grad = torch.einsum("i,i...", self.weights, p.grad_sample)


class OpacusGhost(Run):
    """Norms in a first backward, the weighted gradient in a second one, in the order of its own training loop."""

    finishes = True

    def build(self) -> None:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping

        self.model = GradSampleModuleFastGradientClipping(self.model, loss_reduction="mean")

    def clear(self) -> None:
        super().clear()
        self.kept = None
        for p in self.params:
            p._norm_sample = p.grad_sample = None

    def norms(self) -> Tensor:
        self.kept = self.losses()
        self.kept.mean().backward(retain_graph=True)
        return self.model.get_norm_sample().square()

    def finish(self) -> None:
        for p in self.params:
            p.grad = None
        self.model.disable_hooks()
        (self.weights * self.kept).sum().backward()
        self.model.enable_hooks()
        self.kept = None


class Backpack(Run):
    def build(self) -> None:
        from backpack import extend

        self.model = extend(self.model)

    def clear(self) -> None:
        super().clear()
        for p in self.params:
            p.batch_l2 = None

    def norms(self) -> Tensor:
        from backpack import backpack
        from backpack.extensions import BatchL2Grad

        losses = self.losses()
        with backpack(BatchL2Grad()):
            losses.mean().backward()
        names = {type(m).__name__ for m in self.model.modules() for p in m.parameters(recurse=False) if p.batch_l2 is None}
        if names:
            raise NotImplementedError(f"no norms for {', '.join(sorted(names))}")
        return torch.stack([p.batch_l2 for p in self.params]).sum(0) * len(losses) ** 2
