"""Norms of the gradient of every sample's own loss, exact, in the ordinary backward pass of unmodified models."""

from .context import GradientNoise, GradNorms, grad_norms
from .functional import conv, embedding, group_norm, layer_norm, linear, rms_norm
from .verify import verify

__all__ = ["GradNorms", "GradientNoise", "conv", "embedding", "grad_norms", "group_norm", "layer_norm", "linear", "rms_norm", "verify"]
