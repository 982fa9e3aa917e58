"""Fused kernels for sharpness-aware training in PyTorch."""

from . import ops

__all__ = ["ops"]
