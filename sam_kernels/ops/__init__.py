"""The functional layer: lists of tensors in, updates in place, every backend by name."""

from .ascend import ascend_
from .coefficients import BASIS, GRAM, Combination
from .descend import descend_, restore_
from .embedding_grad_norms import embedding_grad_norms
from .inner_products import inner_products, sq_norm
from .normalization_grads import normalization_grads

__all__ = [
    "BASIS", "GRAM", "Combination", "ascend_", "descend_", "embedding_grad_norms", "inner_products", "normalization_grads", "restore_",
    "sq_norm",
]  # fmt: skip
