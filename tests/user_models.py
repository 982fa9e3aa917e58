"""``profile`` as a user calls it, and what one may hand over, good and bad: the text of a module ``theirs``."""

import sys
from pathlib import Path

import pytest

from sam_kernels.__main__ import main

USER = """
import torch
import torch.nn.functional as F
from torch import nn
from sam_kernels import ops

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

def batch(n=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)

def make():
    return (net(), *batch())

def sized(batch_size):
    return (net(), *batch(batch_size or 6))

def stubborn(batch_size=None):
    return (net(), *batch(12))

def of_losses(dtype=None):
    model, (x, y) = net().to(dtype), batch()
    x = x.to(dtype)
    def losses(index=None):
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return F.cross_entropy(model(xb), yb, reduction="none")
    return model, losses, 12

def of_pairs():
    model, (x, y) = net(), batch()
    return model, lambda index=None: ops.cross_entropy_sample(model(x if index is None else x[index]), y if index is None else y[index]), 12

def shapes():
    model, (x, y) = net(), batch()
    return model, lambda index=None: F.cross_entropy(model(x[:, :3]), y, reduction="none"), 12

instances = 0
def after(calls, ends):
    # losses that the first method can call so often; the others always
    global instances
    instances += 1
    model, (x, y), seen, first = net(), batch(), [], instances == 1
    def losses(index=None):
        seen.append(1)
        found = F.cross_entropy(model(x), y, reduction="none")
        return ends(found) if first and len(seen) > calls else found
    return model, losses, 12

def diverges():
    return after(17, lambda losses: losses * float("nan"))

def overflows():
    return after(17, lambda losses: losses + float("inf"))

def explodes():
    return after(17, deep_inside)

def deep_inside(losses):
    raise LookupError("the sample is gone")

def random_losses():
    model, (x, y), seen = net(), batch(), []
    def losses(index=None):
        seen.append(1)
        return F.cross_entropy(model(x) * len(seen), y, reduction="none")
    return model, losses, 12

calls = 0
def interrupted():
    model, (x, y) = net(), batch()
    def losses(index=None):
        global calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return F.cross_entropy(model(x), y, reduction="none")
    return model, losses, 12

def frozen():
    return (net().requires_grad_(False), *batch())

def reduced():
    model, (x, y) = net(), batch()
    return model, lambda index=None: F.cross_entropy(model(x), y), 12

def soft(): return net(), batch()[0], torch.zeros(12, 3)
def uneven(): return net(), batch()[0], batch(5)[1]
def pair(): return net(), batch()[0]
def nothing(): pass
def function_first(): return (net, *batch())
def list_second(): return net(), [1.0], 12
def size_of_tensor(): return net(), lambda index=None: 0, torch.tensor(12)
def needy(seed): return make()
constant = 3
"""


def call(*words: str) -> int:
    given = [*words, *([] if "--warmup" in words else ["--warmup", "1"]), *([] if "--device" in words else ["--device", "cpu"])]
    return main(["profile", *given])


@pytest.fixture(name="user")
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``theirs.py``, in which the command is called."""
    (tmp_path / "theirs.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("theirs", None)
    return tmp_path
