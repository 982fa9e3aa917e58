"""The batch-side presets, MicroBatchSAM, ESAM, AUSAM and sampled Reweighted SAM, against their equations on fp64 tensors."""

import copy
from collections.abc import Callable
from typing import Any

import batch_loops
import problems
import pytest
import torch
import torch.nn.functional as F
from batch_loops import BASES, RHO, B, Loop
from conftest import require_ops
from tolerance import assert_loop
from torch import Tensor, nn

from sam_kernels import ops
from sam_kernels.ops import draw_reference
from sam_kernels.optim import AUSAM, ESAM, SAM, MicroBatchSAM, ReweightedSAM, rules
from sam_kernels.registry import OPS

STEPS, N = 20, 30
MIX = rules.Descent(ops.Combination(u={"h": 1.0, "g": -0.3}))
LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the loop, of the optimizer
    "plain": ({}, {}),
    "adaptive": ({"adaptive": True}, {"adaptive": True}),
    "unnormalized": ({"normalize": False}, {"normalize": False}),
    "stable": ({"stable": True}, {"descent": rules.Stable()}),
    "mix": ({"mix": -0.3}, {"descent": MIX}),
    "adamw": ({"base": "adamw"}, {"base": "adamw"}),
    "rmsprop": ({"base": "rmsprop"}, {"base": "rmsprop"}),
}


@pytest.fixture(params=["reference", "cpp", "triton", None])
def backend(request: pytest.FixtureRequest) -> str | None:
    if request.param is not None:
        require_ops(request.param, "cpu", [*OPS] if request.param != "triton" else ["draw", "gibbs_weights", "descend_"])
    return request.param


def losses_of(net: nn.Module, step: int) -> Callable[..., Tensor]:
    x, y = problems.batch(step, net)

    def losses(index: Tensor | None = None) -> Tensor:
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return F.cross_entropy(net(xb), yb, reduction="none")

    return losses


def ids_of(step: int) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(step))[:B]


def make(kind: type[SAM], net: nn.Module, options: dict[str, Any], **more: Any) -> SAM:
    base = options.get("base", "sgd")
    rest = {k: v for k, v in options.items() if k != "base"}
    return kind(net.parameters(), BASES[base][0], **{"rho": RHO, **BASES[base][1], **rest, **more})


def train(optimizer: SAM, net: nn.Module, steps: int = STEPS, start: int = 0) -> list[float]:
    with_ids = isinstance(optimizer, AUSAM)
    return [
        optimizer.step(losses_of(net, step), batch_size=B, **({"sample_ids": ids_of(step)} if with_ids else {})).item()
        for step in range(start, start + steps)
    ]


def check(case: str, net: nn.Module, twin: nn.Module) -> None:
    assert_loop(case, list(net.parameters()), list(twin.parameters()))


def sam(options: dict[str, Any] | None = None) -> nn.Module:
    net = problems.model()
    optimizer = make(SAM, net, options or {})
    for step in range(STEPS):
        optimizer.step(problems.closure_of(net, step))
    return net


# ---- m-SAM


@pytest.mark.parametrize("case", LOOPS)
@pytest.mark.parametrize("name", ["reference", "cpp"])  # the backends that have fp64
def test_micro_batches(name: str, case: str) -> None:
    loop, options = LOOPS[case]
    net, twin = problems.model(), problems.model()
    losses = train(make(MicroBatchSAM, net, options, shard_size=5, backend=name), net)
    clean = batch_loops.micro_batch(Loop(twin, **loop), STEPS, (5, 5, 2))
    check(case, net, twin)
    assert_loop(f"{case}: losses", [torch.tensor(losses, dtype=torch.float64)], [torch.tensor(clean, dtype=torch.float64)])


@pytest.mark.parametrize(("options", "sizes"), [({"shards": 5}, (3, 3, 2, 2, 2)), ({"shard_size": 1}, (1,) * B), ({"shards": B}, (1,) * B)])
def test_shards(options: dict[str, int], sizes: tuple[int, ...]) -> None:
    net, twin = problems.model(), problems.model()
    train(make(MicroBatchSAM, net, options), net)
    batch_loops.micro_batch(Loop(twin), STEPS, sizes)
    check(str(options), net, twin)


@pytest.mark.parametrize("options", [{"shards": 1}, {"shard_size": B}, {"shard_size": 50}])
def test_one_shard_is_sam(options: dict[str, int]) -> None:
    net = problems.model()
    train(make(MicroBatchSAM, net, options), net)
    check("sam", net, sam())


def test_micro_batches_over_groups_and_dtypes() -> None:
    """Two dtypes are two buckets, whose norm is one; a group with rho = 0 has no part in it."""
    x, y = problems.batch(0, problems.model())
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8).double(), nn.Tanh(), nn.Linear(8, 3)).train()

    def losses(index: Tensor | None = None) -> Tensor:
        xb, yb = (x, y) if index is None else (x[index], y[index])
        return F.cross_entropy(net[3](net[:3](xb).float()), yb, reduction="none")

    params = list(net.parameters())
    for descent in (rules.Plain(), rules.Stable(), MIX):
        twin = copy.deepcopy(net)
        groups = [{"params": params[:1]}, {"params": params[1:2], "rho": 0.0}, {"params": params[2:]}]
        optimizer = MicroBatchSAM(groups, torch.optim.SGD, rho=RHO, lr=0.1, shards=2, descent=descent)
        optimizer.step(losses, batch_size=B)
        g, h = micro_batches_of(twin, x, y)
        u = [b - 0.3 * a for a, b in zip(g, h, strict=True)] if descent is MIX else h
        factor = batch_loops.size([a.double() for a in g]) / batch_loops.size([b.double() for b in u]) if descent.match_norm else 1.0
        for p, w, d in zip(net.parameters(), twin.parameters(), u, strict=True):
            torch.testing.assert_close(p, w - 0.1 * factor * d, rtol=1e-5, atol=1e-6, check_dtype=False)


def micro_batches_of(net: nn.Module, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(g, h) of two shards, the second parameter left out of the ascent."""
    params, sums = list(net.parameters()), ([0.0] * 4, [0.0] * 4)

    def loss(part: Tensor) -> Tensor:
        return F.cross_entropy(net[3](net[:3](x[part]).float()), y[part])

    for part in torch.arange(B).chunk(2):
        g = torch.autograd.grad(loss(part), params)
        norm = batch_loops.size([a.double() for a in (g[0], g[2], g[3])])
        for k in (0, 2, 3):
            params[k].data += (RHO * g[k].double() / norm).to(g[k].dtype)
        h = torch.autograd.grad(loss(part), params)
        for k in (0, 2, 3):
            params[k].data -= (RHO * g[k].double() / norm).to(g[k].dtype)
        for total, found in zip(sums, (g, h), strict=True):
            for k in range(4):
                total[k] = total[k] + found[k] / 2
    return sums


def test_batchnorm_counts_the_first_forward() -> None:
    for kind, options in (
        (MicroBatchSAM, {"shards": 3}), (ESAM, {}), (AUSAM, {"num_samples": N}),
        (ReweightedSAM, {"lam": 1.0, "estimator": "finite_difference", "draw": 4}),
    ):  # fmt: skip
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
        train(make(kind, net, options, model=net), net, 5)
        assert net[2].num_batches_tracked == 5, kind.__name__


def test_a_shard_that_is_not_finite_skips_the_step() -> None:
    for descent in (rules.Plain(), rules.Stable(), MIX):
        for bad in (0, 7, 11):
            net = problems.model()
            clean = problems.weights(net)
            optimizer = make(MicroBatchSAM, net, {"descent": descent}, shards=3)
            x, y = problems.batch(0, net)
            x[bad, 0, 0, 0] = float("nan")
            optimizer.step(lambda index=None, x=x, y=y, net=net: F.cross_entropy(net(x[index]), y[index], reduction="none"), batch_size=B)
            assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)), (descent, bad)
            train(optimizer, net, 1)
            assert not any(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


def test_gradients_in_memory_that_is_used_again() -> None:
    """As views of the buckets of DistributedDataParallel are: the next backward writes them."""
    net, twin = problems.model(), problems.model()
    shared = [torch.zeros_like(p) for p in net.parameters()]

    def losses(index: Tensor | None = None) -> Tensor:
        optimizer.zero_grad()  # a habit from closures: takes nothing from the sums
        found = losses_of(net, 0)(index)
        for p, memory in zip(net.parameters(), shared, strict=True):
            p.grad = memory.zero_()
        return found

    optimizer = make(MicroBatchSAM, net, {}, shards=3)
    optimizer.step(losses, batch_size=B)
    batch_loops.micro_batch(Loop(twin), 1, (4, 4, 4))
    check("shared memory", net, twin)


def test_halves_add_up_in_fp32() -> None:
    net = nn.Linear(4, 2, bias=False).bfloat16()
    optimizer = MicroBatchSAM(net.parameters(), torch.optim.SGD, rho=0.0, lr=0.1, shard_size=1)
    optimizer.step(lambda index=None: net(torch.ones(1024 if index is None else len(index), 4).bfloat16()).sum(1).float(), batch_size=1024)
    assert (net.weight.grad == 1).all()  # halves stop adding where the sum is 256 times a term


class Experts(nn.Module):
    """Two layers of which a sample sees one."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(5, 3).to(dtype) for dtype in dtypes)

    def losses(self, x: Tensor, y: Tensor, sees: list[int], index: Tensor | None = None) -> Tensor:
        found = []
        for i in range(len(y)) if index is None else index.tolist():
            layer = self.layers[sees[i]]
            found.append(F.cross_entropy(layer(x[i : i + 1].to(layer.weight.dtype)), y[i : i + 1]).double())
        return torch.stack(found)


@pytest.mark.parametrize("descent", [rules.Plain(), rules.Stable(), MIX], ids=["plain", "stable", "mix"])
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float64, torch.float32)], ids=["one", "two"])
def test_the_order_of_shards_does_not_matter(dtypes: tuple[torch.dtype, ...], descent: rules.Descent) -> None:
    """Where each sees other parameters, in one bucket or in two, and one of them none that is trained."""
    x, y, sees = (
        torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        [0, 0, 1, 1, 0, 0],
    )
    for frozen in (False, True):
        nets = []
        for order in ([0, 1, 2, 3, 4, 5], [2, 3, 0, 1, 4, 5], [0, 1, 4, 5, 2, 3]):
            net = Experts(*dtypes)
            params = list(net.layers[0].parameters() if frozen else net.parameters())
            optimizer = MicroBatchSAM(params, torch.optim.SGD, rho=RHO, lr=0.1, shards=3, descent=descent)
            back = torch.tensor(order)
            optimizer.step(lambda i=None, net=net, back=back: net.losses(x, y, sees, back if i is None else back[i]), batch_size=6)
            nets.append(net)
        for net in nets[1:]:
            for p, w in zip(net.parameters(), nets[0].parameters(), strict=True):
                torch.testing.assert_close(p, w, rtol=1e-6, atol=1e-9)
        bad = x.clone()
        bad[0, 0] = float("nan")
        net = Experts(*dtypes)
        clean = problems.weights(net)
        params = list(net.layers[0].parameters() if frozen else net.parameters())
        optimizer = MicroBatchSAM(params, torch.optim.SGD, rho=RHO, lr=0.1, shards=3, descent=descent)
        back = torch.tensor([0, 1, 4, 5, 2, 3])
        optimizer.step(lambda i=None, net=net, back=back, bad=bad: net.losses(bad, y, sees, back if i is None else back[i]), batch_size=6)
        assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


def test_a_norm_that_overflows_in_one_shard_skips_the_step() -> None:
    """Of the ascent, weighted by |w| + eta: the gradient itself is finite, and that of the last shard is 0."""
    net = nn.Linear(4, 3, bias=False).double()
    clean, x, y = net.weight.detach().clone(), torch.ones(B, 4, dtype=torch.float64), torch.arange(B) % 3
    x[6:] = 0
    y[:6] = 0
    optimizer = MicroBatchSAM(net.parameters(), torch.optim.SGD, adaptive=True, eta=1e200, lr=0.1, shards=2)
    optimizer.step(lambda index=None: F.cross_entropy(net(x[index]), y[index], reduction="none"), batch_size=B)
    assert torch.equal(net.weight, clean)


# ---- ESAM


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("case", LOOPS)
@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_efficient(name: str, case: str, inclusive: bool) -> None:
    loop, options = LOOPS[case]
    net, twin, beta, gamma = problems.model(), problems.model(), 0.6, 0.4
    torch.manual_seed(4)
    optimizer, chosen = make(ESAM, net, options, beta=beta, gamma=gamma, inclusive=inclusive, backend=name), []
    for step in range(STEPS):
        train(optimizer, net, 1, step)
        chosen.append(sorted(optimizer.sample_indices.tolist()))
    torch.manual_seed(4)
    drawn = iter([[True] * 6, *((torch.rand(6) < beta).tolist() for _ in range(STEPS))])
    assert chosen == batch_loops.efficient(Loop(twin, radius=1 / beta, **loop), STEPS, lambda: next(drawn), gamma, inclusive)
    check(case, net, twin)


@pytest.mark.parametrize("case", LOOPS)
def test_efficient_with_everything_is_sam(case: str) -> None:
    options = LOOPS[case][1]
    net, state = problems.model(), torch.get_rng_state()
    train(make(ESAM, net, options, beta=1.0, gamma=1.0), net)
    assert torch.equal(state, torch.get_rng_state()), "draws where there is nothing to draw"
    check(case, net, sam(options))


def test_efficient_moves_one_tensor_at_least() -> None:
    torch.manual_seed(0)
    rule = rules.Efficient(beta=1e-9)
    drawn = torch.tensor([rule.active(6, first_step=False) for _ in range(200)])
    assert (drawn.sum(1) == 1).all() and drawn.any(0).all() and rule.active(6, first_step=True) == [True] * 6
    assert rules.Efficient(beta=1.0).active(6, first_step=False) == [True] * 6


def test_efficient_draws_its_tensors_on_the_host() -> None:
    """Whatever torch's default dtype and device are."""
    torch.manual_seed(0)
    want = rules.Efficient().active(9, first_step=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert rules.Efficient().active(9, first_step=False) == want
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["esam", "ausam", "micro", "drawn"])
def test_maximize_is_the_same_of_minus_the_loss(kind: str) -> None:
    nets = []
    for sign in (1.0, -1.0):
        torch.manual_seed(3)
        nets.append(problems.model())
        optimizer = make(KINDS[kind][0], nets[-1], KINDS[kind][1], maximize=sign < 0)
        for step in range(6):
            losses = losses_of(nets[-1], step)
            given = {"sample_ids": ids_in(12)} if kind == "ausam" else {}
            optimizer.step(lambda index=None, losses=losses, sign=sign: sign * losses(index), batch_size=B, **given)
    check(kind, *nets)


def test_a_reentrant_checkpoint_hides_its_weights() -> None:
    net = problems.model()

    def losses(index: Tensor | None = None) -> Tensor:
        x, y = problems.batch(0, net)
        x = (x if index is None else x[index]).requires_grad_()
        z = torch.utils.checkpoint.checkpoint(net[:3], x, use_reentrant=True)
        return F.cross_entropy(net[3:](z), y if index is None else y[index], reduction="none")

    twin = copy.deepcopy(net)
    make(ESAM, net, {}, beta=1.0, gamma=1.0).step(losses, batch_size=B)
    make(ESAM, twin, {}, beta=1.0, gamma=1.0).step(losses_of(twin, 0), batch_size=B)
    check("all tensors", net, twin)
    optimizer = make(ESAM, net, {}, beta=0.5)
    optimizer.step(losses, batch_size=B)
    clean = problems.weights(net)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        for _ in range(8):  # until a tensor is left out
            clean = problems.weights(net)
            optimizer.step(losses, batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


def test_efficient_without_a_radius_is_the_base() -> None:
    net, twin = problems.model(), problems.model()
    train(make(ESAM, net, {}, rho=0.0), net)
    loop = Loop(twin)
    for step in range(STEPS):
        loop.update([None] * 6, loop.gradients(loop.losses(step).mean()))
    check("sgd", net, twin)


@pytest.mark.parametrize("bad", [0, 11])
def test_a_bad_sample_is_not_hidden(bad: int) -> None:
    """By a draw that passes it over, or by tensors that take no part."""
    for kind, options in ((ReweightedSAM, {"lam": 1.0, "estimator": "finite_difference", "draw": 4}), (ESAM, {"beta": 1e-9})):
        net = problems.model()
        optimizer = make(kind, net, options)
        train(optimizer, net, 2)
        clean = problems.weights(net)
        x, y = problems.batch(0, net)
        x[bad, 0, 0, 0] = float("nan")
        optimizer.step(lambda i=None, x=x, y=y, net=net: F.cross_entropy(net(x if i is None else x[i]), y if i is None else y[i],
                                                                         reduction="none"), batch_size=B)  # fmt: skip
        assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)), kind.__name__


@pytest.mark.parametrize(("change", "count", "inclusive", "want"), [
    ([3.0, 1.0, 2.0, 0.0], 2, False, {0: 0.5, 2: 0.5}),
    ([3.0, 2.0, 2.0, 2.0], 2, False, {0: 1.0}),  # two tie with the first that is left out
    ([1.0, 1.0, 1.0, 1.0], 2, False, {None: 0.5}),  # nothing stands out: no division by zero
    ([3.0, 2.0, 2.0, 2.0], 2, True, {0: 0.5, None: 0.5}),
    ([3.0, 1.0], 2, True, {0: 0.5, 1: 0.5}),
])  # fmt: skip
def test_who_is_selected(change: list[float], count: int, inclusive: bool, want: dict[int | None, float]) -> None:
    index, weights = rules.Efficient(inclusive=inclusive).select(torch.tensor(change), count)
    assert index.shape == weights.shape == (count,) and weights.sum() == 1
    found = {i: w for i, w in zip(index.tolist(), weights.tolist(), strict=True) if w}
    named = {i: w for i, w in want.items() if i is not None}
    assert {i: w for i, w in found.items() if i in named} == named
    assert all(w == want[None] for i, w in found.items() if i not in named)


def test_unused_weight_gradients_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = problems.model()
    optimizer = make(ESAM, net, {}, beta=0.5, gamma=1.0)
    monkeypatch.setattr(rules.Efficient, "active", lambda *_, **__: [False, False, True, False, False, True])
    seen = []
    for k, p in enumerate(net.parameters()):
        p.register_hook(lambda grad, k=k: seen.append(k))
    optimizer.step(losses_of(net, 0), batch_size=B)
    assert sorted(seen) == [0, 1, 2, 2, 3, 4, 5, 5]


# ---- AUSAM


@pytest.mark.parametrize("case", LOOPS)
@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_sampled(name: str, case: str) -> None:
    if name == "cpp":
        require_ops(name, "cpu", ["draw"])
    loop, options = LOOPS[case]
    net, twin, rule = problems.model(), problems.model(), {"alpha": 0.5, "s_min": 0.1, "s_max": 0.5, "ramp": 4}
    torch.manual_seed(6)
    optimizer, chosen = make(AUSAM, net, options, num_samples=N, backend=name, **rule), []
    for step in range(STEPS):
        train(optimizer, net, 1, step)
        found = optimizer.sample_indices
        chosen.append(list(range(B)) if found is None else found.tolist())
    torch.manual_seed(6)

    def choose(odds: Tensor) -> Tensor:
        return draw_reference.reference(odds, 6, "top_k", torch.randint(2**62, (2,)))[0].nonzero().flatten()

    table, expected = batch_loops.sampled(Loop(twin, **loop), STEPS, ids_of, N, choose, **rule)
    assert chosen == expected and [len(c) for c in chosen[:4]] == [B, B, B, 6]
    check(case, net, twin)
    held = torch.stack([optimizer.batch_state["sum"], optimizer.batch_state["count"]], 1)
    assert_loop(f"{case}: table", [held], [torch.tensor(table, dtype=torch.float64)])
    assert optimizer.batch_state["seen"] == STEPS * B


@pytest.mark.parametrize("case", LOOPS)
def test_sampled_with_everything_is_sam(case: str) -> None:
    options = LOOPS[case][1]
    net = problems.model()
    train(make(AUSAM, net, options, num_samples=N, alpha=1.0), net)
    check(case, net, sam(options))


def test_equal_changes_and_bounds_of_the_odds() -> None:
    rule = rules.Sampled(N, ramp=10)
    assert rule.odds(torch.full((4,), 0.3), 5).tolist() == pytest.approx([0.1] * 4)
    for epoch, high in ((0, 0.1), (5, 0.3), (10, 0.5), (99, 0.5)):
        assert rule.odds(torch.tensor([0.0, 0.5, 1.0]), epoch).tolist() == pytest.approx([0.1, (0.1 + high) / 2, high], rel=1e-6)
    assert rules.Sampled(N, ramp=0).odds(torch.tensor([0.0, 1.0]), 1).tolist() == pytest.approx([0.1, 0.5])


def test_a_skipped_step_leaves_no_trace_in_the_table() -> None:
    net = problems.model()
    optimizer = make(AUSAM, net, {}, num_samples=N)
    train(optimizer, net, 3)
    before = copy.deepcopy(optimizer.batch_state)
    hook = net[0].bias.register_hook(lambda grad: grad * float("inf"))  # the losses are finite, and as they were
    train(optimizer, net, 1)
    hook.remove()
    assert all(torch.equal(before[key], optimizer.batch_state[key]) for key in ("sum", "count")) and optimizer.batch_state["seen"] == 4 * B
    x, y = problems.batch(0, net)
    x[:] = float("inf")
    optimizer.step(lambda index=None: F.cross_entropy(net(x[index]), y[index], reduction="none"), batch_size=B, sample_ids=ids_of(0))
    assert all(torch.equal(before[key], optimizer.batch_state[key]) for key in ("sum", "count"))


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"descent": rules.Stable()}])
def test_a_second_gradient_that_skips_the_step_leaves_no_trace(options: dict[str, Any]) -> None:
    net = problems.model()
    optimizer = make(AUSAM, net, options, num_samples=N)
    train(optimizer, net, 4)
    before, clean, calls = copy.deepcopy(optimizer.batch_state), problems.weights(net), iter(range(9))
    hook = net[0].bias.register_hook(lambda grad: grad * float("inf") if next(calls) == 1 else grad)
    train(optimizer, net, 1, 4)
    hook.remove()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    assert all(torch.equal(before[key], optimizer.batch_state[key]) for key in ("sum", "count"))
    train(optimizer, net, 1, 4)
    assert not torch.equal(before["sum"], optimizer.batch_state["sum"])


# ---- Reweighted SAM with a draw


def logit_losses(net: nn.Module, step: int) -> Callable[..., Any]:
    x, y = problems.batch(step, net)
    return lambda index=None: ops.cross_entropy_sample(net(x if index is None else x[index]), y if index is None else y[index])


@pytest.mark.parametrize("estimator", ["exact", "logits", "finite_difference"])
def test_drawn_reweighted(estimator: str) -> None:
    """Against the loop with the counts of the draw in the place of the weights."""
    net, twin, k = problems.model(), problems.model(), 5
    loop = Loop(twin)
    torch.manual_seed(1)
    optimizer = make(ReweightedSAM, net, {}, lam=4.0, estimator=estimator, draw=k, model=net)
    for step in range(STEPS):
        losses = logit_losses(net, step) if estimator == "logits" else losses_of(net, step)
        loss = optimizer.step(losses, batch_size=B)
        chosen = optimizer.sample_indices
        assert chosen.shape == (k,) and loss.item() == pytest.approx(loop.losses(step).mean().item(), rel=1e-8)
        expected = k * optimizer.sample_weights.weights
        counts = torch.bincount(chosen, minlength=B)
        assert ((counts - expected).abs() < 1).all()
        g = loop.gradients(loop.losses(step, chosen).mean())
        clean = loop.perturb(g)
        h = loop.gradients(loop.losses(step).mean())
        loop.restore(clean)
        loop.update(g, h)
    check(estimator, net, twin)


def test_a_bad_lam_is_not_hidden_by_the_draw() -> None:
    net, lam = problems.model(), torch.tensor(1.0, dtype=torch.float64)
    clean = problems.weights(net)
    optimizer = make(ReweightedSAM, net, {}, lam=lam, estimator="logits", draw=4)
    lam.fill_(float("nan"))
    optimizer.step(logit_losses(net, 0), batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))


# ---- all of them: same seed, same step; backends; checkpoints; failures

KINDS: dict[str, tuple[type[SAM], dict[str, Any]]] = {
    "micro": (MicroBatchSAM, {"shards": 3}),
    "esam": (ESAM, {}),
    "ausam": (AUSAM, {"num_samples": 12}),
    "drawn": (ReweightedSAM, {"lam": 4.0, "estimator": "finite_difference", "draw": 4}),
}


def ids_in(size: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(7))[:B]


def run(kind: str, net: nn.Module, steps: int, start: int = 0, optimizer: SAM | None = None, **options: Any) -> SAM:
    preset, own = KINDS[kind]
    optimizer = optimizer or make(preset, net, {**own, **options})
    for step in range(start, start + steps):
        optimizer.step(losses_of(net, step), batch_size=B, **({"sample_ids": ids_in(12)} if kind == "ausam" else {}))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_takes_the_same_step(kind: str, backend: str | None) -> None:
    nets, indices = [], []
    for name in ("reference", backend):
        torch.manual_seed(9)
        nets.append(problems.model(dtype=torch.float32))
        indices.append(run(kind, nets[-1], 2, backend=name).sample_indices)
    assert indices[0] is None or torch.equal(*(i.sort().values for i in indices))
    for p, w in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_step(kind: str) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(2)
        nets.append(problems.model(dtype=torch.float32))
        run(kind, nets[-1], 4)
    assert problems.same(*nets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_run(kind: str, tmp_path: Any) -> None:
    net, options = problems.model(), KINDS[kind]
    torch.manual_seed(2)
    optimizer = run(kind, net, 3)
    torch.save((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()), tmp_path / "checkpoint.pt")
    run(kind, net, 3, 3, optimizer)
    twin = problems.model(seed=1)
    weights, state, generator = torch.load(tmp_path / "checkpoint.pt")
    twin.load_state_dict(weights)
    resumed = make(options[0], twin, options[1])
    resumed.load_state_dict(state)
    torch.set_rng_state(generator)
    run(kind, twin, 3, 3, resumed)
    assert problems.same(net, twin)
    plain = torch.optim.SGD(twin.parameters(), **BASES["sgd"][1])
    plain.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(plain.state_dict())
    copied = copy.deepcopy(optimizer)
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(copied.batch_state[k])) for k, v in optimizer.batch_state.items())


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_forward_restores(kind: str, call: int) -> None:
    net = problems.model()
    optimizer = run(kind, net, 2)
    clean, state, count = problems.weights(net), copy.deepcopy(optimizer.batch_state), iter(range(100))
    good = losses_of(net, 0)

    def losses(index: Tensor | None = None) -> Tensor:
        if next(count) == call:
            raise KeyError("no data")
        return good(index)

    try:
        run_ids = {"sample_ids": ids_in(12)} if kind == "ausam" else {}
        optimizer.step(losses, batch_size=B, **run_ids)
    except KeyError:
        assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(optimizer.batch_state[k])) for k, v in state.items())
    else:
        assert next(count) <= call  # it has fewer forwards
    run(kind, net, 1, 5, optimizer)


# ---- what is refused, with nothing written

CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "other_rule": (lambda s: {**s, "rule": "Efficient"}, "batch rule 'Efficient', this optimizer has 'Sampled'"),
    "other_data": (lambda s: {**s, "sum": torch.ones(3)}, r"sum of the batch rule is \(3,\) .*expected .*\(12,\)"),
    "incomplete": (lambda s: {"rule": "Sampled", "sum": s["sum"]}, "delete its 'batch' entry"),
    "negative": (lambda s: {**s, "seen": -1}, "seen of the batch rule is -1"),
    "nan": (lambda s: {**s, "sum": torch.full((12,), float("nan"))}, "sum of the batch rule holds numbers .* not finite"),
    "no_dict": (lambda s: [1], "batch rule 'list'"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_bad_checkpoints(case: str) -> None:
    change, message = CHECKPOINTS[case]
    net = problems.model()
    optimizer = run("ausam", net, 2)
    state, before = optimizer.state_dict(), copy.deepcopy(optimizer.batch_state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict({**state, "batch": change(state["batch"])})
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(optimizer.batch_state[k])) for k, v in before.items())


OPTIONS: dict[str, tuple[type[SAM], dict[str, Any], str]] = {
    "both": (MicroBatchSAM, {"shards": 2, "shard_size": 3}, "expected one of them"),
    "neither": (MicroBatchSAM, {}, "shard_size is None and shards is None"),
    "no_shards": (MicroBatchSAM, {"shards": 0}, "shards is 0; expected an int >= 1"),
    "half_size": (MicroBatchSAM, {"shard_size": 2.5}, "shard_size is 2.5"),
    "beta_0": (ESAM, {"beta": 0.0}, r"beta is 0.0; expected a number in \(0, 1\]"),
    "beta_2": (ESAM, {"beta": 2.0}, "beta is 2.0"),
    "gamma_nan": (ESAM, {"gamma": float("nan")}, "gamma is nan"),
    "gamma_-1": (ESAM, {"gamma": -1}, "gamma is -1"),
    "alpha_0": (AUSAM, {"num_samples": N, "alpha": 0.0}, "alpha is 0.0"),
    "alpha_1.5": (AUSAM, {"num_samples": N, "alpha": 1.5}, "alpha is 1.5"),
    "s_min_0": (AUSAM, {"num_samples": N, "s_min": 0.0}, "s_min is 0.0 and s_max is 0.5"),
    "s_far": (AUSAM, {"num_samples": N, "s_min": 1e-9}, "not more than 1e"),
    "s_order": (AUSAM, {"num_samples": N, "s_min": 0.6}, "s_min is 0.6 and s_max is 0.5"),
    "ramp": (AUSAM, {"num_samples": N, "ramp": -1}, "ramp is -1"),
    "num_samples": (AUSAM, {"num_samples": 0}, "num_samples is 0"),
    "draw_0": (ReweightedSAM, {"lam": 1.0, "estimator": "logits", "draw": 0}, "draw is 0; expected an int >= 1"),
    "draw_-3": (ReweightedSAM, {"lam": 1.0, "estimator": "logits", "draw": -3}, "draw is -3"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case: str) -> None:
    kind, options, message = OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        make(kind, problems.model(), options)


def ignoring(net: nn.Module) -> Callable[..., Tensor]:
    return lambda index=None: losses_of(net, 0)()


IDS = ids_of(0)
STEPS_REFUSED: dict[str, tuple[type[SAM], dict[str, Any], Callable[[nn.Module], Any], dict[str, Any], type[Exception], str]] = {
    "empty_shard": (MicroBatchSAM, {"shards": 13}, lambda n: losses_of(n, 0), {}, ValueError, "shards is 13 for batch_size 12"),
    "ids_for_sam": (MicroBatchSAM, {"shards": 2}, lambda n: losses_of(n, 0), {"sample_ids": IDS}, ValueError, "MicroBatch has no use for"),
    "micro_ignores": (MicroBatchSAM, {"shards": 2}, ignoring, {}, ValueError, r"losses\(index\) with 6 .*it ignores index"),
    "esam_ignores": (ESAM, {}, ignoring, {}, ValueError, r"losses\(index\) with 5 positions returned shape \(12,\).*ignores index"),
    "drawn_ignores": (ReweightedSAM, {"lam": 1.0, "estimator": "finite_difference", "draw": 3}, ignoring, {}, ValueError, "ignores index"),
    "no_index": (ESAM, {}, lambda n: lambda: losses_of(n, 0)(), {}, TypeError, "takes no index"),
    "size": (MicroBatchSAM, {"shards": 2}, lambda n: losses_of(n, 0), {"batch_size": True}, ValueError, "batch_size is True"),
    "no_ids": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {}, TypeError, "sample_ids is NoneType; expected int64"),
    "ids_shape": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {"sample_ids": IDS[:5]}, ValueError, r"sample_ids is \(5,\)"),
    "ids_dtype": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {"sample_ids": IDS.float()}, ValueError, "torch.float32"),
    "ids_high": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {"sample_ids": IDS + 20}, ValueError, r"positions in \[0, 30\)"),
    "ids_low": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {"sample_ids": IDS - 9}, ValueError, "sample_ids holds -"),
    "ids_twice": (AUSAM, {"num_samples": N}, lambda n: losses_of(n, 0), {"sample_ids": IDS.clone().fill_(3)}, ValueError, "holds 3 twice"),
    "plain_ids": (SAM, {}, lambda n: problems.closure_of(n, 0), {"sample_ids": IDS, "batch_size": None}, ValueError, "sample_ids is"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS_REFUSED)
def test_bad_steps(case: str) -> None:
    kind, options, losses, arguments, error, message = STEPS_REFUSED[case]
    net = problems.model()
    optimizer = make(kind, net, options)
    clean, state = problems.weights(net), copy.deepcopy(optimizer.batch_state)
    with pytest.raises(error, match=message):
        optimizer.step(losses(net), **{"batch_size": B, **arguments})
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True)) and not optimizer.state
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(optimizer.batch_state[k])) for k, v in state.items())


def test_a_scaler_is_refused() -> None:
    net, scaler = problems.model(), torch.amp.GradScaler("cpu")
    optimizer = make(MicroBatchSAM, net, {}, shards=2)
    train(optimizer, net, 1)
    clean = problems.weights(net)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"call optimizer\.step\(losses"):
        scaler.step(optimizer, losses_of(net, 0), batch_size=B)
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), clean, strict=True))
    train(optimizer, net, 1)


def test_frozen_tensors_need_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match="use beta=1 with several ranks"):
        make(ESAM, problems.model(), {})
    make(ESAM, problems.model(), {"beta": 1.0})


@pytest.mark.parametrize("kind", ["esam", "ausam"])
def test_dropout_drops_the_same_where_losses_are_subtracted(kind: str) -> None:
    torch.manual_seed(5)
    net = nn.Sequential(problems.model(), nn.Dropout(0.5)).train()
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda _m, _x, y: seen.append((y == 0).clone()))
    run(kind, net, 1)
    assert torch.equal(seen[0], seen[1]) and 0 < seen[0].sum() < seen[0].numel()
