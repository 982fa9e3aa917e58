"""The functional layer: lists of tensors in, updates in place, every backend by name."""

from .ascend import ascend_
from .coefficients import BASIS, GRAM, Combination
from .descend import descend_, restore_
from .inner_products import inner_products, sq_norm

__all__ = ["BASIS", "GRAM", "Combination", "ascend_", "descend_", "inner_products", "restore_", "sq_norm"]
