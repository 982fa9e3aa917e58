"""Published algorithms as presets: a subclass with nothing but ``__init__``."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .plain import AMSGrad
from .rules import Efficient, MicroBatch, Reweighted, Sampled, Stable
from .sam import SAM


class ASAM(SAM):
    """Adaptive SAM (arXiv 2102.11600): the perturbation is scaled by ``(|w| + eta)**2``. Every tensor is scaled."""

    def __init__(self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.5, *, eta: float = 0.01, **kwargs: Any) -> None:
        super().__init__(params, base_optimizer, rho, True, eta=eta, **kwargs)


class StableSAM(SAM):
    """Stable SAM (arXiv 2401.07250): the gradient of the update is given the norm of the ascent gradient."""

    def __init__(self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, **kwargs: Any) -> None:
        super().__init__(params, base_optimizer, rho, adaptive, descent=Stable(), **kwargs)


class MicroBatchSAM(SAM):
    """m-SAM (arXiv 2212.04343): every shard of the batch perturbs by its own gradient, the update is the average of what they then see.

    ``opt.step(losses, batch_size=len(y))``; see ``SAM.step``. The arithmetic of a SAM step, in smaller pieces, and one more gradient.

    Args:
        shard_size: samples per shard, the "m" of the papers on m-sharpness; the last shard of a batch may be smaller.
        shards: how many shards of nearly equal size, at most one per sample (of a small last batch, too: ``drop_last=True``). Shards
            count by their size.

    A descent that looks at the first gradient sees that of the whole batch. ``grad_norm`` is then its norm, else the root mean square of
    the norms of the shards. A shard whose gradient is not finite skips the step. With BatchNorm pass ``model``: the first shard records
    statistics.
    """

    def __init__(
        self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, *, shard_size: int | None = None,
        shards: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, base_optimizer, rho, adaptive, batch=MicroBatch(shard_size, shards), **kwargs)


class ESAM(SAM):
    """Efficient SAM (arXiv 2110.03141): the ascent moves a random part of the tensors, the descent looks at a part of the samples.

    ``opt.step(losses, batch_size=len(y))``; see ``SAM.step``. With ``beta = gamma = 1`` it is SAM.

    Args:
        beta: every tensor takes part in an ascent with this probability, in (0, 1], at least one does; the first step takes all. Their
            gradient alone is computed, and the radius is ``rho / beta``. Drawn on the host, from torch's CPU generator: not for
            ``capture``. Frozen tensors and groups with rho = 0 are not among those drawn. Below 1 it takes one process without
            ``DistributedDataParallel``, which waits for gradients that are never computed, and no reentrant checkpoints.
        gamma: share of the samples in the second pass, in (0, 1]: those whose loss the ascent has raised most, strictly more than sample
            number ``int(gamma B)`` in that order, so one fewer, as the authors have it; at least one. From 0.99 on, all.
        inclusive: take ``ceil(gamma B)`` samples instead.

    ``sample_indices`` ``[k]`` are the positions that the second pass of the last step has looked at; of those that tie with the first that
    is left out, some may be among them with no weight; losses in bf16 tie often, so compute them in fp32, as cross-entropy under autocast
    does. Dropout drops the same in the forwards whose losses are compared. With BatchNorm
    pass ``model``: the first forward records statistics.
    """

    def __init__(
        self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, *, beta: float = 0.6,
        gamma: float = 0.5, inclusive: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, base_optimizer, rho, adaptive, batch=Efficient(beta, gamma, inclusive), **kwargs)


class AUSAM(SAM):
    """Asymptotic unbiased sampling SAM (arXiv 2406.08001): both passes look at a random part of the batch, drawn by how much the ascent
    has changed each sample's loss so far.

    ``opt.step(losses, batch_size=len(y), sample_ids=ids)``; see ``SAM.step``. It returns the mean loss of the samples that it looked at.

    Args:
        num_samples: samples in the training set; ``sample_ids``, int64 ``[B]``, are positions in it, each at most once in a batch. On the
            CPU they are checked; bad ones on a GPU stop the device.
        alpha: share of the batch in both passes, in (0, 1]: ``int(alpha B)`` without replacement, at least one. 1 is SAM.
        s_min, s_max: odds of being drawn, between which the mean changes are laid within the batch; 0 < s_min <= s_max <= 1e6 s_min.
        ramp: passes over the data in which the upper one rises from ``s_min`` to ``s_max``.

    The first ``num_samples`` samples, the first pass over the data, are all looked at. The table of changes, two numbers per sample beside
    the parameters, is part of ``state_dict``; a step that was skipped, and a loss that is not finite, leave no trace in it. As its authors
    have it, a sample that was never looked at counts as a change of 1, which is large; with ``drop_last=True`` the first pass misses some.
    ``sample_indices`` are the positions that the last step drew, None for all. With alpha below 1 dropout drops the same in both
    passes. Passes are counted on the host: not for ``capture``. Every process has its own table.
    """

    def __init__(
        self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.1, adaptive: bool = False, *, num_samples: int,
        alpha: float = 0.5, s_min: float = 0.1, s_max: float = 0.5, ramp: int = 30, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, base_optimizer, rho, adaptive, batch=Sampled(num_samples, alpha, s_min, s_max, ramp), **kwargs)


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
        draw: ascend along the mean gradient of this many samples drawn by p (systematic), which is the same on average. With the two
            estimates, only these have a backward in the first pass: a step may then cost less than one of SAM.

    ``sample_norms`` ``[B]``, ``sample_weights`` (a ``Gibbs``) and, with ``draw``, ``sample_indices`` ``[draw]`` are those of the last step.
    """

    def __init__(
        self, params: Iterable[Any], base_optimizer: Any, rho: float = 0.05, adaptive: bool = False, *, lam: float | Tensor,
        estimator: str = "exact", relative: bool = False, delta: float = 1e-4, probes: int = 1, batchnorm: str = "error",
        draw: int | None = None, model: nn.Module | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        batch = Reweighted(lam, estimator, relative, delta, probes, batchnorm, draw)
        super().__init__(params, base_optimizer, rho, adaptive, batch=batch, model=model, **kwargs)
