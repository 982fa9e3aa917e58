"""Published algorithms as presets: a subclass with nothing but ``__init__``."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .plain import AMSGrad
from .rules import Reweighted, Stable
from .sam import SAM


class ASAM(SAM):
    """Adaptive SAM (arXiv 2102.11600): the perturbation is scaled by ``(|w| + eta)**2``. Every tensor is scaled."""

    def __init__(self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.5, *, eta: float = 0.01, **kwargs: Any) -> None:
        super().__init__(params, base_optimizer, rho, True, eta=eta, **kwargs)


class StableSAM(SAM):
    """Stable SAM (arXiv 2401.07250): the gradient of the update is given the norm of the ascent gradient."""

    def __init__(self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, **kwargs: Any) -> None:
        super().__init__(params, base_optimizer, rho, adaptive, descent=Stable(), **kwargs)


class AdaSAM(SAM):
    """AdaSAM (arXiv 2303.00565): SAM with AMSGrad as it stands in theory, ``w -= lr m / sqrt(v_max)``: no bias correction, no eps in the
    denominator; ``v_max`` starts from ``eps**2``."""

    def __init__(self, params: Iterable[Any], rho: float = 0.05, *, eps: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(params, AMSGrad, rho, eps=0.0, initial_v=eps**2, **kwargs)


class ReweightedSAM(SAM):
    """Reweighted SAM (arXiv 2509.18001): ascent along ``sum_i p_i grad l_i``, ``p_i`` proportional to ``exp(lam |grad l_i|)``.

    ``opt.step(losses, batch_size=len(y))``; see ``SAM.step``. ``lam=0`` is SAM, a large one ascends along the worst sample alone.

    Args:
        lam: inverse temperature, >= 0; it multiplies norms of unreduced, unscaled losses. A one-element tensor is read on the device.
        relative: divide the norms by their mean first, so that ``lam`` keeps its meaning while gradients shrink.
        estimator: ``"exact"`` (needs ``model``), ``"logits"`` (``losses`` returns ``ops.cross_entropy_sample(model(x), y)``) or
            ``"finite_difference"``, the paper's: ``probes`` more forwards at ``w + delta z`` with random signs z from torch's generator
            (pass ``model`` where it has BatchNorm, which would count the probes). Norms are those of the trainable
            parameters of the model (exact) or of the optimizer (finite differences), groups with ``rho=0`` included. Half-precision
            forwards drown the difference: keep the forward in fp32.
        batchnorm: policy of the exact norms, ``"error"`` or ``"contribution"``, see ``per_sample.grad_norms``.

    ``sample_norms`` ``[B]`` and ``sample_weights`` (a ``Gibbs``) are those of the last step.
    """

    def __init__(
        self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, *, lam: float | Tensor,
        estimator: str = "exact", relative: bool = False, delta: float = 1e-4, probes: int = 1, batchnorm: str = "error",
        model: nn.Module | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        batch = Reweighted(lam, estimator, relative, delta, probes, batchnorm)
        super().__init__(params, base_optimizer, rho, adaptive, batch=batch, model=model, **kwargs)
