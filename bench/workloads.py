"""Workloads: the parameter shapes of real models, and the bytes that a step has to move. Shapes only, no weights.

The counts are those of torchvision's ResNet-18, ResNet-50 and ViT-B/16 with the ImageNet head, and of GPT-2 small; each is asserted.
"""

import math
import random
from collections.abc import Callable
from functools import lru_cache

import torch

Shape = tuple[int, ...]

BYTES_PER_PARAMETER = {"sam": 40, "asam": 44, "stable_sam": 44}
"""fp32 with SGD-momentum, each operand once: norm 4 (ASAM 8), ascend 16, descend 20 (Stable SAM 24)."""


def _conv_bn(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    return [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> list[Shape]:
    shapes, inputs = _conv_bn(3, 64, 7), 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                shapes += _conv_bn(inputs, width, 1) + _conv_bn(width, width, 3) + _conv_bn(width, outputs, 1)
            else:
                shapes += _conv_bn(inputs, width, 3) + _conv_bn(width, outputs, 3)
            if block == 0 and inputs != outputs:
                shapes += _conv_bn(inputs, outputs, 1)
            inputs = outputs
    return [*shapes, (1000, inputs), (1000,)]


def _transformer_block(width: int) -> list[Shape]:
    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm = [(width,), (width,)]
    return norm + linear(width, 3 * width) + linear(width, width) + norm + linear(width, 4 * width) + linear(4 * width, width)


def _vit_b16() -> list[Shape]:
    embedding = [(1, 1, 768), (768, 3, 16, 16), (768,), (1, 197, 768)]
    return embedding + 12 * _transformer_block(768) + [(768,), (768,), (1000, 768), (1000,)]


def _gpt2() -> list[Shape]:
    return [(50257, 768), (1024, 768)] + 12 * _transformer_block(768) + [(768,), (768,)]


def _tiny300() -> list[Shape]:
    draw = random.Random(300)
    return [(draw.randint(64, 4096),) for _ in range(300)]


_MODELS: dict[str, tuple[Callable[[], list[Shape]], int, int | None]] = {
    "resnet18": (lambda: _resnet((2, 2, 2, 2), bottleneck=False), 62, 11_689_512),
    "resnet50": (lambda: _resnet((3, 4, 6, 3), bottleneck=True), 161, 25_557_032),
    "tiny300": (_tiny300, 300, None),
    "vit_b16": (_vit_b16, 152, 86_567_656),
    "gpt2": (_gpt2, 148, 124_439_808),
}


def elements(shapes: list[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _checked(name: str) -> list[Shape]:
    build, tensors, total = _MODELS[name]
    shapes = build()
    assert len(shapes) == tensors, f"{name} has {len(shapes)} tensors, expected {tensors}"
    assert total is None or elements(shapes) == total, f"{name} has {elements(shapes)} parameters, expected {total}"
    return shapes


WORKLOADS = {name: _checked(name) for name in _MODELS}


def _normal(workload: str, seed: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device) for shape in WORKLOADS[workload]]


_kept = lru_cache(maxsize=8)(_normal)  # CPU generators are slow


def tensors(workload: str, seed: int, scale: float, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Separately allocated normal tensors; the same values for every dtype on one device."""
    return [(scale * x).to(dtype) for x in (_kept if device == "cpu" else _normal)(workload, seed, device)]
