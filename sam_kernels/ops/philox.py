"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), in plain torch, and the random signs that ops draw from it.

A block of four 32-bit words is a function of a 64-bit key and a 128-bit counter: nothing is stored, any element can be drawn alone,
and all backends draw the same bits. Words are int64 tensors with values below 2^32, because torch has no uint32 arithmetic.
The same rounds stand in csrc/core/philox.h; Triton brings its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF  # the low 32 bits
SIGNS = 128  # of one block: bit i % 32 of word i // 32
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Word = Tensor | int


def philox(key: Sequence[Word], counter: Sequence[Word], device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for the two of ``key`` and the four of ``counter``, which broadcast; the outputs have the broadcast shape."""
    words = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.int64, device=device) & MASK for x in (*key, *counter)))
    k0, k1, c0, c1, c2, c3 = words
    for _ in range(10):
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # wrap at 64 bits, whose pattern is that of the unsigned product
        c0, c1, c2, c3 = (b >> 32 & MASK) ^ c1 ^ k0, b & MASK, (a >> 32 & MASK) ^ c3 ^ k1, a & MASK
        k0, k1 = k0 + _WEYL[0] & MASK, k1 + _WEYL[1] & MASK
    return c0, c1, c2, c3


def random_signs(state: Tensor, tensor: int, stream: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """z = +-1 in ``dtype`` for tensor number ``tensor`` of a call, laid out as the dense ``like``.

    ``state``: int64 ``[2]``, (seed, offset). Element j in the order of memory gets bit j % 128 of the block with the key
    (low, high half of seed) and the counter (j // 128, tensor, stream, low half of offset); a bit that is set is +1.
    """
    numel, device = like.numel(), like.device
    seed, offset = state
    blocks = torch.arange(-(-numel // SIGNS), dtype=torch.int64, device=device)
    words = torch.stack(philox((seed, seed >> 32), (blocks, tensor, stream, offset), device), 1)
    bits = words[:, :, None] >> torch.arange(32, device=device) & 1
    return torch.as_strided((2 * bits - 1).reshape(-1)[:numel].to(dtype), like.shape, like.stride())
