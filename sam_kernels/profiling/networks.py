"""Networks whose whole training steps are measured: their trainable parameters have the shapes of ``workloads``, in that order.

Plain modules, as users write them: nothing in here knows of this library. Each family also comes scaled down, in ``TINY``.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import Block, Case, Residual, conv3, shortcut


def resnet(width: int, blocks: tuple[int, ...], classes: int, small: bool) -> nn.Module:
    """Basic blocks with BatchNorm (arXiv 1512.03385). ``small``: for 32x32, a stem of one 3x3 convolution without pooling."""
    stem = [conv3(3, width) if small else nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    stages: list[nn.Module] = [] if small else [nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            stages.append(Residual(inputs, outputs, 2 if stage and not block else 1, nn.BatchNorm2d, short_norm=True))
            inputs = outputs
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class PreActivation(nn.Module):
    """Block of a wide ResNet: norm and ReLU before each convolution; a shortcut that is a convolution sees what the first one sees."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv3(outputs, outputs)
        self.short, self.act = shortcut(inputs, outputs, stride), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(x))
        short: Tensor = self.short(x if isinstance(self.short, nn.Identity) else y)
        return short + self.conv2(self.act(self.norm2(self.conv1(y))))


def wide_resnet(depth: int, widening: int, classes: int, width: int = 16) -> nn.Module:
    """For 32x32 (arXiv 1605.07146), without dropout."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(3):
        outputs = width * widening * 2**stage
        for block in range((depth - 4) // 6):
            blocks.append(PreActivation(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    end = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(conv3(3, width), *blocks, *end)


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))


class Encoder(nn.Module):
    """Positions, blocks, a norm."""

    def __init__(self, width: int, depth: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.positions = _drawn(1, tokens, width)
        self.blocks, self.norm = nn.Sequential(*(Block(width, heads) for _ in range(depth))), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.blocks(x + self.positions.expand(len(x), -1, -1)))
        return y


class VisionTransformer(nn.Module):
    """Class token and positions are parameters of one sample's shape, expanded over the batch (arXiv 2010.11929)."""

    def __init__(self, width: int, depth: int, heads: int, classes: int, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.class_token = _drawn(1, 1, width)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.encoder = Encoder(width, depth, heads, 1 + (size // patch) ** 2)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.encoder(torch.cat((self.class_token.expand(len(x), -1, -1), x), 1))
        out: Tensor = self.head(x[:, 0])
        return out


class GPT(nn.Module):
    """Logits of the next token at every position; ``tied``: the head is the table of words."""

    def __init__(self, width: int, depth: int, heads: int, words: int, length: int, tied: bool = True) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, words, bias=False)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        x = self.norm(self.blocks(self.words(ids) + self.positions(places)))
        return F.linear(x, self.words.weight if self.head is None else self.head.weight)


resnet18 = partial(resnet, 64, (2, 2, 2, 2))
wrn28_10 = partial(wide_resnet, 28, 10)
vit_s16, vit_b16 = partial(VisionTransformer, 384, 12, 6), partial(VisionTransformer, 768, 12, 12)
gpt2 = partial(GPT, 768, 12, 12, 50257, 1024)

NETWORKS = {
    "resnet18_cifar": Case("ResNet-18, 32x32, B 128", partial(resnet18, 10, small=True), (128, 3, 32, 32), 10, channels_last=True),
    "wrn28_10": Case("WRN-28-10, 32x32, B 128", partial(wrn28_10, 10), (128, 3, 32, 32), 10, channels_last=True),
    "vit_s16": Case("ViT-S/16, 224x224, B 128", partial(vit_s16, 1000), (128, 3, 224, 224), 1000),
    "vit_b16": Case("ViT-B/16, 224x224, B 64", partial(vit_b16, 1000), (64, 3, 224, 224), 1000),
    "gpt2": Case("GPT-2 124M, T 1024, B 8", gpt2, (8, 1024), 50257, 50257),
}
TINY = {
    "tiny_resnet": Case("ResNet, B 4", partial(resnet, 8, (1, 1), 10, small=True), (4, 3, 8, 8), 10, channels_last=True),
    "tiny_wrn": Case("WRN-10-2, B 4", partial(wide_resnet, 10, 2, 10, 4), (4, 3, 8, 8), 10, channels_last=True),
    "tiny_vit": Case("ViT, B 4", partial(VisionTransformer, 16, 2, 2, 10, 8, 4), (4, 3, 8, 8), 10),
    "tiny_gpt": Case("GPT, T 8, B 4", partial(GPT, 16, 2, 2, 50, 8), (4, 8), 50, 50),
}
