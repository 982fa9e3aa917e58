"""Fused kernels for sharpness-aware training in PyTorch."""

from . import ops
from .backends import native

native.load()

__all__ = ["ops"]
