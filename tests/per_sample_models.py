"""Layers and models of the per-sample tests: no dropout, and nothing that two samples share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from per_sample_oracle import B, Loss, losses, token_losses
from torch import Tensor, nn


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one sample
    ids: int = 0  # the input is ids below this number
    frozen: str = ""
    train: bool = True

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        model = randomized(self.make()).to(dtype).train(self.train)
        for name, p in model.named_parameters():
            p.requires_grad_(name != self.frozen)
        return model

    def input(self, dtype: torch.dtype = torch.float32, samples: int = B) -> Tensor:
        return data((samples, *self.shape), dtype, self.ids)


def data(shape: Sequence[int], dtype: torch.dtype = torch.float32, ids: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if ids:
        return torch.randint(ids, tuple(shape), generator=generator)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)


def randomized(model: nn.Module) -> nn.Module:
    """Scales and shifts that are not 1 and 0, statistics that are not 0 and 1."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if t is not None and t.is_floating_point():
                    t.data.uniform_(0.5, 1.5) if name in ("weight", "running_var") else t.data.normal_(0, 0.3)
    return model


def _conv(dims: int, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](*arguments, **options)


LAYERS: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(5, 4), (5,)),
    "linear 3d direct": Case(lambda: nn.Linear(5, 4), (7, 5)),
    "linear 3d gram": Case(lambda: nn.Linear(12, 10), (3, 12)),
    "linear 4d": Case(lambda: nn.Linear(5, 4), (2, 3, 5)),
    "linear no bias": Case(lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "linear weight only": Case(lambda: nn.Linear(5, 4), (3, 5), frozen="bias"),
    "linear bias only": Case(lambda: nn.Linear(5, 4), (3, 5), frozen="weight"),
    "conv1d": Case(_conv(1, 4, 6, 3, padding=1), (4, 9)),
    "conv1d depthwise": Case(_conv(1, 4, 4, 5, padding=2, groups=4), (4, 9)),
    "conv1d same even": Case(_conv(1, 3, 4, 4, padding="same", dilation=3), (3, 10)),
    "conv1d same": Case(_conv(1, 3, 4, 3, padding="same"), (3, 10)),
    "conv2d": Case(_conv(2, 4, 6, 3, padding=1), (4, 6, 5)),
    "conv2d 1x1": Case(_conv(2, 4, 6, 1), (4, 3, 5)),
    "conv2d patches": Case(_conv(2, 3, 8, 4, stride=4), (3, 8, 8)),
    "conv2d groups": Case(_conv(2, 8, 12, 3, groups=4), (8, 6, 5)),
    "conv2d depthwise": Case(_conv(2, 4, 4, 7, padding=3, groups=4), (4, 8, 8)),
    "conv2d depthwise times 2": Case(_conv(2, 3, 6, 3, groups=3), (3, 6, 6)),
    "conv2d stride that leaves a rest": Case(_conv(2, 4, 6, 3, stride=(2, 3)), (4, 8, 7)),
    "conv2d dilation": Case(_conv(2, 3, 4, (3, 2), dilation=(2, 3), padding=(2, 1)), (3, 8, 7)),
    "conv2d valid": Case(_conv(2, 3, 4, 3, padding="valid"), (3, 6, 5)),
    "conv2d same even": Case(_conv(2, 3, 4, (2, 4), padding="same", dilation=(1, 3)), (3, 5, 9)),
    "conv2d reflect": Case(_conv(2, 3, 4, 3, padding=(1, 2), padding_mode="reflect"), (3, 6, 5)),
    "conv2d replicate": Case(_conv(2, 3, 4, 3, padding=2, padding_mode="replicate"), (3, 6, 5)),
    "conv2d circular same even": Case(_conv(2, 3, 4, 4, padding="same", padding_mode="circular"), (3, 6, 5)),
    "conv2d no bias": Case(_conv(2, 3, 4, 3, bias=False), (3, 6, 5)),
    "conv2d weight only": Case(_conv(2, 3, 4, 3), (3, 6, 5), frozen="bias"),
    "conv2d bias only": Case(_conv(2, 3, 4, 3), (3, 6, 5), frozen="weight"),
    "conv3d": Case(_conv(3, 4, 4, 3, stride=(1, 2, 1), padding=1, groups=2), (4, 3, 5, 4)),
    "conv3d same even": Case(_conv(3, 2, 3, 2, padding="same"), (2, 3, 4, 3)),
    "conv3d replicate": Case(_conv(3, 2, 3, 3, padding=1, padding_mode="replicate"), (2, 3, 4, 3)),
    "embedding 1d": Case(lambda: nn.Embedding(4, 3), (), ids=4),
    "embedding": Case(lambda: nn.Embedding(4, 3), (6,), ids=4),
    "embedding 3d": Case(lambda: nn.Embedding(4, 3), (2, 3), ids=4),
    "embedding padding_idx": Case(lambda: nn.Embedding(4, 3, padding_idx=0), (6,), ids=4),
    "embedding padding_idx from the end": Case(lambda: nn.Embedding(4, 3, padding_idx=-2), (6,), ids=4),
    "embedding max_norm": Case(lambda: nn.Embedding(4, 3, max_norm=0.7), (6,), ids=4),
    "layer_norm": Case(lambda: nn.LayerNorm(5), (5,)),
    "layer_norm of positions": Case(lambda: nn.LayerNorm(5), (2, 3, 5)),
    "layer_norm over 2": Case(lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "layer_norm no bias": Case(lambda: nn.LayerNorm(5, bias=False), (3, 5)),
    "layer_norm bias only": Case(lambda: nn.LayerNorm(5), (3, 5), frozen="weight"),
    "layer_norm plain": Case(lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6, elementwise_affine=False)), (3, 5)),
    "rms_norm": Case(lambda: nn.RMSNorm(5), (3, 5)),
    "rms_norm over 2": Case(lambda: nn.RMSNorm((3, 4), eps=0.1), (2, 3, 4)),
    "group_norm": Case(lambda: nn.GroupNorm(2, 6), (6, 4, 3)),
    "group_norm of features": Case(lambda: nn.GroupNorm(2, 6), (6,)),
    "group_norm weight only": Case(lambda: nn.GroupNorm(1, 6), (6, 4), frozen="bias"),
    "instance_norm1d": Case(lambda: nn.InstanceNorm1d(4, affine=True), (4, 6)),
    "instance_norm2d": Case(lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 5)),
    "instance_norm2d tracked": Case(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 5)),
    "instance_norm2d tracked eval": Case(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 5), train=False),
    "batch_norm1d eval": Case(lambda: nn.BatchNorm1d(4), (4,), train=False),
    "batch_norm1d eval of positions": Case(lambda: nn.BatchNorm1d(4), (4, 5), train=False),
    "batch_norm2d eval": Case(lambda: nn.BatchNorm2d(4), (4, 3, 5), train=False),
    "batch_norm2d eval bias only": Case(lambda: nn.BatchNorm2d(4), (4, 3, 5), frozen="weight", train=False),
}
TINY = [
    "linear", "linear 3d direct", "linear 3d gram", "conv1d depthwise", "conv2d bias only", "conv3d same even",
    "embedding padding_idx", "layer_norm", "rms_norm", "instance_norm1d", "batch_norm1d eval",
]  # fmt: skip


# ---- whole models


class Block(nn.Module):
    """A transformer block whose attention is two linear layers."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A ViT over images, or an untied GPT over ids."""

    def __init__(self, image: bool, width: int = 8, outputs: int = 5) -> None:
        super().__init__()
        self.image = image
        self.embed = nn.Conv2d(3, width, 4, stride=4) if image else nn.Embedding(11, width)
        self.positions = nn.Embedding(16, width)
        self.blocks = nn.Sequential(*[Block(width, 2, causal=not image) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs if image else 11, bias=image)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT if self.image else self.embed(x)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device).expand(len(x), -1))
        x = self.norm(self.blocks(x))
        return self.head(x.mean(1) if self.image else x)


class Residual(nn.Module):
    def __init__(self, *body: nn.Module, skip: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip, self.last = nn.Sequential(*body), skip or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.skip(x) + self.body(x))


def resnet(norm: Callable[[int], nn.Module] = lambda c: nn.GroupNorm(2, c)) -> nn.Module:
    def unit(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, stride, 1, bias=False), norm(b), nn.ReLU(inplace=True), nn.Conv2d(b, b, 3, 1, 1, bias=False), norm(b)]

    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), norm(4), nn.ReLU(inplace=True)]
    stages = [Residual(*unit(4, 4, 1), last=nn.ReLU(inplace=True)), Residual(*unit(4, 8, 2), skip=nn.Conv2d(4, 8, 1, 2), last=nn.ReLU())]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def convnext() -> nn.Module:
    mlp = [nn.LayerNorm(6), nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6)]
    block = Residual(nn.Conv2d(6, 6, 7, padding=3, groups=6), Permute(0, 2, 3, 1), *mlp, Permute(0, 3, 1, 2))
    return nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 5))


MODELS: dict[str, tuple[Case, Loss]] = {
    "vit": (Case(lambda: Transformer(image=True), (3, 12, 8)), losses),
    "resnet": (Case(resnet, (3, 8, 8)), losses),
    "convnext": (Case(convnext, (3, 16, 16)), losses),
    "gpt": (Case(lambda: Transformer(image=False), (9,), ids=11), token_losses),
}
