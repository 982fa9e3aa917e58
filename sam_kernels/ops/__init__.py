"""The functional layer: lists of tensors in, updates in place, every backend by name."""

from .ascend import ascend_
from .coefficients import BASIS, GRAM, Combination
from .conv_grad_norms import conv_grad_norms
from .cross_entropy_sample import SampleLoss, cross_entropy_sample
from .descend import descend_, restore_
from .draw import Draw, draw
from .embedding_grad_norms import embedding_grad_norms
from .gibbs_weights import Gibbs, gibbs_weights
from .inner_products import inner_products, sq_norm
from .linear_grad_norms import linear_grad_norms
from .normalization_grads import normalization_grads

__all__ = [
    "BASIS", "GRAM", "Combination", "Draw", "Gibbs", "SampleLoss", "ascend_", "conv_grad_norms", "cross_entropy_sample", "descend_", "draw",
    "embedding_grad_norms", "gibbs_weights", "inner_products", "linear_grad_norms", "normalization_grads", "restore_", "sq_norm",
]  # fmt: skip
