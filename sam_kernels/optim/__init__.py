"""Optimizers: ``SAM`` and the presets built from its four rules."""

from ..batchnorm import frozen_batchnorm
from . import rules
from .plain import AMSGrad, Lion
from .presets import ASAM, AUSAM, ESAM, AdaSAM, MicroBatchSAM, ReweightedSAM, StableSAM
from .sam import SAM

__all__ = [
    "ASAM", "AUSAM", "ESAM", "SAM", "AMSGrad", "AdaSAM", "Lion", "MicroBatchSAM", "ReweightedSAM", "StableSAM", "frozen_batchnorm", "rules",
]  # fmt: skip
