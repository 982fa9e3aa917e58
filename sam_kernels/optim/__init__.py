"""Optimizers: ``SAM`` and the presets built from its four rules."""

from ..batchnorm import frozen_batchnorm
from . import rules
from .presets import ASAM, StableSAM
from .sam import SAM

__all__ = ["ASAM", "SAM", "StableSAM", "frozen_batchnorm", "rules"]
