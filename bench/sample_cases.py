"""What per-sample norms are measured on: three equal layers, an embedding, and the models of the profiler."""

from collections.abc import Callable
from functools import partial

from torch import nn

from sam_kernels.profiling.models import MODELS, Case


def three(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for _ in range(3)))


LAYERS = {
    "linear-512": Case("3 Linear 1024, B 8, T 512", three(partial(nn.Linear, 1024, 1024)), (8, 512, 1024)),
    "linear-128": Case("3 Linear 768, B 32, T 128", three(partial(nn.Linear, 768, 768)), (32, 128, 768)),
    "linear-1": Case("3 Linear 1024, B 128", three(partial(nn.Linear, 1024, 1024)), (128, 1024)),
    "conv-32": Case("3 Conv 3x3, 64, 32x32, B 16", three(partial(nn.Conv2d, 64, 64, 3, padding=1)), (16, 64, 32, 32)),
    "conv-8": Case("3 Conv 3x3, 64, 8x8, B 64", three(partial(nn.Conv2d, 64, 64, 3, padding=1)), (64, 64, 8, 8)),
    "conv-4": Case("3 Conv 3x3, 512, 4x4, B 16", three(partial(nn.Conv2d, 512, 512, 3, padding=1)), (16, 512, 4, 4)),
    "layernorm": Case("3 LayerNorm 1024, B 16, T 512", three(partial(nn.LayerNorm, 1024)), (16, 512, 1024)),
    "embedding": Case("Embedding 8192 x 256, B 16, T 256", lambda: nn.Sequential(nn.Embedding(8192, 256)), (16, 256), entries=8192),
}
CASES = LAYERS | MODELS
