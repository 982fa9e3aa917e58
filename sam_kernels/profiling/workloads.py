"""Workloads: the parameter shapes of real models. Shapes only, no weights.

The counts are those of torchvision's ResNets and ViTs with the ImageNet head, of WRN-28-10 with ten classes, of GPT-2 with 124 million and
1.5 billion parameters, and of Llama 2 7B; each is asserted.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch

from . import Refused

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


def _wide_resnet(depth: int, widening: int, classes: int = 10) -> list[Shape]:
    """Of CIFAR (arXiv 1605.07146): norm and activation before every convolution, the shortcut a bare 1x1 convolution."""

    def bn_conv(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs,), (inputs,), (outputs, inputs, 3, 3)]

    inputs = 16
    shapes: list[Shape] = [(16, 3, 3, 3)]
    for stage in range(3):
        width = 16 * widening * 2**stage
        for _ in range((depth - 4) // 6):
            shapes += bn_conv(inputs, width) + bn_conv(width, width) + ([(width, inputs, 1, 1)] if inputs != width else [])
            inputs = width
    return [*shapes, (inputs,), (inputs,), (classes, inputs), (classes,)]


def _vit16(width: int, depth: int) -> list[Shape]:
    embedding = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    return embedding + depth * _transformer_block(width) + [(width,), (width,), (1000, width), (1000,)]


def _gpt2(width: int, depth: int) -> list[Shape]:
    return [(50257, width), (1024, width)] + depth * _transformer_block(width) + [(width,), (width,)]


def llama7b(layers: int) -> list[Shape]:
    """Llama 2 7B (arXiv 2307.09288), or so many of its 32 layers."""
    width, hidden, words = 4096, 11008, 32000
    layer = 4 * [(width, width)] + 2 * [(hidden, width)] + [(width, hidden), (width,), (width,)]
    return [(words, width), *(layers * layer), (width,), (words, width)]


def _tiny(count: int, least: int, most: int) -> list[Shape]:
    draw = random.Random(count)
    return [(draw.randint(least, most),) for _ in range(count)]


_MODELS: dict[str, tuple[Callable[[], list[Shape]], int, int | None]] = {
    "resnet18": (lambda: _resnet((2, 2, 2, 2), bottleneck=False), 62, 11_689_512),
    "resnet50": (lambda: _resnet((3, 4, 6, 3), bottleneck=True), 161, 25_557_032),
    "resnet152": (lambda: _resnet((3, 8, 36, 3), bottleneck=True), 467, 60_192_808),
    "wrn28_10": (lambda: _wide_resnet(28, 10), 80, 36_479_194),
    "vit_s16": (lambda: _vit16(384, 12), 152, 22_050_664),
    "vit_b16": (lambda: _vit16(768, 12), 152, 86_567_656),
    "vit_l16": (lambda: _vit16(1024, 24), 296, 304_326_632),
    "gpt2": (lambda: _gpt2(768, 12), 148, 124_439_808),
    "gpt2_xl": (lambda: _gpt2(1600, 48), 580, 1_557_611_200),
    "llama7b": (lambda: llama7b(LAYERS), 291, 6_738_415_616),
    "tiny300": (lambda: _tiny(300, 64, 4096), 300, None),
    "tiny10000": (lambda: _tiny(10_000, 64, 1024), 10_000, None),
    **{f"ones{count}": (partial(_tiny, count, 1, 1), count, count) for count in (62, 161, 300)},
}
LAYERS = 32  # of llama7b, where they fit into memory
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


@dataclass(frozen=True)
class Workload:
    """A named list of shapes; ``note`` where it is not all of what the name says."""

    name: str
    shapes: tuple[Shape, ...]
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


def named(name: str, bytes_per_parameter: int, available: int) -> Workload:
    """A workload by name, ``llama7b`` with as many layers as fit into the ``available`` bytes, and at least one."""
    if name not in WORKLOADS:
        raise Refused(f"--workload is {name!r}; expected one of {', '.join(WORKLOADS)}, or shapes of your own by --shapes")
    if name != "llama7b":
        return Workload(name, tuple(WORKLOADS[name]))
    outside, layer = elements(llama7b(0)), elements(llama7b(1)) - elements(llama7b(0))
    layers = max(1, min(LAYERS, int((available / bytes_per_parameter - outside) // layer)))
    return Workload(name, tuple(llama7b(layers)), "" if layers == LAYERS else f"{layers} of {LAYERS} layers")


def own(text: str) -> Workload:
    """Shapes from the command line, ``64x3x7x7,64``, or from a JSON file: a list of lists of sizes, or an object of such lists by name."""
    what = f"--shapes is {text!r}; expected sizes such as 64x3x7x7,64, or a JSON file with a list of lists of sizes"
    path = Path(text)
    try:
        if path.suffix == ".json":
            read = json.loads(path.read_text())
            found = list(read.values()) if isinstance(read, dict) else read
            name = path.stem
            if not all(type(size) is int for shape in found for size in shape):  # neither 2.9 nor true nor "64"
                raise ValueError
        else:
            found, name = [list(map(int, part.split("x"))) for part in text.split(",")], "shapes"
        shapes = tuple(map(tuple, found))
    except OSError as error:
        raise Refused(f"--shapes {text}: {error.strerror or error}") from None
    except (TypeError, ValueError, AttributeError):
        raise Refused(what) from None
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise Refused(f"{what}, at least one tensor and no empty ones")
    return Workload(name, shapes)


@lru_cache(maxsize=8)
def _table(seed: int, device: str) -> torch.Tensor:
    return torch.randn(TABLE, generator=torch.Generator().manual_seed(seed)).to(device)


def tensors(shapes: Sequence[Shape], seed: int, scale: float, device: str, via: torch.dtype, dtype: torch.dtype) -> list[torch.Tensor]:
    """Separately allocated normal tensors, rounded to ``via``: the same values in every dtype that holds those.

    Cut from a short table over and over, since a generator takes longer than the step that is to be timed."""
    table = (scale * _table(seed, device)).to(via).to(dtype)
    result: list[torch.Tensor] = []
    offset = 0
    for shape in shapes:
        flat, position = table.new_empty(math.prod(shape)), 0
        while position < len(flat):
            count = min(TABLE - offset, len(flat) - position)
            flat[position : position + count] = table[offset : offset + count]
            position, offset = position + count, (offset + count) % TABLE
        result.append(flat.reshape(shape))
    return result
