"""The table of layers that other libraries of per-sample gradients were measured on: here a row is right, or refused by name."""

from collections.abc import Callable

import pytest
import torch
from per_sample_models import LAYERS, data
from per_sample_oracle import B, error, oracle, refused, run, squares
from torch import Tensor, nn


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.positions = nn.Linear(4, 4), nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.positions


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x).tanh())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


EXACT = {
    "Linear 2-D": "linear", "Linear 3-D": "linear 3d direct", "Linear 4-D": "linear 4d", "Embedding": "embedding",
    "Embedding + padding_idx": "embedding padding_idx", "Conv2d groups=1": "conv2d", "Conv2d groups=4": "conv2d groups",
    "Conv2d depthwise": "conv2d depthwise", "Conv3d": "conv3d", "Conv1d padding='same'": "conv1d same",
    "LayerNorm": "layer_norm of positions", "LayerNorm(bias=False)": "layer_norm no bias", "RMSNorm": "rms_norm", "GroupNorm": "group_norm",
}  # fmt: skip
EXACT_MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {"tied parameter": (Tied, data((B, 5), ids=6))}
REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "broadcast position embedding": (Positions, data((B, 5, 4)), "positions"),
    "module used twice": (Twice, data((B, 4)), "shared"),
    "MultiheadAttention": (Attention, data((B, 5, 4)), r"attention\."),
    "BatchNorm train": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), data((B, 4)), r"\b1\b"),
    "LSTM": (Recurrent, data((B, 5, 4)), r"lstm\."),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("row", [*EXACT, *EXACT_MODELS, *REFUSED])
def test_layer_table(row: str, weighted: bool) -> None:
    if row not in REFUSED:
        model, x = (
            (LAYERS[EXACT[row]].model(), LAYERS[EXACT[row]].input()) if row in EXACT else (EXACT_MODELS[row][0](), EXACT_MODELS[row][1])
        )
        assert error(run(model, x, weighted=weighted).squared, squares(oracle(model, x))) <= 1e-5
        return
    make, x, name = REFUSED[row]
    model = make()
    with refused(model, (NotImplementedError, ValueError), name):
        run(model, x, weighted=weighted)
