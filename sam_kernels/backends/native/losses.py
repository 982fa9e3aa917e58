"""The ops over rows of logits and over norms: ``cross_entropy_sample``, its backward, ``gibbs_weights``."""

from torch import Tensor

from ...ops.lists import accumulator
from .call import TAIL, native, place

SCHEMAS = {  # with the outputs of the losses as arguments; the four of Gibbs weights, small as a batch, are made in C++
    "cross_entropy_sample": "(Tensor logits, Tensor target, float label_smoothing, int ignore_index, Tensor? weight, Tensor(a!) loss, "
    "Tensor(b!) norm, Tensor(c!) log_norm, " + TAIL,
    "cross_entropy_sample_backward": "(Tensor grad, Tensor logits, Tensor target, Tensor log_norm, float label_smoothing, "
    "int ignore_index, Tensor? weight, Tensor(a!) out, " + TAIL,
    "gibbs_weights": "(Tensor norms, float lam, Tensor? lam_device, bool relative, int device, int stream) -> "
    "(Tensor weights, Tensor ess, Tensor log_partition, Tensor flag)",
}


def _cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float, ignore_index: int, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = len(logits), accumulator(logits.dtype)
    loss, norm, log_norm = logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, 3, dtype=dtype)
    native("cross_entropy_sample")(logits, target, label_smoothing, ignore_index, weight, loss, norm, log_norm, *place(logits))
    return loss, norm, log_norm


def _cross_entropy_backward(
    grad: Tensor, logits: Tensor, target: Tensor, log_norm: Tensor, label_smoothing: float, ignore_index: int, weight: Tensor | None
) -> Tensor:
    out = logits.new_empty(logits.shape)
    native("cross_entropy_sample_backward")(grad, logits, target, log_norm, label_smoothing, ignore_index, weight, out, *place(logits))
    return out


def _gibbs_weights(norms: Tensor, lam: float, lam_device: Tensor | None, relative: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, device, stream = place(norms)
    weights, ess, log_partition, flag = native("gibbs_weights")(norms, lam, lam_device, relative, device, stream)
    return weights, ess, log_partition, flag


FUNCTIONS = {
    "cross_entropy_sample": _cross_entropy,
    "cross_entropy_sample_backward": _cross_entropy_backward,
    "gibbs_weights": _gibbs_weights,
}
