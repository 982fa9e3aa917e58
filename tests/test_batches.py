"""What holds for every batch rule: same seed, same step; backends; checkpoints; failures; what is refused, with nothing written."""

import copy
from collections.abc import Callable
from typing import Any

import problems
import pytest
import torch
from batch_loops import BASES, B
from batch_problems import KINDS, N, ids_in, ids_of, losses_of, make, run, train
from conftest import require_ops
from torch import Tensor, nn

from sam_kernels.optim import AUSAM, ESAM, SAM, MicroBatchSAM, ReweightedSAM
from sam_kernels.registry import OPS


@pytest.fixture(params=["reference", "cpp", "triton", None])
def backend(request: pytest.FixtureRequest) -> str | None:
    if request.param is not None:
        require_ops(request.param, "cpu", [*OPS] if request.param != "triton" else ["draw", "gibbs_weights", "descend_"])
    return request.param


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
    "ids_for_sam": (MicroBatchSAM, {"shards": 2}, lambda n: losses_of(n, 0), {"sample_ids": IDS}, ValueError, "MicroBatchSAM has no use"),
    "micro_ignores": (MicroBatchSAM, {"shards": 2}, ignoring, {}, ValueError, r"losses\(index\) with 6 .*it ignores index"),
    "esam_ignores": (ESAM, {}, ignoring, {}, ValueError, r"losses\(index\) with 5 positions returned shape \(12,\).*ignores index"),
    "drawn_ignores": (ReweightedSAM, {"lam": 1.0, "estimator": "finite_difference", "draw": 3}, ignoring, {}, ValueError, "ignores index"),
    "no_index": (ESAM, {}, lambda n: lambda: losses_of(n, 0)(), {}, TypeError, "cannot be called both as"),
    "keyword_index": (ESAM, {}, lambda n: lambda *, index=None: losses_of(n, 0)(index), {}, TypeError, "cannot be called both as"),
    "reduced": (MicroBatchSAM, {"shards": 2}, lambda n: lambda i=None: losses_of(n, 0)(i).mean(), {}, ValueError, "reduction='none'"),
    "smaller": (ESAM, {}, lambda n: losses_of(n, 0), {"batch_size": 5}, ValueError, r"to have 12 samples: step\(losses, batch_size=12\)"),
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


def test_losses_of_samples_without_a_batch_rule_are_refused() -> None:
    """Nobody would have called backward: a step that does nothing."""
    net = problems.model(dtype=torch.float32)
    opt = SAM(net.parameters(), "sgd", lr=0.1)
    kept = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"losses of shape \(12,\) and left no gradient"):
        opt.step(
            lambda index=None: nn.functional.cross_entropy(net(x := problems.batch(0, net)[0]), x.new_zeros(12).long(), reduction="none")
        )
    assert all(map(torch.equal, kept, net.parameters()))
