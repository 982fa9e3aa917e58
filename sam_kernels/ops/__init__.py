"""The functional layer: lists of tensors in, updates in place, every backend by name."""

from .ascend import ascend_
from .coefficients import BASIS, GRAM, Combination
from .cross_entropy_sample import SampleLoss, cross_entropy_sample
from .descend import descend_, restore_
from .gibbs_weights import Gibbs, gibbs_weights
from .inner_products import inner_products, sq_norm

__all__ = [
    "BASIS",
    "GRAM",
    "Combination",
    "Gibbs",
    "SampleLoss",
    "ascend_",
    "cross_entropy_sample",
    "descend_",
    "gibbs_weights",
    "inner_products",
    "restore_",
    "sq_norm",
]
