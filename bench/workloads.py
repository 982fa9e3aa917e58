"""Workloads: the parameter shapes of real models. Shapes only, no weights.

The counts are those of torchvision's ResNet-18, ResNet-50 and ViT-B/16 with the ImageNet head, and of GPT-2 small; each is asserted.
"""

import math
import random
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

Shape = tuple[int, ...]

TABLE = (1 << 20) + 7  # distinct normal values; odd, so that tensors of round sizes differ


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


def _tiny(count: int, least: int, most: int) -> list[Shape]:
    draw = random.Random(count)
    return [(draw.randint(least, most),) for _ in range(count)]


_MODELS: dict[str, tuple[Callable[[], list[Shape]], int, int | None]] = {
    "resnet18": (lambda: _resnet((2, 2, 2, 2), bottleneck=False), 62, 11_689_512),
    "resnet50": (lambda: _resnet((3, 4, 6, 3), bottleneck=True), 161, 25_557_032),
    "vit_b16": (_vit_b16, 152, 86_567_656),
    "gpt2": (_gpt2, 148, 124_439_808),
    "tiny300": (lambda: _tiny(300, 64, 4096), 300, None),
    "tiny10000": (lambda: _tiny(10_000, 64, 1024), 10_000, None),
    **{f"ones{count}": (partial(_tiny, count, 1, 1), count, count) for count in (62, 161, 300)},
}
HOST_WORKLOADS = ("ones62", "ones161", "ones300")
"""Tensors of one element, as many as ResNet-18, ResNet-50 and tiny300 have: a step there is all overhead."""


def elements(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _checked(name: str) -> list[Shape]:
    build, tensors, total = _MODELS[name]
    shapes = build()
    assert len(shapes) == tensors, f"{name} has {len(shapes)} tensors, expected {tensors}"
    assert total is None or elements(shapes) == total, f"{name} has {elements(shapes)} parameters, expected {total}"
    return shapes


WORKLOADS = {name: _checked(name) for name in _MODELS}


@lru_cache(maxsize=8)
def _table(seed: int, device: str) -> torch.Tensor:
    return torch.randn(TABLE, generator=torch.Generator().manual_seed(seed)).to(device)


def tensors(workload: str, seed: int, scale: float, device: str, via: torch.dtype, dtype: torch.dtype) -> list[torch.Tensor]:
    """Separately allocated normal tensors, rounded to ``via``: the same values in every dtype that holds those.

    Cut from a short table over and over, since a generator takes longer than the step that is to be timed."""
    table = (scale * _table(seed, device)).to(via).to(dtype)
    result, offset = [], 0
    for shape in WORKLOADS[workload]:
        flat, position = table.new_empty(math.prod(shape)), 0
        while position < len(flat):
            count = min(TABLE - offset, len(flat) - position)
            flat[position : position + count] = table[offset : offset + count]
            position, offset = position + count, (offset + count) % TABLE
        result.append(flat.reshape(shape))
    return result
