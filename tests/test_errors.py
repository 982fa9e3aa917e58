"""Bad input: an exception that names the argument and what was expected, before anything is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sam_kernels.ops import Combination, ascend_, descend_, inner_products
from sam_kernels.optim import SAM, Lion, rules

Lists = dict[str, list[Tensor]]
W, G, S = "params", "grads", "stash"


def lists() -> Lists:
    torch.manual_seed(0)
    return {name: [torch.randn(4, 3), torch.randn(5)] for name in (W, G, S, "q", "m")}


def ascend(x: Lists, **options: Any) -> None:
    ascend_(x[W], x[G], x[S], **{"rho": 0.05, **options})


def descend(x: Lists, **options: Any) -> None:
    descend_(x[W], x[G], **{"base": "sgd", "stash": x[S], "lr": 0.1, **options})


def replaced(name: str, index: int, make: Callable[[Tensor], Any]) -> Callable[[Lists], None]:
    def call(x: Lists) -> None:
        x[name][index] = make(x[name][index])
        ascend(x)

    return call


ALIAS = "share memory"
CASES: dict[str, tuple[Callable[[Lists], Any], type[Exception], str]] = {
    "dtype": (replaced(G, 1, lambda t: t.double()), ValueError, r"grads\[1\] is torch.float64 .* params\[0\] is torch.float32"),
    "integer": (replaced(G, 0, lambda t: t.int()), TypeError, r"grads\[0\] is torch.int32; expected a floating-point"),
    "complex": (replaced(G, 0, lambda t: t + 0j), TypeError, r"grads\[0\] is torch.complex64; .*view_as_real"),
    "device": (replaced(S, 1, lambda t: t.to("meta")), ValueError, r"stash\[1\] is .* on meta but params\[0\] is .* on cpu"),
    "shape": (replaced(S, 0, lambda t: t[:2].contiguous()), ValueError, r"stash\[0\] has shape \(2, 3\) but params\[0\] has \(4, 3\)"),
    "layout": (replaced(G, 0, lambda t: t.t().contiguous().t()), ValueError, r"grads\[0\] has strides \(1, 4\) but params\[0\] has \(3, 1\)"),  # noqa: E501
    "expanded": (replaced(G, 0, lambda t: t[:1].expand(4, 3)), ValueError, r"grads\[0\] has strides \(0, 1\).*non-overlapping"),
    "sparse": (replaced(G, 0, lambda t: t.to_sparse()), TypeError, r"grads\[0\] has layout torch.sparse_coo; .*to_dense"),
    "not_a_tensor": (replaced(G, 0, lambda t: 3.0), TypeError, r"grads\[0\] is float; expected a torch.Tensor"),
    "single_tensor": (lambda x: ascend_(x[W][0], x[G], x[S], rho=0.1), TypeError, r"params is a single tensor; .*pass \[params\]"),
    "length": (lambda x: ascend_(x[W], x[G][:1], x[S], rho=0.1), ValueError, "grads has 1 tensors but params has 2"),
    "alias_stash": (lambda x: ascend_(x[W], x[G], x[W], rho=0.1), ValueError, ALIAS),
    "alias_grad": (lambda x: ascend_(x[W], x[S], x[S], rho=0.1), ValueError, ALIAS),
    "alias_twice": (lambda x: ascend_([x[W][0]] * 2, [x[G][0]] * 2, [x[S][0], x[S][0].clone()], rho=0.1), ValueError, ALIAS),
    "alias_h": (lambda x: descend_(x[W], x[W], base="sgd", lr=0.1), ValueError, ALIAS),
    "rho": (lambda x: ascend(x, rho=-0.1), ValueError, "rho is -0.1; expected a number >= 0"),
    "rho_nan": (lambda x: ascend(x, rho=float("nan")), ValueError, "rho is nan; expected a finite number"),
    "eta": (lambda x: ascend(x, eta=-1.0), ValueError, "eta is -1.0"),
    "lr": (lambda x: descend(x, lr=-1.0), ValueError, "lr is -1.0; expected a number >= 0"),
    "backend": (lambda x: ascend(x, backend="fpga"), ValueError, "backend is 'fpga'; expected one of"),
    "backend_descend": (lambda x: descend(x, backend="fpga"), ValueError, "backend is 'fpga'"),
    "backend_device": (lambda x: ascend(x, backend="cuda"), RuntimeError, "backend 'cuda' cannot run ascend_: "),
    "base": (lambda x: descend(x, base="adagrad"), ValueError, "base is 'adagrad'.*; expected one of"),
    "decay_at": (lambda x: descend(x, decay_at="somewhere"), ValueError, "decay_at is 'somewhere'; expected"),
    "no_buffers": (lambda x: descend(x, momentum=0.9), ValueError, "updates m, which is None"),
    "no_second_moment": (lambda x: descend(x, base="adam", m=x["m"], steps=torch.zeros(2)), ValueError, "updates v, which is None"),
    "no_maximum": (lambda x: descend(x, base="adam", m=x["m"], v=x["q"], amsgrad=True, steps=torch.zeros(2)), ValueError, "updates v_max"),
    "no_steps": (lambda x: descend(x, base="adam", m=x["m"], v=x["q"]), ValueError, "needs steps"),
    "no_lr": (lambda x: descend_(x[W], x[G], base="lion", m=x["m"]), TypeError, "base 'lion' needs lr"),
    "state_of_another_base": (lambda x: descend(x, v=x["q"]), ValueError, "base 'sgd' has no state v"),
    "option_of_another_base": (lambda x: descend(x, eps=1e-8), TypeError, "base 'sgd' has no option 'eps'; expected some of"),
    "beta": (lambda x: descend(x, base="lion", m=x["m"], beta2=1.0), ValueError, r"beta2 is 1.0; expected a number in \[0, 1\)"),
    "eps": (lambda x: descend(x, base="adam", m=x["m"], v=x["q"], steps=torch.zeros(2), eps=-1.0), ValueError, "eps is -1.0"),
    "state_dtype": (lambda x: descend(x, momentum=0.9, m=[t.half() for t in x["m"]]), ValueError, "expected torch.float32"),
    "ascent_eps": (lambda x: ascend(x, eps=-1.0), ValueError, "eps is -1.0; expected a finite number >= 0"),
    "phase": (lambda x: ascend(x, phase="both"), ValueError, "phase is 'both'; expected 'all', 'norm' or 'update'"),
    "no_stash": (lambda x: ascend_(x[W], x[G], None, rho=0.1), ValueError, "stash is None"),
    "no_q": (lambda x: ascend(x, direction=(1.0, -1.0)), ValueError, "q, which is None"),
    "no_g": (lambda x: descend(x, coefficients=Combination(u={"g": 1.0})), ValueError, "coefficients involve g, which is None"),
    "no_norm": (lambda x: descend(x, match_norm=True), ValueError, "the norms need g, which is None"),
    "unknown_input": (lambda x: descend(x, coefficients=Combination(u={"k": 1.0})), ValueError, r"unknown inputs \['k'\]"),
    "long_vector": (lambda x: descend(x, coefficients=Combination(u={"h": (1.0,) * 6})), ValueError, "expected up to 5 finite numbers"),
    "ema": (lambda x: ascend(x, q=x["q"], ema=(0.6,)), ValueError, "ema is .*; expected two factors"),
    "max_norm": (lambda x: descend(x, max_norm=-1.0), ValueError, "max_norm is -1.0; expected a number > 0"),
    "max_norm_nan": (lambda x: descend(x, max_norm=float("nan")), ValueError, "max_norm is nan"),
    "scalar_shape": (lambda x: ascend(x, sq_norm=torch.zeros(())), ValueError, r"sq_norm is \(\) .*expected 1 contiguous"),
    "given_name": (lambda x: descend(x, given=("hq2",), gram=torch.zeros(6)), ValueError, "given names unknown Gram entries"),
    "given_without_gram": (lambda x: descend(x, given=("gg",)), ValueError, "gram is None"),
    "gram_shape": (lambda x: ascend(x, gram=torch.zeros(5)), ValueError, r"gram is \(5,\) .*expected 6 contiguous elements"),
    "gram_dtype": (lambda x: ascend(x, gram=torch.zeros(6).double()), ValueError, "expected 6 contiguous elements of torch.float32"),
    "steps": (lambda x: descend(x, steps=torch.zeros(3)), ValueError, "steps is .*expected 2 contiguous elements"),
    "group_length": (lambda x: ascend(x, group=[0]), ValueError, "group has 1 entries for 2 tensors"),
    "group_negative": (lambda x: ascend(x, group=[0, -1]), ValueError, "group holds -1"),
    "group_missing": (lambda x: ascend(x, rho=[0.1, 0.2]), ValueError, "rho has 2 entries but group is not given"),
    "per_group_length": (lambda x: ascend(x, group=[0, 1], rho=[0.1, 0.2, 0.3], eta=[0.0, 0.0]), ValueError, "expected one number, or one per group"),  # noqa: E501
    "inner_length": (lambda x: inner_products(x[G], x[W][:1]), ValueError, "h has 1 tensors but g has 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_ops_refuse_and_write_nothing(name: str) -> None:
    call, error, message = CASES[name]
    x = lists()
    held = {id(t): t.clone() for tensors in x.values() for t in tensors}
    originals = [t for tensors in x.values() for t in tensors]
    with pytest.raises(error, match=message):
        call(x)
    assert all(torch.equal(t, held[id(t)]) for t in originals)


def weights() -> list[Tensor]:
    return [torch.zeros(3, 2, requires_grad=True), torch.zeros(4, requires_grad=True)]


DIRECT = rules.Descent(Combination(direct={"h": 1.0}))
OPTIMIZER_CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rho": (lambda: SAM(weights(), "sgd", rho=-1.0, lr=0.1), ValueError, "rho is -1.0; expected a finite number >= 0"),
    "group_rho": (lambda: SAM([{"params": weights(), "rho": -1.0}], "sgd", lr=0.1), ValueError, "rho is -1.0"),
    "eta": (lambda: SAM(weights(), "sgd", eta=-1.0, lr=0.1), ValueError, "eta is -1.0"),
    "base_name": (lambda: SAM(weights(), "lamb"), ValueError, "base_optimizer is 'lamb'; expected one of"),
    "base_type": (lambda: SAM(weights(), torch.nn.Linear), TypeError, "expected a torch.optim.Optimizer class"),
    "base_owns_rho": (lambda: SAM(weights(), torch.optim.Adadelta), ValueError, "Adadelta has a hyperparameter rho of its own"),
    "instance_kwargs": (lambda: (lambda w: SAM(w, torch.optim.SGD(w, lr=0.1), lr=0.2))(weights()), TypeError, r"\['lr'\] would be ignored"),
    "instance_params": (lambda: SAM(weights(), torch.optim.SGD(weights(), lr=0.1)), ValueError, "build both from one list"),
    "differentiable": (lambda: SAM(weights(), "sgd", lr=0.1, differentiable=True), ValueError, "differentiable=True is not supported"),
    "max_norm": (lambda: SAM(weights(), "sgd", lr=0.1, max_norm=0.0), ValueError, "max_norm is 0.0; expected a number > 0"),
    "rule_class": (lambda: SAM(weights(), "sgd", lr=0.1, descent=rules.Stable), TypeError, "did you pass the class"),
    "rule_kind": (lambda: SAM(weights(), "sgd", lr=0.1, schedule=rules.Stable()), TypeError, "schedule is .*EveryStep"),
    "rule_q_norm": (lambda: rules.Descent(Combination(u={"h": (0, 0, 0, 0, 1.0)})), ValueError, "involve q"),
    "rule_direct": (lambda: SAM(weights(), torch.optim.RMSprop, descent=DIRECT), ValueError, "direct term"),
    "rule_key": (lambda: rules.Descent(Combination(u={"k": 1.0})), ValueError, "unknown inputs"),
    "lbfgs": (lambda: SAM(weights(), torch.optim.LBFGS), ValueError, "LBFGS.step needs a closure of its own"),
    "eps": (lambda: SAM(weights(), "sgd", lr=0.1, perturb_eps=-1.0), ValueError, "perturb_eps is -1.0"),
    "adaptive": (lambda: SAM(weights(), "sgd", lr=0.1, adaptive="no"), TypeError, "adaptive is 'no'; expected True or False"),
    "model": (lambda: SAM(weights(), "sgd", lr=0.1, model=3), TypeError, "model is int"),
    "rho_tensor": (lambda: SAM(weights(), "sgd", lr=0.1, rho=torch.tensor(-1.0)), ValueError, "rho is tensor.-1.*finite number >= 0"),
    "rho_shape": (lambda: SAM(weights(), "sgd", lr=0.1, rho=torch.ones(3)), ValueError, r"rho is a tensor of shape \(3,\)"),
    "late_none": (lambda: _edited("momentum", None), ValueError, "momentum is None; expected a finite number"),
    "rule_q": (lambda: rules.Descent(Combination(u={"q": 1.0})), ValueError, "involve q"),
    "backend": (lambda: SAM(weights(), "sgd", lr=0.1, backend="fpga"), ValueError, "backend is 'fpga'"),
    "backend_device": (lambda: SAM(weights(), "sgd", lr=0.1, backend="cuda"), RuntimeError, "backend 'cuda' cannot run"),
    "complex": (lambda: SAM([torch.zeros(2, dtype=torch.complex64, requires_grad=True)], "sgd", lr=0.1), TypeError, r"params\[0\] is torch.complex64"),  # noqa: E501
    "overlapping": (lambda: SAM([torch.zeros(1, 3).expand(2, 3).requires_grad_()], "sgd", lr=0.1), ValueError, r"params\[0\] .*expected dense"),  # noqa: E501
    "aliasing": (lambda: (lambda w: SAM([w, w.detach()[:2].requires_grad_()], "sgd", lr=0.1))(torch.zeros(4, requires_grad=True)), ValueError, ALIAS),  # noqa: E501
    "late_rho": (lambda: _edited("rho", -1.0), ValueError, "rho is -1.0"),
    "betas": (lambda: Lion(weights(), betas=(0.9, 1.0)), ValueError, r"betas is \(0.9, 1.0\); expected two numbers in"),
    "initial_v": (lambda: SAM(weights(), "amsgrad", initial_v=-1.0), ValueError, "initial_v is -1.0"),
    "late_lr": (lambda: _edited("lr", float("nan")), ValueError, "lr is nan"),
}  # fmt: skip


def _edited(key: str, value: float) -> None:
    w = weights()
    opt = SAM(w, "sgd", lr=0.1)
    opt.param_groups[0][key] = value
    try:
        opt.step(lambda: sum((p - 1).square().sum() for p in w).backward())
    finally:
        assert all((p == 0).all() for p in w), "the weights must be as they were"


@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_the_optimizer_refuses(name: str) -> None:
    call, error, message = OPTIMIZER_CASES[name]
    with pytest.raises(error, match=message):
        call()


def test_backend_by_name_never_falls_back() -> None:
    small = [torch.zeros(3, dtype=torch.float8_e5m2)]
    with pytest.raises(RuntimeError, match=r"backend 'cpp' cannot run inner_products: supports torch.float32, .*, not torch.float8_e5m2"):
        inner_products(small, backend="cpp")
    assert inner_products(small).tolist() == [0.0] * 6, "without a name the reference serves what no other backend can"
