"""``draw`` on the CPU; on GPUs Triton serves it."""

from torch import Tensor

from .call import native

SCHEMAS = {"draw": "(Tensor weights, int k, str scheme, Tensor state) -> (Tensor counts, Tensor inclusion, Tensor flag)"}
CPU_ONLY = ("draw",)


def _draw(weights: Tensor, k: int, scheme: str, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counts, inclusion, flag = native("draw")(weights, k, scheme, state)
    return counts, inclusion, flag


FUNCTIONS = {"draw": _draw}
