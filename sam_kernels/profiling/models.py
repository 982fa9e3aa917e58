"""What is trained to be measured: models, each with a batch and a loss per sample, small enough for two cores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm transformer block; attention of plain Linear layers, which every peer knows."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """As every peer likes it: patches are a Linear layer, positions an embedding of the whole batch's ids, and the class token is
    position 0, so that no parameter is broadcast."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.patch, self.patches, self.positions = patch, nn.Linear(3 * patch * patch, width), nn.Embedding(1 + tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2).contiguous())
        ids = torch.arange(1 + x.shape[1], device=x.device).repeat(len(x), 1)
        out: Tensor = self.head(self.norm(self.blocks(F.pad(x, (0, 0, 1, 0)) + self.positions(ids)))[:, 0])
        return out


Norm = Callable[[int], nn.Module]  # of so many channels


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1x1 convolution where the shape changes."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False) if (inputs, stride) != (outputs, 1) else nn.Identity()


class Residual(nn.Module):
    """Basic block of a ResNet; ``short_norm``: its shortcut, where it is a convolution, has a norm of its own."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, short_norm: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3(inputs, outputs, stride), norm(outputs)
        self.conv2, self.norm2 = conv3(outputs, outputs), norm(outputs)
        self.short = shortcut(inputs, outputs, stride)
        if short_norm and isinstance(self.short, nn.Conv2d):
            self.short = nn.Sequential(self.short, norm(outputs))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        out: Tensor = self.act(y + self.short(x))
        return out


def cnn() -> nn.Module:
    norm = partial(nn.GroupNorm, 8)
    sizes = ((32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    stages = [Residual(*size, norm, short_norm=False) for size in sizes]
    return nn.Sequential(conv3(3, 32), norm(32), nn.ReLU(), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def mlp() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(1024, 1024), nn.ReLU())), nn.Linear(1024, 10))


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    label: str
    build: Callable[[], nn.Module]
    shape: Shape  # of the input, batch first
    classes: int = 0  # a classifier under cross-entropy; 0: layers under the product with a fixed tensor
    entries: int = 0  # ids below it, instead of normal values; with classes: a class for every position, the loss their mean
    channels_last: bool = False  # weights and batch in the layout that tensor cores want of convolutions

    @property
    def samples(self) -> int:
        return self.shape[0]

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def batch(self) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(1)
        if self.entries:  # frequent and rare ids, as in a text
            chances = 1 / torch.arange(1.0, self.entries + 1)
            x = torch.multinomial(chances.expand(self.samples, -1), self.shape[1], replacement=True, generator=random)
        else:
            x = torch.randn(self.shape, generator=random)
        if self.classes:
            return x, torch.randint(0, self.classes, self.shape if self.entries else self.shape[:1], generator=random)
        with torch.no_grad():
            size = self.model()(x[:1]).numel()
        return x, torch.randn(self.samples, size, generator=random)

    def losses(self, out: Tensor, target: Tensor) -> Tensor:
        """``[B]``"""
        if self.classes and self.entries:
            return F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)
        if self.classes:
            return F.cross_entropy(out, target, reduction="none")
        return (out.flatten(1) * target.to(out.dtype)).sum(1)


MODELS = {
    "mlp": Case("MLP 4 x 1024, B 256", mlp, (256, 1024), classes=10),
    "vit": Case("ViT 192, depth 6, T 65, B 32", lambda: ViT(192, 6, 3, 4, 64), (32, 3, 32, 32), classes=10),
    "cnn": Case("CNN with GroupNorm, 32x32, B 32", cnn, (32, 3, 32, 32), classes=10),
}
