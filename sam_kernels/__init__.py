"""Fused kernels for sharpness-aware training in PyTorch."""

from . import ops
from .backends import native, triton
from .registry import show_backends

native.load()
triton.register()

__all__ = ["ops", "show_backends"]
__version__ = "0.1.0"
