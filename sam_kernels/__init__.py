"""Fused kernels for sharpness-aware training in PyTorch."""

from . import ops, per_sample
from .backends import native, triton
from .graphs import capture
from .registry import show_backends

native.load()
triton.register()

__all__ = ["capture", "ops", "per_sample", "show_backends"]
__version__ = "0.1.0"
