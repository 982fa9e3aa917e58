"""Every op x backend x case: value, coverage of writes, guard bands, versions, equal bits on a rerun; then opcheck."""

import copy
import math

import pytest
import torch
from cases import ASCEND, CASES, DESCEND, LISTS, WRITTEN, Case, bands_intact
from tolerance import assert_elementwise, assert_reduction

from sam_kernels import ops
from sam_kernels.ops import GRAM
from sam_kernels.ops.lists import accumulator
from sam_kernels.registry import OPS

SCALARS = ("sq_norm", "gram")  # reductions; everything else is elementwise
LOW = ("params", "grads", "stash", "h", "g", "weights")  # lists that may be bf16 or fp16; the others are fp32 then
FLAGS = ("steps", "q_steps", "found_inf", "loss_scale", "noise")


def cast(kwargs: dict, dtype: torch.dtype, device: str, values: torch.dtype | None = None) -> dict:
    """The same case elsewhere: lists in ``dtype``, state and accumulators in its accumulation dtype, counters, flags and states of noise
    as they are, guard bands kept. Lists are rounded to ``values`` first, so that a case in fp64 can hold the numbers of one in bf16."""

    def one(name: str, x: torch.Tensor) -> torch.Tensor:
        to = x.dtype if name in FLAGS else dtype if name in LOW else accumulator(dtype)
        whole = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
        whole = whole.to(values) if values is not None and name in LOW else whole
        moved = whole.to(device=device, dtype=to, copy=True)
        return torch.as_strided(moved, x.shape, x.stride(), x.storage_offset())

    def convert(name: str, value: object) -> object:
        if isinstance(value, torch.Tensor):
            return one(name, value)
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [one(name, x) for x in value]
        return value

    return {name: convert(name, value) for name, value in kwargs.items()}


def run(case: Case, backend: str, dtype: torch.dtype, device: str = "cpu", values: torch.dtype | None = None) -> tuple[dict, object]:
    kwargs = cast(case.make(), dtype, device, values)
    return kwargs, getattr(ops, case.op)(**kwargs, backend=backend)


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return list(value) if isinstance(value, list) and value and isinstance(value[0], torch.Tensor) else []


def dtypes_of(backend: str, lists: str) -> list[torch.dtype]:
    """Every dtype of a backend, on the lists that can tell; the interpreter takes its time."""
    halves = (
        [torch.bfloat16, torch.float16]
        if lists in ("small", "empties", "every_offset") or (backend, lists) in (("cpp", "chunk_edges"), ("cpp", "streamed"))
        else []
    )
    return {"reference": [torch.float32, *halves[:1]], "cpp": [torch.float32, torch.float64, *halves]}.get(
        backend, [torch.float32, *halves]
    )


def check_reduction(name: str, got: torch.Tensor, truth: torch.Tensor, case: Case, dtype: torch.dtype) -> None:
    """Gram entries and squared norms: the terms of x.y sum to at most |x| |y|."""
    terms = sum(x.numel() for x in LISTS[case.lists].make("g"))
    for k, (x, want) in enumerate(zip(got.cpu(), truth, strict=True)):
        if torch.isnan(want):
            assert torch.isnan(x), f"{name}[{k}] was written but is not an output of this case"
            continue
        a, b = (GRAM.index(2 * letter) for letter in GRAM[k]) if name == "gram" else (k, k)
        magnitude = (truth[a].abs() * truth[b].abs()).nan_to_num(0.0).sqrt().item() or want.abs().item()
        assert_reduction(f"{name}[{k}]", x, want, terms, max(magnitude, want.abs().item()), dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.id}")
def test_value(case: Case, place: tuple[str, str]) -> None:
    backend, device = place
    for dtype in dtypes_of(backend, case.lists):
        half = dtype if dtype.itemsize == 2 else None
        truth, truth_out = run(case, "reference", torch.float64, values=half)
        plain, _ = run(case, "reference", half or torch.float32)
        before = cast(case.make(), dtype, device)
        got, out = run(case, backend, dtype, device)
        interpreted_long = (backend, device, case.lists) == ("triton", "cpu", "many")  # half a minute each; the short lists run twice
        again, out_again = (got, out) if interpreted_long else run(case, backend, dtype, device)
        if case.op == "inner_products":
            check_reduction("gram", out, truth_out, case, accumulator(dtype))
            assert torch.equal(out, out_again) or out.isnan().any(), "two runs differ"
        for name, value in got.items():
            for x, y, z in zip(tensors(value), tensors(before[name]), tensors(again[name]), strict=True):
                assert name in SCALARS or x.dim() == 0 or name in ("rho", "lr", "direction", *FLAGS) or bands_intact(x), (
                    f"{name}: written out of bounds"
                )
                assert torch.equal(x.nan_to_num(7.0), z.nan_to_num(7.0)), f"{name}: two runs differ"
                if name not in case.written:
                    assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), f"{name}: changed, but it is not an output"
            if name in case.written and tensors(value):
                if name in SCALARS:
                    check_reduction(name, value, truth[name], case, accumulator(dtype))
                else:
                    stored = dtype if name in LOW else accumulator(dtype)
                    assert_elementwise(name, tensors(value), tensors(plain[name]), tensors(truth[name]), stored)


def test_streamed_stores() -> None:
    """Lists too large for the cache take another path on the CPU: the same checks there, at ragged offsets."""
    from sam_kernels import _info

    assert 4 * sum(math.prod(shape) for shape in LISTS["streamed"].shapes) >= _info.stream_bytes, "this list would not be streamed"
    for op, options, names in (
        ("ascend_", ASCEND, ("sam", "inf", "groups", "noise_q")),
        ("descend_", DESCEND, ("momentum", "restore", "wsam", "bad_norm")),
    ):
        for name in names:
            test_value(Case(op, f"{name}-streamed", "streamed", options[name], WRITTEN[op]), ("cpp", "cpu"))


def test_equal_bits_for_any_number_of_threads() -> None:
    ids = ("ghq-small", "stable-chunk_edges", "sam-chunk_edges", "noise_q-chunk_edges")
    runs = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            runs.append([run(case, "cpp", torch.float32) for case in CASES if case.id in ids])
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for (kwargs, out), (kwargs_1, out_1) in zip(other, runs[0], strict=True):
            assert out is None or torch.equal(out, out_1)
            assert all(
                torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
                for n in kwargs
                for x, y in zip(tensors(kwargs[n]), tensors(kwargs_1[n]), strict=True)
            )


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_ops_protect_memory_whoever_calls(backend: str) -> None:
    """The public op without the public function's checks: refused, not a crash."""
    w, g, flat = [torch.ones(3)], [torch.ones(3)], list(ops.Combination().flat)

    def ascend(stash: list, grads: list, noise: torch.Tensor | None = None, stream: int = 0, ema: tuple = ()) -> None:
        torch.ops.sam_kernels.ascend_(
            w, grads, stash, [], torch.zeros(1), None, None, None, None, [0], [0.1, 0, 0, 0], [1.0, 0.0], ema, 0.0, True, "all",
            noise, stream, backend,
        )  # fmt: skip

    def descend(base: str, hyper: list, gram: torch.Tensor | None, needed: int) -> None:
        lists = [w, [], g, [], [], [], [], []]
        torch.ops.sam_kernels.descend_(
            *lists, None, gram, None, None, None, None, [0], hyper, base, flat, False, True, 1.0, False, needed, 0, backend
        )

    sgd, adam = [0.1, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.9, 0.99, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    for call, message in (
        (lambda: ascend([], g), "stash is empty"),
        (lambda: ascend([torch.ones(3)], [torch.ones(2)]), "differs in dtype, size or device"),
        (lambda: ascend([torch.ones(3).half()], g), "differs in dtype, size or device"),
        (lambda: ascend([torch.zeros(1).expand(3)], g), "not dense"),
        (lambda: ascend([torch.zeros(6)[::2]], g), "not dense"),
        (lambda: ascend([torch.ones(3)], []), "no direction is given"),
        (lambda: ascend([torch.ones(3)], [], torch.zeros(1, dtype=torch.int64)), "noise is not"),
        (lambda: ascend([torch.ones(3)], [], torch.zeros(2)), "noise is not"),
        (lambda: ascend([torch.ones(3)], g, torch.zeros(2, dtype=torch.int64)), "noise takes the place of grads"),
        (lambda: ascend([torch.ones(3)], [], torch.zeros(2, dtype=torch.int64), 0, (0.5, 0.5)), "and takes no ema"),
        (lambda: ascend([torch.ones(3)], [], torch.zeros(2, dtype=torch.int64), 1 << 32), "noise_stream does not fit"),
        (lambda: descend("sgd", sgd, torch.zeros(6), 1), "a list that a norm needs is empty"),
        (lambda: descend("sgd", sgd, None, 4), "gram is needed"),
        (lambda: descend("sgd", [0.1, 0.9, 0.0, 0.0, 0.0, 0.0], torch.zeros(6), 0), "sgd with these options needs m"),
        (lambda: descend("adam", adam, torch.zeros(6), 0), "adam needs steps"),
        (lambda: descend("lion", [0.1, 0.9, 0.99, 0.0, 0.0], torch.zeros(6), 0), "lion with these options needs m"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert torch.equal(w[0], torch.ones(3))


@pytest.mark.parametrize("option", ["sam", "inf", "zero", "groups", "friendly", "noise", "noise_inf_q"])
def test_stash_and_restore_keep_every_bit(option: str, place: tuple[str, str]) -> None:
    backend, device = place
    case = next(c for c in CASES if c.op == "ascend_" and c.id == f"{option}-small")
    kwargs = cast(case.make(), torch.float32, device)
    clean = [x.clone() for x in kwargs["params"]]
    storage = [x.data_ptr() for x in kwargs["params"]]
    ops.ascend_(**kwargs, backend=backend)
    moved = [not torch.equal(x, y) for x, y in zip(kwargs["params"], clean, strict=True)]
    expected = {"inf": [False], "zero": [False], "noise_inf_q": [False], "groups": [True, False, True, True, False]}.get(option, [True])
    assert moved == (expected if len(expected) > 1 else expected * len(clean)), "perturbed what must stay, or not what must move"
    ops.restore_(kwargs["params"], kwargs["stash"], backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(kwargs["params"], clean, strict=True))
    assert storage == [x.data_ptr() for x in kwargs["params"]]


def test_versions(place: tuple[str, str]) -> None:
    """A weight perturbed between forward and backward must raise in backward, not give a wrong gradient."""
    backend, device = place
    w = torch.randn(4, 3, device=device, requires_grad=True)
    x = torch.randn(3, device=device, requires_grad=True)
    out = (w @ x).sum()
    grad, stash = torch.ones_like(w), torch.empty_like(w).detach()
    before = (w._version, stash._version, grad._version)
    ops.ascend_([w], [grad], [stash], rho=0.1, backend=backend)
    assert w._version > before[0] and stash._version > before[1] and grad._version == before[2]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
    version, buffer, steps = w._version, torch.zeros_like(w).detach(), torch.zeros(1, device=device)
    held = buffer._version
    ops.descend_([w], [grad], base="sgd", stash=[stash], lr=0.1, momentum=0.9, m=[buffer], steps=steps, backend=backend)
    assert w._version > version and buffer._version > held and steps._version > 0
    sq_norm, gram = torch.zeros(1, device=device), torch.zeros(6, device=device)
    ops.ascend_([w.detach()], [grad], [stash], rho=0.1, sq_norm=sq_norm, gram=gram, backend=backend)
    assert sq_norm._version > 0 and gram._version > 0


@pytest.mark.parametrize("case", [c for c in CASES if c.id.endswith("-small")], ids=lambda case: f"{case.op}-{case.id}")
@pytest.mark.parametrize("backend", ["", "reference"])
def test_opcheck(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, mutation, fake kernel and tracing of the public op, on the arguments that the public function passes."""
    recorded: list = []
    module = __import__(f"sam_kernels.ops.{case.op.rstrip('_')}", fromlist=["call"])
    original = module.call
    monkeypatch.setattr(module, "call", lambda op, backend, *a: recorded.append((op.name, copy.deepcopy(a))) or original(op, backend, *a))
    getattr(ops, case.op)(**cast(case.make(), torch.float32, "cpu"))
    name, arguments = recorded[0]
    plain = tuple([x.clone() for x in a] if isinstance(a, list) and tensors(a) else a for a in arguments)
    torch.library.opcheck(getattr(torch.ops.sam_kernels, name).default, (*plain, backend))


@pytest.mark.parametrize("backend", ["reference", "cpp"])  # the backends that have fp64
def test_inner_products_gradcheck(backend: str) -> None:
    torch.manual_seed(0)
    lists = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(6)]
    assert torch.autograd.gradcheck(lambda *t: ops.inner_products(t[:2], t[2:4], t[4:], backend=backend), lists)
    weights = [x.detach() for x in lists[2:4]]
    assert torch.autograd.gradcheck(lambda *t: ops.sq_norm(t, weights=weights, eta=0.1), lists[:2])


def test_every_op_has_every_backend_or_a_reason() -> None:
    for op in OPS.values():
        for backend in ("reference", "cpp", "triton", "cuda"):
            assert backend in op.implementations or op.missing.get(backend), f"{op.name} has no {backend} and no reason"
