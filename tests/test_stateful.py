"""Any order of steps, faults, edits, casts and checkpoints, drawn by hypothesis, against a second implementation of the equations.

Gradients are made by the test. The truth keeps fp64 values under plain numbers and follows in fp64 to 1e-10. Where a parameter is fp32,
every action is checked by the rule of tests/tolerance.py and the truth then takes over the rounded values. Restored weights, storage,
counts of updates and the keys of the state are compared exactly.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from conftest import skip_or_fail
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tolerance import assert_elementwise, assert_loop
from torch import Tensor

from sam_kernels.optim import SAM, StableSAM
from sam_kernels.optim.plain import Lion
from sam_kernels.registry import OPS

SHAPES = [(3, 4), (5,), (), (2, 3, 2), (0,)]
BASES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "amsgrad": True}),
    "lion": (Lion, {"lr": 0.01, "weight_decay": 0.1}),
}
KEYS = {"sgd": {"momentum_buffer"}, "nesterov": {"momentum_buffer"}, "adam": {"step", "exp_avg", "exp_avg_sq"},
        "adamw": {"step", "exp_avg", "exp_avg_sq"}, "amsgrad": {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
        "lion": {"step", "exp_avg"}}  # fmt: skip
State = dict[str, Any]
Lists = dict[int, Tensor]


def update(base: str, o: dict[str, Any], w: Tensor, u: Tensor, state: State) -> tuple[Tensor, State]:
    """One update of one tensor, straight from the papers; ``state`` is empty before the first."""
    lr, decay = o["lr"], o["weight_decay"]
    if base in ("sgd", "nesterov"):
        u = u + decay * w
        if o["momentum"] == 0:
            return w - lr * u, state
        m = o["momentum"] * state["momentum_buffer"] + u if "momentum_buffer" in state else u
        return w - lr * (u + o["momentum"] * m if o["nesterov"] else m), {"momentum_buffer": m}
    b1, b2 = o["betas"]
    m = state.get("exp_avg", torch.zeros_like(w))
    t = state.get("step", 0) + 1
    if base == "lion":
        c = b1 * m + (1 - b1) * u
        return w * (1 - lr * decay) - lr * torch.sign(c), {"step": t, "exp_avg": b2 * m + (1 - b2) * u}
    if base == "adamw":
        w = w * (1 - lr * decay)
    else:
        u = u + decay * w
    m = b1 * m + (1 - b1) * u
    v = b2 * state.get("exp_avg_sq", torch.zeros_like(w)) + (1 - b2) * u * u
    new = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    if base == "amsgrad":
        v = new["max_exp_avg_sq"] = torch.maximum(state.get("max_exp_avg_sq", torch.zeros_like(w)), v)
    return w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + o["eps"]), new


class Truth:
    """The weights and the state under the numbers of the parameters, and the options of the group that each is in."""

    def __init__(self, base: str, stable: bool, max_norm: float | None) -> None:
        self.base, self.stable, self.max_norm = base, stable, max_norm
        self.w: Lists = {}
        self.state: dict[int, State] = {}
        self.groups: list[tuple[dict[str, Any], list[int]]] = []
        self.norm_error = 0.0

    def options(self, i: int) -> dict[str, Any]:
        return next(o for o, members in self.groups if i in members)

    def rounded(self) -> "Truth":
        """The same in fp32: what plain torch would make of the next step. Its norms err by what the rule allows a sum of so many terms,
        half of it for the root: by luck they would err by less, and every element of a small model with them."""
        out = copy.copy(self)
        out.norm_error = sum(w.numel() for w in self.w.values()) ** 0.5 * torch.finfo(torch.float32).eps
        out.w = {i: w.float() for i, w in self.w.items()}
        out.state = {i: {k: x.float() if isinstance(x, Tensor) else x for k, x in s.items()} for i, s in self.state.items()}
        return out

    def perturbed(self, g: Lists) -> Lists:
        scaled = {}
        for i, x in g.items():
            o = self.options(i)
            scaled[i] = (self.w[i].abs() + o["eta"] if o["adaptive"] else torch.ones_like(x)), o["rho"]
        square = sum(((c * g[i]) ** 2).sum() for i, (c, rho) in scaled.items() if rho)
        if not square or not square.isfinite():  # a group with rho = 0 that is not finite skips the step, but does not stop the ascent
            return dict(self.w)
        norm = square**0.5 * (1 + self.norm_error)
        return {**self.w, **{i: self.w[i] + rho * c * c * g[i] / norm for i, (c, rho) in scaled.items() if rho}}

    def step(self, g: Lists, h: Lists) -> None:
        if g and not total(g).isfinite():
            return
        stable = self.stable and bool(g)  # after a first pass without any gradient the second is an ordinary update
        if h and (stable or self.max_norm):
            norm_g, norm_h = total(g) ** 0.5 if g else None, total(h) ** 0.5 * (1 + self.norm_error)
            if not norm_h.isfinite():
                return
            scale = (norm_g / norm_h if norm_h else 0.0) if stable else 1.0
            if self.max_norm:
                scale = scale * min(1.0, self.max_norm / (float(scale * norm_h) + 1e-6))
            h = {i: scale * x for i, x in h.items()}
        self.w, self.state = dict(self.w), dict(self.state)
        for i, u in h.items():
            self.w[i], new = update(self.base, self.options(i), self.w[i], u, self.state.get(i, {}))
            if new:
                self.state[i] = new


def total(x: Lists) -> Tensor:
    return torch.stack([v.square().sum() for v in x.values()]).sum()


class Machine(RuleBasedStateMachine):
    backend: str

    # ---- what there is

    @initialize(base=st.sampled_from([*BASES]), stable=st.booleans(), max_norm=st.sampled_from([None, 0.5]), single=st.booleans())
    def begin(self, base: str, stable: bool, max_norm: float | None, single: bool) -> None:
        self.kind, self.truth = (StableSAM if stable else SAM), Truth(base, stable, max_norm)
        options = BASES[base][1]
        self.constructor = {"rho": 0.1, "max_norm": max_norm, "backend": self.backend, **options}
        self.generator = torch.Generator().manual_seed(0)
        self.params: dict[int, torch.nn.Parameter] = {}
        for i, shape in enumerate(SHAPES):
            self.new_param(i, shape)
        self.cast([0, 2] if single else [], torch.float32)
        members = [[0, 1], [2, 3], [4]]
        extra: list[dict[str, Any]] = [{}, {"rho": 0.3, "adaptive": True, "eta": 0.1}, {"rho": 0.0}]
        self.opt = self.build([{"params": [self.params[i] for i in ids], **e} for ids, e in zip(members, extra, strict=True)])
        self.defaults = {"adaptive": False, "weight_decay": 0.0, "eta": 0.0, "nesterov": False, "eps": 1e-8}
        self.defaults |= {"betas": (0.9, 0.99 if base == "lion" else 0.999)} | {
            k: v for k, v in self.constructor.items() if k not in ("max_norm", "backend")
        }
        self.truth.groups = [({**self.defaults, **e}, ids) for ids, e in zip(members, extra, strict=True)]

    def build(self, groups: list[dict[str, Any]]) -> SAM:
        return self.kind(groups, BASES[self.truth.base][0], **self.constructor)

    def new_param(self, i: int, shape: tuple[int, ...]) -> None:
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.params[i], self.truth.w[i] = torch.nn.Parameter(value.clone()), value

    def numbers(self) -> list[int]:
        return [i for _, members in self.truth.groups for i in members]

    def pick(self, k: int) -> int | None:
        numbers = self.numbers()
        return numbers[k % len(numbers)] if numbers else None

    def gradients(self, missing: int, fill: float | None = None, inplace: bool = False) -> Lists:
        """New gradients for all that are neither frozen nor in the bit mask ``missing``; ``fill`` goes into one element of one of them,
        or is all there is where it is 0. What the parameters hold comes back in fp64."""
        given: Lists = {}
        for i, p in self.params.items():
            held, p.grad = p.grad, None
            if missing >> i & 1 or not p.requires_grad or i not in self.numbers():
                continue
            x = torch.randn(p.shape, generator=self.generator, dtype=torch.float64).to(p.dtype)
            x = x * fill if fill == 0 else x
            if inplace and held is not None and held.shape == p.shape and held.dtype == p.dtype:
                x = held.copy_(x)
            p.grad = x
            given[i] = x.double().clone()
        if fill and (full := [i for i in given if given[i].numel()]):
            self.params[full[-1]].grad.view(-1)[0] = fill
            given[full[-1]].view(-1)[0] = fill
        return given

    # ---- comparisons

    def single(self) -> bool:
        return any(p.dtype == torch.float32 for p in self.params.values())

    def compare(self, what: str, got: Lists, truth: Lists, plain: Lists) -> None:
        assert got.keys() == truth.keys(), what
        if not any(x.numel() for x in truth.values()):
            return
        a, b, c = ([x[i] for i in sorted(truth)] for x in (got, truth, plain))
        if not self.single():
            assert_loop(what, a, b)
        for dtype in (torch.float32, torch.float64) if self.single() else ():  # norms over both are fp32
            chosen = [k for k, i in enumerate(sorted(truth)) if self.params[i].dtype == dtype]
            assert_elementwise(what, *([x[k] for k in chosen] for x in (a, c, b)), torch.float32)

    def check_weights(self, what: str, truth: Lists, plain: Lists) -> None:
        self.compare(what, {i: p.detach().double() for i, p in self.params.items() if i in truth}, truth, plain)

    def check_state(self, plain: Truth) -> None:
        saved = self.opt.state_dict()
        order = [i for group in saved["param_groups"] for i in group["params"]]
        held = dict(zip(order, self.numbers(), strict=True))
        got = {held[k]: entry for k, entry in saved["state"].items()}
        assert {i: set(s) for i, s in got.items()} == {i: set(s) for i, s in self.truth.state.items()}, "keys of the state"
        for i, entry in got.items():
            assert entry.get("step", 0) == self.truth.state[i].get("step", 0), f"count of updates of {i}"
        for key in KEYS[self.truth.base] - {"step"}:
            of = lambda s, key=key: {i: entry[key].double() for i, entry in s.items() if key in entry}  # noqa: E731
            self.compare(key, of(got), of(self.truth.state), of(plain.state))
        if self.single():  # go on from what rounding has made of it
            for i, entry in got.items():
                for key in entry.keys() - {"step"}:
                    self.truth.state[i] = {**self.truth.state[i], key: entry[key].detach().double().clone()}

    # ---- steps

    def run(self, g_missing: int, h_missing: int, g_fill: float | None, h_fill: float | None, habit: str, look: bool) -> None:
        places = {i: (id(p), p.data_ptr()) for i, p in self.params.items()}
        given: list[Lists] = []
        clean = {i: p.detach().clone() for i, p in self.params.items()}
        plain = self.truth.rounded()

        def backward() -> Tensor:
            missing, fill = ((g_missing, g_fill), (h_missing, h_fill))[len(given)]
            given.append(self.gradients(missing, fill, inplace=habit == "inplace"))
            return torch.tensor(float(len(given)))

        if habit == "closure":
            assert self.opt.step(backward).item() == 1.0, "the loss at the clean weights"
        else:
            backward()
            self.opt.first_step(zero_grad=habit == "two_phase")
            self.check_weights("perturbed", self.truth.perturbed(given[0]), plain.perturbed({i: x.float() for i, x in given[0].items()}))
            backward()
            (self.opt.step if habit == "step" else self.opt.second_step)()
        g, h = given
        self.truth.step(g, h)
        plain.step(*({i: x.float() for i, x in xs.items()} for xs in (g, h)))
        self.check_weights("stepped", self.truth.w, plain.w)
        assert places == {i: (id(p), p.data_ptr()) for i, p in self.params.items()}, "storage moved"
        for i, p in self.params.items():
            assert i in h or torch.equal(p, clean[i]), f"{i} had no second gradient and must be restored bit for bit"
        if self.single():
            self.truth.w = {i: p.detach().double().clone() for i, p in self.params.items()}
        if look or self.single():
            self.check_state(plain)

    HABITS = st.sampled_from(["two_phase", "inplace", "step", "closure"])

    @rule(habit=HABITS, look=st.booleans())
    def full_step(self, habit: str, look: bool) -> None:
        self.run(0, 0, None, None, habit, look)

    @rule(g=st.integers(0, 31), h=st.integers(0, 31), habit=HABITS, look=st.booleans())
    def step_with_missing_gradients(self, g: int, h: int, habit: str, look: bool) -> None:
        self.run(g, h, None, None, habit, look)

    @rule(fill=st.sampled_from([float("inf"), float("nan")]), g=st.integers(0, 31), h=st.integers(0, 31), habit=HABITS, look=st.booleans())
    def bad_first_gradient(self, fill: float, g: int, h: int, habit: str, look: bool) -> None:
        self.run(g, h, fill, None, habit, look)

    @precondition(lambda self: self.truth.stable or self.truth.max_norm)  # elsewhere the base writes what it is given
    @rule(fill=st.sampled_from([float("inf"), float("nan")]), g=st.integers(0, 15), habit=HABITS, look=st.booleans())
    def bad_second_gradient(self, fill: float, g: int, habit: str, look: bool) -> None:
        if self.truth.max_norm or any(p.requires_grad and i in self.numbers() and not g >> i & 1 for i, p in self.params.items()):
            self.run(g, 0, None, fill, habit, look)  # without an ascent, Stable's norm is not at hand

    @rule(which=st.sampled_from([(0.0, None), (None, 0.0), (0.0, 0.0)]), habit=HABITS, look=st.booleans())
    def zero_gradients(self, which: tuple[float | None, float | None], habit: str, look: bool) -> None:
        self.run(0, 0, *which, habit, look)

    @rule(missing=st.integers(0, 31), fill=st.sampled_from([None, float("nan")]), how=st.sampled_from(["restore", "context", "error"]))
    def first_step_then_restore(self, missing: int, fill: float | None, how: str) -> None:
        clean, places = ({i: f(p) for i, p in self.params.items()} for f in (lambda p: p.detach().clone(), Tensor.data_ptr))
        g = self.gradients(missing, fill)
        if how == "restore":
            self.opt.first_step()
            if g:
                with pytest.raises(RuntimeError, match="while the parameters are perturbed"):
                    self.opt.state_dict()
            self.opt.restore()
        elif how == "context":
            with self.opt.perturbed():
                pass
        else:
            with pytest.raises(KeyError), self.opt.perturbed():
                raise KeyError
        assert all(torch.equal(p, clean[i]) and p.data_ptr() == places[i] for i, p in self.params.items())
        if self.single():  # the ascent has taken the state over, in fp32
            self.check_state(self.truth.rounded())

    # ---- edits

    @rule(k=st.integers(0, 4), key=st.sampled_from(["lr", "rho", "weight_decay", "momentum", "betas", "adaptive"]), n=st.integers(0, 2))
    def change_option(self, k: int, key: str, n: int) -> None:
        row = k % len(self.truth.groups)
        if key not in self.opt.param_groups[row]:
            return
        values = {"lr": (0.05, 0.01, 0.0), "rho": (0.0, 0.05, 0.5), "weight_decay": (0.0, 0.1, 0.01), "momentum": (0.0, 0.5, 0.9),
                  "betas": ((0.9, 0.999), (0.5, 0.9), (0.7, 0.99)), "adaptive": (False, True, False)}  # fmt: skip
        self.opt.param_groups[row][key] = self.truth.groups[row][0][key] = values[key][n]

    @precondition(lambda self: len(self.params) < 8)
    @rule(extra=st.sampled_from([{}, {"lr": 0.02}, {"rho": 0.0, "weight_decay": 0.0}]), single=st.booleans())
    def add_param_group(self, extra: dict[str, Any], single: bool) -> None:
        i = len(self.params)
        self.new_param(i, (4,))
        if single:
            self.cast([i], torch.float32)
        self.opt.add_param_group({"params": [self.params[i]], **extra})
        self.truth.groups.append(({**self.defaults, **extra}, [i]))

    @rule(k=st.integers(0, 9))
    def freeze_or_unfreeze(self, k: int) -> None:
        if (i := self.pick(k)) is not None:
            self.params[i].requires_grad_(not self.params[i].requires_grad)

    def forget(self, i: int) -> None:
        self.opt.state.pop(self.params[i], None)
        self.truth.state.pop(i, None)

    def take_out(self, i: int) -> None:
        for group, (_, members) in zip(self.opt.param_groups, self.truth.groups, strict=True):
            group["params"] = [p for p in group["params"] if p is not self.params[i]]
            members[:] = [j for j in members if j != i]

    @precondition(lambda self: len(self.numbers()) > 2)
    @rule(k=st.integers(0, 9))
    def remove_a_parameter(self, k: int) -> None:
        i = self.pick(k)
        self.forget(i)
        self.take_out(i)

    @rule(k=st.integers(0, 9), row=st.integers(0, 4))
    def move_a_parameter_to_another_group(self, k: int, row: int) -> None:
        i, row = self.pick(k), row % len(self.truth.groups)
        self.take_out(i)
        self.opt.param_groups[row]["params"].append(self.params[i])
        self.truth.groups[row][1].append(i)

    @rule(k=st.integers(0, 9), shape=st.sampled_from([(2,), (7,), (3, 3), (0,)]))
    def resize(self, k: int, shape: tuple[int, ...]) -> None:
        i = self.pick(k)
        p = self.params[i]
        self.forget(i)
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(p.dtype)
        p.grad = None
        p.data, self.truth.w[i] = value, value.double().clone()

    def cast(self, chosen: list[int], dtype: torch.dtype) -> None:
        for i in chosen:
            p = self.params[i]
            p.grad = None
            p.data = p.data.to(dtype)
            self.truth.w[i] = p.detach().double().clone()

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.float64]), chosen=st.sampled_from([255, 255, 5, 2]))
    def cast_the_model(self, dtype: torch.dtype, chosen: int) -> None:
        self.cast([i for i in self.params if chosen >> i & 1], dtype)
        self.check_state(self.truth.rounded())

    @rule(k=st.integers(0, 9))
    def clear_state(self, k: int) -> None:
        if k % 2:
            self.opt.state.clear()
            self.truth.state.clear()
        else:
            self.forget(self.pick(k))

    @rule(k=st.integers(0, 9), how=st.sampled_from(["double", "float", "in place"]))
    def replace_a_state_buffer(self, k: int, how: str) -> None:
        i = self.pick(k)
        if i not in self.truth.state:
            return
        key = sorted(self.truth.state[i].keys() - {"step"})[k % (len(self.truth.state[i]) - ("step" in self.truth.state[i]))]
        old = self.opt.state[self.params[i]][key]
        value = torch.rand(old.shape, generator=self.generator, dtype=torch.float64).float() + 0.5
        if how == "in place":
            old.copy_(value)
        else:
            self.opt.state[self.params[i]][key] = value.double() if how == "double" else value
        self.truth.state[i] = {**self.truth.state[i], key: value.double().clone()}

    # ---- copies

    @rule(through_file=st.booleans(), plain=st.booleans())
    def checkpoint_into_a_new_optimizer(self, through_file: bool, plain: bool) -> None:
        """Also by way of the plain base optimizer, which must understand what it is given."""
        saved = self.opt.state_dict()
        if through_file:
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        groups = [{"params": list(group["params"])} for group in self.opt.param_groups]
        if plain and not self.single():  # torch would round what we keep
            base = BASES[self.truth.base][0](copy.copy(groups), lr=0.5)
            base.load_state_dict(saved)
            saved = base.state_dict()
        self.opt = self.build(groups)
        self.opt.load_state_dict(saved)
        self.check_state(self.truth.rounded())

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_with_a_copy(self, how: str) -> None:
        both = (self.params, self.opt)
        self.params, self.opt = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
        self.check_state(self.truth.rounded())


def require(backend: str) -> None:
    for op in OPS.values():
        if backend not in op.implementations:
            skip_or_fail(backend, op.missing.get(backend, "not built"))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_any_order_of_actions(backend: str) -> None:
    require(backend)
    machine = type(f"Machine_{backend}", (Machine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200,
            stateful_step_count=20,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize("base", BASES)
def test_the_truth_has_the_keys_and_values_of_the_plain_optimizer(base: str) -> None:
    """Else the machine would compare with itself."""
    cls, options = BASES[base]
    p = torch.randn(6, dtype=torch.float64, requires_grad=True)
    opt, truth = cls([p], **options), Truth(base, False, None)
    truth.w, truth.groups = {0: p.detach().clone()}, [({**opt.defaults, "adaptive": False, "eta": 0.0, "rho": 0.0}, [0])]
    for _ in range(5):
        p.grad = torch.randn(6, dtype=torch.float64)
        truth.step({}, {0: p.grad})
        opt.step()
        assert set(opt.state[p]) == KEYS[base]
        values = [torch.as_tensor(truth.state[0][key]) for key in opt.state[p]]
        assert_loop(base, [p, *map(torch.as_tensor, opt.state[p].values())], [truth.w[0], *values])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_cast_of_an_empty_parameter_alone_is_noticed(backend: str) -> None:
    """It has no address that could change. Unnoticed, it makes its bucket one of two dtypes, and kernels read the wrong one."""
    require(backend)
    empty, single, double = (torch.nn.Parameter(x) for x in (torch.zeros(0), torch.ones(8), torch.ones(3).double()))
    opt = StableSAM([empty, single, double], "sgd", lr=0.125, rho=0.0, backend=backend)
    for step in range(2):
        for phase, fill in ((opt.first_step, 1.0), (opt.second_step, 2.0)):
            for p in (empty, single, double):
                p.grad = torch.full_like(p, fill)
            phase()
        assert (single == 1 - 0.125 * (step + 1)).all() and (double == 1 - 0.125 * (step + 1)).all()
        empty.data = empty.data.double()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_small_beta1_forgets_a_large_first_moment(backend: str) -> None:
    """torch's lerp starts from the nearer end; m + (1 - beta1)(u - m) leaves a rounding of the old m, which may exceed the new one."""
    require(backend)
    runs = {}
    for name, dtype in (("fused", torch.float32), ("plain", torch.float32), ("truth", torch.float64)):
        p = torch.zeros(4, dtype=dtype, requires_grad=True)
        options = {"lr": 0.01, "betas": (0.0, 0.99)}
        opt = SAM([p], "adam", rho=0.0, backend=backend, **options) if name == "fused" else torch.optim.Adam([p], **options)
        for scale in (1e3, 1e-3):
            p.grad = torch.tensor([1.1, 2.3, -3.7, 0.6], dtype=dtype) * scale
            (lambda o: (o.first_step(), o.second_step()) if isinstance(o, SAM) else o.step())(opt)
        runs[name] = [opt.state[p]["exp_avg"]]
    assert_elementwise("exp_avg", runs["fused"], runs["plain"], runs["truth"], torch.float32)
