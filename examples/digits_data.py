"""Noisy digits, and the network that learns them.

scikit-learn's 1797 handwritten digits, 500 of them for testing. Of the training labels 40 % are replaced by one of the other nine classes,
drawn uniformly; test labels are clean. Noise and initial weights are functions of the seed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

NOISE, TEST_IMAGES = 0.4, 500


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor  # noisy
    wrong: Tensor  # where y is
    x_test: Tensor
    y_test: Tensor


def load_data(seed: int) -> Data:
    """The split is always the same; which labels are wrong depends on the seed."""
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
    x, y = (x - x[train].mean()) / x[train].std(), torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    clean = y[train]
    wrong = torch.rand(len(train), generator=generator) < NOISE
    noisy = torch.where(wrong, (clean + torch.randint(1, 10, clean.shape, generator=generator)) % 10, clean)
    return Data(x[train], noisy, wrong, x[test], y[test])


def build_model(seed: int) -> nn.Module:
    """Four 3x3 convolutions with GroupNorm and a linear layer: 75,434 parameters in 14 tensors."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(*block(1, 32, 1), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1), nn.Flatten(), nn.Linear(1024, 10))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (model(x).argmax(1) == y).float().mean().item()
