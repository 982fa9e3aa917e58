"""Who computes per-sample gradient norms: plain forward and backward, ours in its two forms, and the peers."""

from collections.abc import Callable
from dataclasses import dataclass

from sample_cases import Case
from sample_peers import Backpack, OpacusGhost, OpacusHooks
from sample_run import Run
from torch import Tensor


class Ours(Run):
    backend, weighted = "cpp", False

    def norms(self) -> Tensor:
        from sam_kernels import per_sample

        with per_sample.grad_norms(self.model, self.case.samples, weighted=self.weighted, backend=self.backend) as self.found:
            self.losses().mean().backward()
        return self.found.squared

    def clear(self) -> None:
        super().clear()
        self.found = None


class OursWeighted(Ours):
    weighted = finishes = True

    def finish(self) -> None:
        self.found.weighted_backward(self.weights)


@dataclass(frozen=True)
class SampleProvider:
    name: str
    run: Callable[[Case], Run]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("sam_kernels")


PLAIN, OURS, WEIGHTED = "forward + backward", "sam_kernels", "sam_kernels, weighted"
PEERS = GHOST, HOOKS, BACKPACK = "Opacus ghost", "Opacus hooks", "BackPACK"
PROVIDERS = tuple(
    SampleProvider(name, run)
    for name, run in (
        (PLAIN, Run), (OURS, Ours), (WEIGHTED, OursWeighted), (GHOST, OpacusGhost), (HOOKS, OpacusHooks), (BACKPACK, Backpack),
    )
)  # fmt: skip
