"""Random signs as the direction of ascend_: the generator's published answers, equal bits on all backends, statistics, restore.

``drawn`` perturbs zeros with radius 1, so that the weights are the signs themselves.
"""

import re
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import conftest
import pytest
import torch
from cases import MANY, Lists
from torch import Tensor

from sam_kernels.ops import ascend_, restore_
from sam_kernels.ops.philox import SIGNS, philox

ANSWERS = (  # (counter, key, block): the known answers published with the generator
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((-1, -1, -1, -1), (-1, -1), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)  # fmt: skip
DTYPES = {"reference": ("float64", "float32"), "cpp": ("float64", "float32", "bfloat16", "float16")}
RAGGED = Lists((*((130 + i,) for i in range(17)), (0,), (4095,), (4097,), (8192,), (16385,)), ragged=True)
STRIDED = Lists(((2, 3, 4, 5), (17, 9), (8,), (40, 129)), strided=True)


def state(seed: int = 1, offset: int = 0, device: str = "cpu") -> Tensor:
    return torch.tensor([seed, offset], device=device)


def drawn(params: Sequence[Tensor], noise: Tensor, stream: int = 0, backend: str | None = None) -> list[Tensor]:
    """The signs of these tensors, each in the order of its memory."""
    w = [torch.zeros_like(x) for x in params]
    sq_norm = ascend_(
        w, None, [torch.empty_like(x) for x in w], rho=1.0, normalize=False, noise=noise, noise_stream=stream, backend=backend
    )
    assert sq_norm.item() == sum(x.numel() for x in w)
    return [torch.as_strided(x, (x.numel(),), (1,)).float().cpu() for x in w]


def plain(numel: int, noise: tuple[int, int], tensor: int = 0, stream: int = 0) -> Tensor:
    """The definition once more, bit by bit in Python's integers."""
    mask, out = 0xFFFFFFFF, []
    for block in range(-(-numel // SIGNS)):
        k, c = [noise[0] & mask, noise[0] >> 32 & mask], [block, tensor, stream, noise[1] & mask]
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
            k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
        out += [1.0 if c[i // 32] >> i % 32 & 1 else -1.0 for i in range(SIGNS)]
    return torch.tensor(out[:numel])


@pytest.mark.parametrize(("counter", "key", "block"), ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]) -> None:
    assert tuple(int(x) for x in philox(key, counter)) == block
    several = philox([torch.tensor([key[0], 5]), key[1]], [torch.tensor([[c], [7]]) for c in counter])
    assert tuple(int(x[0, 0]) for x in several) == block and several[0].shape == (2, 2)


@conftest.where_triton_runs
@pytest.mark.parametrize(("counter", "key", "block"), ANSWERS)
def test_tritons_generator_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]) -> None:
    """`tl.philox`, as the kernels call it."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret and not torch.cuda.is_available():
        pytest.skip("no GPU, and Triton is not interpreted")
    from philox_probe import probe

    device = "cpu" if triton.knobs.runtime.interpret else "cuda"
    words = [(c + 2**31) % 2**32 - 2**31 for c in counter]
    seed = ((key[1] & 0xFFFFFFFF) << 32 | key[0] & 0xFFFFFFFF) + 2**63
    arguments = torch.tensor([seed % 2**64 - 2**63, *words], device=device)
    out = torch.zeros(4, dtype=torch.int64, device=device)
    probe[(1,)](arguments, out)
    assert tuple(out.tolist()) == block


def test_signs_are_those_of_the_definition(place: tuple[str, str]) -> None:
    backend, device = place
    seed, offset, stream = -0x123456789ABCDEF, 2**40 + 2**32 - 2, 2**32 - 1
    sizes = (1, 127, 129, 300)
    found = drawn([torch.zeros(n, device=device) for n in sizes], state(seed, offset, device), stream, backend)
    for t, (n, z) in enumerate(zip(sizes, found, strict=True)):
        assert torch.equal(z, plain(n, (seed, offset), t, stream)), f"tensor {t}"


@pytest.mark.parametrize("lists", ["ragged", "strided", "many", "chunks"])
def test_equal_bits_on_all_backends(lists: str, place: tuple[str, str]) -> None:
    """Views of any alignment, chunks that begin anywhere, dense layouts, more tensors than one launch holds; all dtypes."""
    backend, device = place
    many = MANY[:130] if (backend, device) == ("triton", "cpu") else MANY  # the interpreter takes a second for 40 programs
    shapes = {"ragged": RAGGED, "strided": STRIDED, "many": Lists(tuple(many)), "chunks": Lists(((40_000,), (8_192,), (3,)))}[lists]
    expected = drawn(shapes.make("w"), state(5, 6), 7, "reference")
    names = DTYPES.get(backend, ("float32", "bfloat16", "float16"))
    for name in names if lists != "many" else ("float32",):
        params = [torch.empty_like(x, dtype=getattr(torch, name), device=device) for x in shapes.make("w")]
        if lists == "ragged":  # views of a buffer, as many elements past its alignment as in the list
            params = [torch.zeros(x.numel() + 17, dtype=x.dtype, device=device)[i % 17 :][: x.numel()] for i, x in enumerate(params)]
        w, stash = params, [torch.empty_like(x) for x in params]
        for x in w:
            x.zero_()
        ascend_(w, None, stash, rho=1.0, normalize=False, noise=state(5, 6, device), noise_stream=7, backend=backend)
        for i, (x, z) in enumerate(zip(w, expected, strict=True)):
            got = torch.as_strided(x, (x.numel(),), (1,)).float().cpu()
            assert torch.equal(got, z), f"{name}: tensor {i} of {x.numel()} elements"


def test_the_state_is_read_on_the_device_and_left_alone(place: tuple[str, str]) -> None:
    backend, device = place
    noise, w = state(3, 9, device), [torch.zeros(300, device=device)]
    first, again = drawn(w, noise, 0, backend)[0], drawn(w, noise, 0, backend)[0]
    assert torch.equal(first, again) and noise.tolist() == [3, 9] and noise._version == 0
    noise[1] += 1
    assert torch.equal(drawn(w, noise, 0, backend)[0], plain(300, (3, 10)))


def test_statistics() -> None:
    """n signs: sums and correlations have a standard deviation of sqrt(n); within 5 of it, for this seed and for ever."""
    n = 1 << 20
    w = [torch.zeros(n), torch.zeros(n)]
    z, other = drawn(w, state(2024))
    streams, offset, seed = drawn(w[:1], state(2024), 1)[0], drawn(w[:1], state(2024, 1))[0], drawn(w[:1], state(2025))[0]
    high = drawn(w[:1], state(2024 + 2**32))[0]
    bound = 5 * sqrt(n)
    for name, x in {"tensor": other, "stream": streams, "offset": offset, "seed": seed, "high half of the seed": high}.items():
        assert x.abs().eq(1).all() and abs(x.sum().item()) < bound, f"mean of another {name}"
        assert abs(torch.dot(z.double(), x.double()).item()) < bound, f"correlated with another {name}"
    assert abs(z.sum().item()) < bound
    for lag in (1, 2, 3, 31, 32, 33, 64, 127, 128, 129, 8192):
        assert abs(torch.dot(z[lag:].double(), z[:-lag].double()).item()) < bound, f"correlated at distance {lag}"
    by_bit = z.view(-1, SIGNS).double().sum(0).abs().max().item()
    assert by_bit < 5 * sqrt(n / SIGNS), "one of the 128 bits of a block prefers a value"


def test_one_draw_estimates_norms_without_bias(place: tuple[str, str]) -> None:
    """E[(z.a)^2] = |a|^2, with variance 2 (|a|^4 - sum a_j^4): what Reweighted SAM draws them for."""
    backend, device = place
    torch.manual_seed(0)
    a, draws = torch.randn(24, dtype=torch.float64), 60
    noise, squares = state(11, 0, device), []
    for _ in range(draws):
        z = drawn([torch.zeros(24, device=device)], noise, 0, backend)[0]
        squares.append((z.double() @ a).square().item())
        noise[1] += 1
    spread = sqrt(2 * (a.square().sum() ** 2 - a.pow(4).sum()).item() / draws)
    assert abs(sum(squares) / draws - a.square().sum().item()) < 4 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_is_exact_and_the_other_side_is_the_mirror(dtype: torch.dtype, place: tuple[str, str]) -> None:
    backend, device = place
    torch.manual_seed(0)
    w = [torch.randn(300, device=device).to(dtype), torch.randn(7, 5, device=device).to(dtype)]
    clean, stash = [x.clone() for x in w], [torch.empty_like(x) for x in w]
    options = {"rho": 0.25, "normalize": False, "noise": state(4, 2, device), "backend": backend}
    ascend_(w, None, stash, **options)
    above = [x.clone() for x in w]
    assert not any(torch.equal(x, y) for x, y in zip(w, clean, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(stash, clean, strict=True))
    restore_(w, stash, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(w, clean, strict=True))
    ascend_(w, None, stash, maximize=True, **options)
    for low, high, x in zip(w, above, clean, strict=True):
        signs = torch.sign(high.float() - x.float())
        assert torch.equal(low, (x.float() - 0.25 * signs).to(dtype)) and torch.equal(high, (x.float() + 0.25 * signs).to(dtype))


def test_errors_come_before_anything_is_written() -> None:
    w, g, stash = [torch.zeros(3)], [torch.ones(3)], [torch.zeros(3)]
    for options, kind, message in (
        ({"grads": g}, ValueError, "noise takes the place of grads, but grads is given; pass None for it"),
        ({"ema": (0.5, 0.5), "q": [torch.ones(3)]}, ValueError, "noise takes the place of grads, but ema is given"),
        ({"noise": torch.zeros(2)}, ValueError, r"noise is \(2,\) torch.float32 on cpu; expected 2 contiguous elements of torch.int64"),
        ({"noise": torch.zeros(3, dtype=torch.int64)}, ValueError, r"noise is \(3,\)"),
        ({"noise": 7}, TypeError, "noise is int; expected a torch.Tensor"),
        ({"noise_stream": -1}, ValueError, r"noise_stream is -1; expected a number from 0 to 2\^32 - 1"),
        ({"noise_stream": 1 << 32}, ValueError, "noise_stream is 4294967296"),
        ({"direction": (1.0, 1.0)}, ValueError, "q, which is None"),
    ):
        with pytest.raises(kind, match=message):
            ascend_(w, **{"grads": None, "stash": stash, "rho": 1.0, "noise": state()} | options)
    assert not w[0].any() and not stash[0].any()


def test_the_rounds_stand_once_per_language() -> None:
    root, holders = Path(__file__).parent.parent, []
    for path in [*(root / "csrc").rglob("*.*"), *(root / "sam_kernels").rglob("*.py")]:
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".py") and re.search("D2511F53", path.read_text(), re.IGNORECASE):
            holders.append(path.relative_to(root).as_posix())
    assert sorted(holders) == ["csrc/core/philox.h", "sam_kernels/ops/philox.py"]
