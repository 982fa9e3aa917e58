"""MicroBatchSAM against its equations on fp64 tensors, and how shards add up."""

import copy

import batch_loops
import problems
import pytest
import torch
import torch.nn.functional as F
from batch_loops import RHO, B, Loop
from batch_problems import LOOPS, MIX, STEPS, N, check, losses_of, make, sam, train
from tolerance import assert_loop
from torch import Tensor, nn

from sam_kernels.optim import AUSAM, ESAM, MicroBatchSAM, ReweightedSAM, rules


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
