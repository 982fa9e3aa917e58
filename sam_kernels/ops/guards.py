"""What would make a kernel leave its memory, refused for whoever calls ``torch.ops.sam_kernels.*`` directly.

The public functions say more, and what to do about it; an optimizer calls the implementations with lists that it has checked itself.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .bases import BASES, rows_of, states_used
from .coefficients import entry_mask
from .lists import is_dense, same_layout

KEPT = frozenset(("q", "m", "v", "v_max"))  # lists that live from step to step, in the accumulation dtype
Arguments = Mapping[str, Any]


def parallel(a: Arguments) -> None:
    """Lists must run in parallel: length, sizes, device, dtype."""
    lists = {name: x for name, x in a.items() if isinstance(x, list) and x and isinstance(x[0], torch.Tensor)}
    like = next(iter(lists.values()), [])
    low = next((x[0].dtype for name, x in lists.items() if name not in KEPT), None)
    for name, tensors in lists.items():
        require(len(tensors) == len(like), f"tensor lists differ in length: {name} has {len(tensors)}, another {len(like)}")
        dtype = low if name not in KEPT else tensors[0].dtype if low is None else torch.promote_types(low, torch.float32)
        for i, (x, y) in enumerate(zip(tensors, like, strict=True)):
            fits = x.numel() == y.numel() and x.device == y.device and x.dtype == dtype
            require(fits, f"{name}[{i}] differs in dtype, size or device")
            require(is_dense(x) and same_layout(x, y), f"{name}[{i}] is not dense, or laid out in another way")


def ascend(a: Arguments) -> None:
    """``ascend_`` writes a stash unless it only reduces, and needs a direction."""
    parallel(a)
    if a["params"]:
        _groups(a, 4)
        require(a["phase"] == "norm" or a["stash"], "stash is empty")
        require(a["grads"] or a["q"] or a["noise"] is not None, "no direction is given")
        _noise(a)
        require(not a["ema"] or (a["grads"] and a["q"]), "ema needs q and grads")


def _noise(a: Arguments) -> None:
    state, stream = a["noise"], a["noise_stream"]
    if state is not None:
        fits = state.dtype == torch.int64 and state.numel() == 2 and state.device == a["params"][0].device and state.is_contiguous()
        require(fits, "noise is not (seed, offset) in int64 beside params")
        require(not a["grads"] and not a["ema"], "noise takes the place of grads, and takes no ema")
    require(0 <= stream < 1 << 32, "noise_stream does not fit 32 bits")


def descend(a: Arguments) -> None:
    """``descend_`` needs the lists that its coefficients, norms and base read and write."""
    parallel(a)
    require(a["base"] in BASES and len(a["coefficients"]) == 45, "unknown base, or not 45 coefficients")
    if not a["params"]:
        return
    _groups(a, len(BASES[a["base"]].hyper))
    reduced = a["needed"] & ~a["given"]
    limited = a["match_norm"] or a["max_norm"] < float("inf")
    require(a["gram"] is not None or not (a["needed"] or a["write_q"] or limited), "gram is needed for these coefficients")
    for name, entries in (("g", ("gg", "gh", "gq")), ("h", ("gh", "hh", "hq")), ("q", ("gq", "hq", "qq"))):
        require(a[name] or not reduced & entry_mask(entries), "a list that a norm needs is empty")
    require(a["q"] or not a["write_q"], "q is written but absent")
    if a["base"] != "none":
        require(a["h"] or a["g"] or a["q"], "no gradient list is given")
        require(a["base"] != "adam" or a["steps"] is not None, "adam needs steps")
        options = rows_of(a["base"], a["hyper"])
        for name in {name for row in set(a["group"]) for name in states_used(a["base"], options[row])}:
            require(a[name], f"{a['base']} with these options needs {name}")


def linear_grad_norms(a: Arguments) -> None:
    """Inputs and gradients of the same samples and positions."""
    x, g = a["a"], a["g"]
    require(x.dim() == g.dim() == 3 and x.shape[:2] == g.shape[:2], "a and g must be [B, T, d] and [B, T, p]")
    _alike(x, g)
    require(a["method"] in ("direct", "gram"), "unknown method")


def conv_grad_norms(a: Arguments) -> None:
    """The kernel must stay inside of the padded input, and the images must divide among the samples."""
    x, g, dims = a["x"], a["g"], len(a["kernel"])
    _alike(x, g)
    require(x.dim() == g.dim() == dims + 2 and 1 <= dims <= 3, "x and g must be [N, C, *spatial] and [N, O, *out] in 1 to 3 dimensions")
    require(len(a["stride"]) == len(a["dilation"]) == dims, "kernel, stride and dilation differ in length")
    require(min(*a["kernel"], *a["stride"], *a["dilation"], a["groups"]) > 0, "kernel, stride, dilation and groups must be positive")
    require(x.shape[1] % a["groups"] == 0 and g.shape[1] % a["groups"] == 0, "channels do not divide into the groups")
    require(len(x) == len(g) and (len(x) % a["samples"] == 0 if a["samples"] > 0 else len(x) == a["samples"]), "images do not divide")
    for size, out, k, s, d in zip(x.shape[2:], g.shape[2:], a["kernel"], a["stride"], a["dilation"], strict=True):
        require(out > 0 and (out - 1) * s + (k - 1) * d < size, "the kernel leaves the input")
    require(a["method"] in ("direct", "gram", "pixel_gram"), "unknown method")
    require(a["method"] == "direct" or a["samples"] == len(x), "images that share a sample need the direct method")


def _alike(x: torch.Tensor, y: torch.Tensor) -> None:
    require(x.dtype == y.dtype and x.device == y.device and x.is_floating_point(), "inputs and gradients differ in dtype or device")


def _groups(a: Arguments, columns: int) -> None:
    rows = len(a["hyper"]) // columns if columns else 1
    require(not columns or rows * columns == len(a["hyper"]), "hyper is not a whole number of rows")
    require(len(a["group"]) == len(a["params"]) and all(0 <= row < rows or not columns for row in a["group"]), "group does not fit")


def require(fits: Any, message: str) -> None:
    if not fits:
        raise RuntimeError(message)
