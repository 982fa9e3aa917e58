"""AUSAM and Reweighted SAM with a draw against their equations on fp64 tensors."""

import copy
from collections.abc import Callable
from typing import Any

import batch_loops
import problems
import pytest
import torch
import torch.nn.functional as F
from batch_loops import B, Loop
from batch_problems import LOOPS, STEPS, N, check, ids_of, losses_of, make, sam, train
from conftest import require_ops
from tolerance import assert_loop
from torch import Tensor, nn

from sam_kernels import ops
from sam_kernels.ops import draw_reference
from sam_kernels.optim import AUSAM, ReweightedSAM, rules


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


@pytest.mark.parametrize("size", [1, 2, B])
def test_dropout_drops_the_same_in_both_passes_also_where_no_sample_is_left_out(size: int) -> None:
    """Otherwise the table would hold the noise of dropout, for a last batch of one sample say."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    x, y = torch.randn(size, 6), torch.randint(0, 3, (size,))
    opt = AUSAM(net.parameters(), "sgd", rho=1e-6, lr=0.0, num_samples=N, alpha=0.5)

    def losses(index: Tensor | None = None) -> Tensor:
        return F.cross_entropy(net(x if index is None else x[index]), y if index is None else y[index], reduction="none")

    for _ in range(N // size + 2):
        opt.step(losses, batch_size=size, sample_ids=torch.arange(size))
        assert (opt.batch_state["sum"][:size] / opt.batch_state["count"][:size]).min() < 1e-4


@pytest.mark.parametrize("estimator", ["exact", "logits", "finite_difference"])
@pytest.mark.parametrize("bad", ["sample", "lam", "norm"])
def test_a_draw_hides_nothing_that_would_skip_the_step(bad: str, estimator: str) -> None:
    """A sample that is NaN, or lam, skips the step as it does without a draw; a norm alone that overflows only weighs nothing."""
    moved = []
    for k in (None, 4):
        torch.manual_seed(0)
        net = nn.Linear(6, 3)
        x, y = torch.randn(B, 6), torch.randint(0, 3, (B,))
        if bad == "sample":
            x[3] = float("nan")
        lam = torch.tensor(float("nan") if bad == "lam" else 1.0)
        opt = ReweightedSAM(net.parameters(), "sgd", lr=0.1, lam=1.0, estimator=estimator, draw=k, model=net)
        object.__setattr__(opt.batch, "lam", lam)
        opt.step(with_norms(net, x, y, overflow=bad == "norm"), batch_size=B)
        torch.manual_seed(0)
        moved.append(not torch.equal(net.weight, nn.Linear(6, 3).weight))
    assert moved == [bad == "norm"] * 2


def with_norms(net: nn.Module, x: Tensor, y: Tensor, overflow: bool) -> Callable[..., Any]:
    def losses(index: Tensor | None = None) -> Any:
        found, norms = ops.cross_entropy_sample(net(x if index is None else x[index]), y if index is None else y[index])
        return found, norms * 1e38 if overflow else norms  # their sum is not finite, each of them is

    return losses
