"""What makes other SAM wrappers crash, diverge or stay perturbed, on every backend: each of these was measured on a peer."""

from collections.abc import Callable

import pytest
import torch
from problems import closure_of, model, weights
from torch import Tensor, nn

from sam_kernels.optim import SAM, StableSAM

BASES: dict[str, tuple[torch.dtype, dict[str, object]]] = {  # a rho that shows in half types
    "sgd": (torch.float32, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.bfloat16, {"lr": 0.1, "rho": 2.0, "weight_decay": 0.0}),
    "amsgrad": (torch.float32, {"lr": 0.1}),
    "lion": (torch.float16, {"lr": 0.1, "rho": 2.0}),
}
every_base = pytest.mark.parametrize("base", BASES)
Phase = Callable[[nn.Module], None]


def start(place: tuple[str, str], kind: type[SAM] = SAM, base: str = "sgd") -> tuple[nn.Sequential, SAM]:
    backend, device = place
    dtype, options = BASES[base]
    net = model(dtype=dtype, device=device)
    return net, kind(net.parameters(), base, backend=backend, **options)


def state_of(opt: SAM) -> dict[int, dict[str, Tensor]]:
    return {k: {name: x.clone() for name, x in entry.items()} for k, entry in opt.state_dict()["state"].items()}


def copies(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def unchanged(net: nn.Module, before: list[Tensor]) -> list[bool]:
    return [torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True)]


def backward(net: nn.Module, step: int = 0) -> None:
    net.zero_grad()
    closure_of(net, step)()


@every_base
def test_gradient_missing_in_the_second_pass_restores(base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, base=base)
    before = copies(net)
    backward(net)
    opt.first_step(zero_grad=True)
    backward(net)
    first = next(net.parameters())
    first.grad = None
    opt.second_step()
    assert unchanged(net, before) == [True] + [False] * (len(before) - 1)
    assert 0 not in opt.state_dict()["state"] and not opt.state.get(first)


@every_base
def test_no_gradient_at_all_in_the_second_pass_restores_everything(base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, base=base)
    before = copies(net)
    backward(net)
    opt.first_step(zero_grad=True)
    opt.second_step()
    assert all(unchanged(net, before))


def test_gradient_only_in_the_second_pass_is_an_ordinary_update(place: tuple[str, str]) -> None:
    net, opt = start(place)
    before = copies(net)
    backward(net)
    first = next(net.parameters())
    first.grad = None
    opt.first_step(zero_grad=True)
    assert unchanged(net, before)[0]
    backward(net)
    h = first.grad.clone()
    opt.second_step()
    assert torch.allclose(first, before[0] - 0.1 * h) and not any(unchanged(net, before))


@pytest.mark.parametrize("kind", [SAM, StableSAM])
def test_gradients_only_in_the_second_pass_everywhere(kind: type[SAM], place: tuple[str, str]) -> None:
    net, opt = start(place, kind)
    before = copies(net)
    opt.first_step()
    backward(net)
    h = [p.grad.clone() for p in net.parameters()]
    opt.second_step()
    assert all(torch.allclose(p, w - 0.1 * x) for p, w, x in zip(net.parameters(), before, h, strict=True))


@every_base
def test_no_gradient_anywhere_is_a_no_op(base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, base=base)
    before = copies(net)
    opt.first_step()
    opt.second_step()
    opt.step(lambda: torch.zeros(()))
    assert all(unchanged(net, before)) and not opt.state_dict()["state"]


@pytest.mark.parametrize("kind", [SAM, StableSAM])
@every_base
def test_zero_gradient_perturbs_nothing(kind: type[SAM], base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, kind, base)
    before = copies(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.first_step()
    assert all(unchanged(net, before))
    opt.second_step()
    assert all(unchanged(net, before))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("kind", [SAM, StableSAM])
@every_base
def test_bad_first_gradient_skips_the_step_on_the_device(kind: type[SAM], value: float, base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, kind, base)
    clean_net, clean = start(place, kind, base)
    for stage in range(3):  # at the first step (no momentum yet), then after one
        before, state = copies(net), state_of(opt)
        backward(net)
        list(net.parameters())[1].grad.view(-1)[-1] = value
        opt.first_step(zero_grad=True)
        assert all(unchanged(net, before)), "a bad gradient must perturb nothing"
        backward(net)
        opt.second_step()
        assert all(unchanged(net, before)), "the step must be skipped"
        after = state_of(opt)
        assert after.keys() == state.keys() and all(torch.equal(after[k][n], x) for k, entry in state.items() for n, x in entry.items())
        opt.step(closure_of(net, stage))
        clean.step(closure_of(clean_net, stage))
        assert all(unchanged(net, copies(clean_net))), "the next step must not remember the skipped one"


def test_bad_second_gradient_behaves_as_the_base_does(place: tuple[str, str]) -> None:
    net, opt = start(place)
    backward(net)
    opt.first_step(zero_grad=True)
    backward(net)
    list(net.parameters())[1].grad.view(-1)[0] = float("inf")
    opt.second_step()
    finite = [bool(torch.isfinite(p).all()) for p in net.parameters()]
    assert finite == [i != 1 for i in range(len(finite))], "torch.optim.SGD would write this element and no other"


@every_base
def test_bad_second_gradient_skips_where_its_norm_is_at_hand(base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, StableSAM, base)
    before = copies(net)
    backward(net)
    opt.first_step(zero_grad=True)
    backward(net)
    list(net.parameters())[1].grad.view(-1)[0] = float("inf")
    opt.second_step()
    assert all(unchanged(net, before)) and not opt.state_dict()["state"]


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_bad_first_gradient_with_any_base(base: str, place: tuple[str, str]) -> None:
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    opt = SAM(net.parameters(), base, lr=0.1, backend=backend)
    before = copies(net)
    backward(net)
    next(net.parameters()).grad.fill_(float("nan"))
    opt.first_step(zero_grad=True)
    backward(net)
    opt.second_step()
    assert all(unchanged(net, before))


@pytest.mark.parametrize("failing_call", [0, 1])
@every_base
def test_exception_in_the_closure_leaves_clean_weights(failing_call: int, base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, base=base)
    before, calls = copies(net), []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) - 1 == failing_call:
            raise KeyboardInterrupt
        return closure_of(net, 0)()

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert all(unchanged(net, before))
    opt.step(closure_of(net, 0))
    assert not any(unchanged(net, before))


@every_base
def test_perturbed_context_restores_on_every_way_out(base: str, place: tuple[str, str]) -> None:
    net, opt = start(place, base=base)
    before = copies(net)
    backward(net)
    with pytest.raises(ZeroDivisionError), opt.perturbed(zero_grad=True):
        assert not any(unchanged(net, before))
        raise ZeroDivisionError
    assert all(unchanged(net, before))
    backward(net)
    with opt.perturbed():
        assert not any(unchanged(net, before))
    assert all(unchanged(net, before))
    backward(net)
    with opt.perturbed(zero_grad=True):
        backward(net)
        opt.second_step()
    assert not any(unchanged(net, before))


def test_calls_out_of_order_raise_and_write_nothing(place: tuple[str, str]) -> None:
    net, opt = start(place)
    before = copies(net)
    with pytest.raises(RuntimeError, match=r"second_step\(\) without first_step"):
        opt.second_step()
    with pytest.raises(RuntimeError, match="needs a closure, or a first_step"):
        opt.step()
    backward(net)
    opt.first_step()
    moved = copies(net)
    for name, call in {
        "first_step": opt.first_step,
        "step": lambda: opt.step(closure_of(net, 0)),
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict({}),
        "add_param_group": lambda: opt.add_param_group({"params": [torch.zeros(1, requires_grad=True)]}),
    }.items():
        with pytest.raises(RuntimeError, match="while the parameters are perturbed; call second_step"):
            call()
        assert all(unchanged(net, moved)), name
    opt.restore()
    opt.restore()
    assert all(unchanged(net, before))


def test_a_skipped_parameter_keeps_its_momentum(place: tuple[str, str]) -> None:
    """Gradients that come and go: state belongs to the parameter, not to its position in the list."""
    net, opt = start(place)
    params = list(net.parameters())
    opt.step(closure_of(net, 0))
    held = opt.state[params[0]]["momentum_buffer"].clone()
    others = opt.state[params[2]]["momentum_buffer"].clone()
    params[0].requires_grad_(False)
    opt.step(closure_of(net, 1))
    assert torch.equal(opt.state[params[0]]["momentum_buffer"], held)
    assert not torch.equal(opt.state[params[2]]["momentum_buffer"], others)
    params[0].requires_grad_(True)
    opt.step(closure_of(net, 2))
    assert not torch.equal(opt.state[params[0]]["momentum_buffer"], held)


def test_sparse_gradient_is_refused_by_name(place: tuple[str, str]) -> None:
    backend, device = place
    table = nn.Embedding(5, 3, sparse=True, device=device)
    opt = SAM(table.parameters(), "sgd", lr=0.1, backend=backend)
    before = copies(table)
    table(torch.tensor([1, 2], device=device)).sum().backward()
    with pytest.raises(TypeError, match=r"layout torch.sparse_coo; expected dense"):
        opt.first_step()
    assert all(unchanged(table, before))


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_plain_base_after_a_skipped_first_step_starts_from_nothing(base: type[torch.optim.Optimizer]) -> None:
    """SAM late: the base alone steps next, and goes by what it finds in the state."""
    found = []
    for skip in (True, False):
        net = model(dtype=torch.float32)
        opt = SAM(net.parameters(), base, lr=0.1, **({"momentum": 0.9} if base is torch.optim.SGD else {}))
        if skip:
            for phase in (opt.first_step, opt.second_step):
                for p in net.parameters():
                    p.grad = torch.full_like(p, float("inf"))
                phase(zero_grad=True)
        closure_of(net, 0)()
        opt.base_optimizer.step()
        found.append(weights(net))
    assert all(map(torch.equal, *found))
