"""Optimizers: ``SAM`` and the presets built from its four rules."""

from ..batchnorm import frozen_batchnorm
from . import rules
from .plain import AMSGrad, Lion
from .presets import ASAM, AdaSAM, ReweightedSAM, StableSAM
from .sam import SAM

__all__ = ["ASAM", "SAM", "AMSGrad", "AdaSAM", "Lion", "ReweightedSAM", "StableSAM", "frozen_batchnorm", "rules"]
