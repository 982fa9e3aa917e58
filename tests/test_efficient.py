"""ESAM against its equations on fp64 tensors: who is moved, who is selected."""

import copy
from typing import Any

import batch_loops
import problems
import pytest
import torch
import torch.nn.functional as F
from batch_loops import B, Loop
from batch_problems import KINDS, LOOPS, STEPS, check, ids_in, losses_of, make, sam, train
from cpu_graph import NoHost
from torch import Tensor

from sam_kernels.optim import ESAM, ReweightedSAM, rules


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
    rule, tensors = rules.Efficient(beta=1e-9), [torch.zeros(1) for _ in range(6)]
    drawn = torch.tensor([[id(p) not in out for p in tensors] for out in (rule.left_out(tensors, False) for _ in range(200))])
    assert (drawn.sum(1) == 1).all() and drawn.any(0).all() and not rule.left_out(tensors, first_step=True)
    assert not rules.Efficient(beta=1.0).left_out(tensors, first_step=False)


def test_efficient_draws_its_tensors_on_the_host() -> None:
    """Whatever torch's default dtype and device are."""
    tensors = [torch.zeros(1) for _ in range(9)]
    torch.manual_seed(0)
    want = rules.Efficient().left_out(tensors, first_step=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert rules.Efficient().left_out(tensors, first_step=False) == want
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
    out = {id(p) for k, p in enumerate(net.parameters()) if k not in (2, 5)}
    monkeypatch.setattr(rules.Efficient, "left_out", lambda *_, **__: out)
    seen = []
    for k, p in enumerate(net.parameters()):
        p.register_hook(lambda grad, k=k: seen.append(k))
    optimizer.step(losses_of(net, 0), batch_size=B)
    assert sorted(seen) == [0, 1, 2, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("still", ["frozen", "rho"])
def test_coins_are_tossed_for_what_an_ascent_can_move(still: str) -> None:
    """Otherwise nothing might move, no loss grow, and the second pass look at samples that nobody chose."""
    net = problems.model()
    *body, last = net.parameters()
    if still == "frozen":
        for p in body:
            p.requires_grad_(False)
        groups = [{"params": list(net.parameters())}]
    else:
        groups = [{"params": body, "rho": 0.0}, {"params": [last]}]
    opt = ESAM(groups, torch.optim.SGD, rho=0.5, beta=0.1, gamma=0.5, lr=0.0)
    clean = last.detach().clone()
    moved: list[bool] = []
    for step in range(20):
        opt.step(watched(losses_of(net, step), lambda: moved.append(not torch.equal(last, clean))), batch_size=B)
    assert moved == [False, True, True] * 20


def watched(losses: Any, look: Any) -> Any:
    def function(index: Any = None) -> Any:
        look()
        return losses(index)

    return function


@pytest.mark.parametrize("rho", [0.0, torch.tensor(0.0)])
def test_the_second_pass_takes_all_samples_where_nothing_moves(rho: Any) -> None:
    net = problems.model()
    opt = ESAM(net.parameters(), torch.optim.SGD, rho=rho, beta=0.5, gamma=0.5, lr=0.1)
    opt.step(losses_of(net, 0), batch_size=B)
    assert opt.sample_indices is None


def test_a_subset_of_the_tensors_costs_no_copy_from_the_host() -> None:
    net = problems.model()
    opt = ESAM(net.parameters(), "adamw", beta=0.3, gamma=0.5, lr=0.1, backend="cpp")
    opt.step(losses_of(net, 0), batch_size=B)
    with NoHost(allowed=("left_out",)):
        for _ in range(5):
            opt.step(losses_of(net, 0), batch_size=B)
