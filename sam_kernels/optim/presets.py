"""Published algorithms as presets: a subclass with nothing but ``__init__``."""

from collections.abc import Iterable
from typing import Any

from .plain import AMSGrad
from .rules import Stable
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
