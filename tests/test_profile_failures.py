"""``profile`` where something fails: a step that does not match, a method that ends early, an update that is none, a blind profiler."""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from user_models import call, user_folder  # noqa: F401

from sam_kernels.__main__ import parser
from sam_kernels.optim import SAM
from sam_kernels.profiling import profile, stepping
from sam_kernels.profiling.launches import launches_of
from sam_kernels.profiling.match import Mismatch
from sam_kernels.profiling.recorder import Recorder
from sam_kernels.profiling.step_match import Matcher
from sam_kernels.profiling.subjects import Subject, Wish, subject_of
from sam_kernels.profiling.training import METHODS, Preset
from sam_kernels.profiling.training import Step as Training
from sam_kernels.spans import span

# ---- matched before it is timed


def wrong_radius(given: dict) -> dict:
    return {**given, "rho": 1.02 * given.get("rho", 0.05)}


def wrong_rate(given: dict) -> dict:
    return {**given, "lr": 1.02 * given.get("lr", 1e-3)}


class Broken(Training):
    """Off by 2 % on every backend but the reference."""

    how = staticmethod(wrong_radius)

    def __init__(self, subject: object, preset: Preset, base: str = "sgd", **changed: object) -> None:
        if changed["backend"] != "reference":
            preset = Preset(preset.name, self.how(preset.options))
        super().__init__(subject, preset, base, **changed)  # type: ignore[arg-type]


class BrokenRate(Broken):
    how = staticmethod(wrong_rate)


@pytest.mark.parametrize(("kind", "label"), [(Broken, "perturbation"), (BrokenRate, "change of the weights")])
@pytest.mark.parametrize("method", ["sam", "rw-exact", "m-sam"])
def test_a_wrong_step_is_not_timed(
    method: str, kind: type[Broken], label: str, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "Step", kind)
    monkeypatch.setattr(profile, "in_turns", lambda *_: pytest.fail("it was timed"))
    assert call("theirs:make", "--method", method) == 2
    assert f"{method} on theirs:make: the {label} errs by" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_match_leaves_the_model_as_it_was(method: str, base: str, user: Path) -> None:
    subject = subject_of("theirs:of_pairs", Wish())
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    built: list[str | None] = []

    def build(backend: str | None) -> Training:
        built.append(backend)
        return Training(subject, METHODS[method], base, backend=backend)

    assert Matcher("it", subject.model, build).check() and built == [None, "reference"]
    assert all(torch.equal(value, before[key]) for key, value in subject.model.state_dict().items())
    assert all(p.grad is None for p in subject.model.parameters())


def test_a_rounding_that_decides_about_a_gradient_is_no_mismatch_but_a_wrong_step_is_one_everywhere(user: Path) -> None:
    """A gradient of -1 or 1 at weights of exactly 0.5, which a backend may see a rounding off, and of 1 at all nearby."""

    class Kink(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.full((4,), 0.5))

    def factor(backend: str | None, w: torch.Tensor) -> float:
        return -1.0 if backend is None and bool((w == 0.5).all()) else 1.0

    for kind, wanted in ((Training, True), (BrokenRate, False)):
        model = Kink()

        def build(backend: str | None, kind: type = kind, model: Kink = model) -> Training:
            def losses(index: torch.Tensor | None = None) -> torch.Tensor:
                return factor(backend, model.w.detach()) * model.w.sum() * torch.ones(4 if index is None else len(index))

            return kind(Subject("it", model, 4, losses, None), METHODS["sam"], "sgd", backend=backend)

        matcher = Matcher("it", model, build)
        if wanted:
            assert matcher.check()
        else:
            with pytest.raises(Mismatch):
                matcher.check()
        assert (model.w == 0.5).all()


def test_losses_that_do_not_repeat_are_timed_and_it_is_said(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("theirs:random_losses", "--steps", "1") == 0
    told = capsys.readouterr()
    assert "not matched with the reference, which does not repeat its own step" in told.err and "sam, 1 step" in told.out


# ---- what ends a method


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("explodes", "LookupError: the sample is gone"),
        ("diverges", "FloatingPointError: its loss"),
        ("overflows", "FloatingPointError: its loss is inf"),
    ],
)
def test_a_method_that_fails_leaves_its_steps_and_the_others(
    function: str, why: str, user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After one try, a match of four calls, the warm-up and five steps."""
    path = user / "out.json"
    assert call(f"theirs:{function}", "--method", "sam,rw-exact", "--steps", "9", "--json", str(path)) == 1
    found, told = json.loads(path.read_text()), capsys.readouterr()
    assert {one["method"]: one["steps"] for one in found["profiles"]} == {"sam": 5, "rw-exact": 9} and found["complete"]
    assert found["failed"]["sam"].startswith(why) and "sam, 5 steps" in told.out
    assert f"sam on theirs:{function} ended after 5 measured steps: {why}" in told.err
    assert ("deep_inside" in told.err) == (function == "explodes"), "the traceback of the user's code, and none of ours"


@pytest.mark.parametrize("calls", [1, 5])
def test_a_step_that_updates_nothing_is_none(
    calls: int, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss may be fine where the norm of the gradient is not: at the match, or when the second step is measured."""
    seen: list[int] = []
    monkeypatch.setattr(SAM, "step_taken", lambda self: (seen.append(1), torch.tensor(len(seen) < calls))[1])
    assert call("theirs:make", "--steps", "3", "--json", str(user / "out.json")) == (2 if calls == 1 else 1)
    told = capsys.readouterr()
    assert "sam on theirs:make" in told.err and "or its gradient is not finite: such a step updates nothing" in told.err
    assert (user / "out.json").exists() == (calls > 1) and ("sam, 1 step" in told.out) == (calls > 1)


def test_errors_of_the_user_s_code_keep_their_traceback(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("theirs:shapes") == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "x[:, :3]" in told and "sam-kernels profile: theirs:shapes: mat1 and mat2" in told
    assert call("theirs:make", "--option", "rho=-1") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["trace", "launches_of"])
def test_ctrl_c_behind_the_steps_keeps_them(
    what: str, user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile, what, interrupted)
    path = user / "out.json"
    if what == "launches_of":
        monkeypatch.setattr(profile, "_profiles", lambda steps, found, given: (found.then("launches", interrupted), made(found))[1])
    made = lambda found: [profile.profile_of(method, steps, False) for method, steps in found.steps.items()]  # noqa: E731
    assert call("theirs:make", "--steps", "2", "--trace", str(user / "a.trace"), "--json", str(path)) == 130
    assert "sam, 2 steps" in capsys.readouterr().out and json.loads(path.read_text())["profiles"][0]["steps"] == 2
    assert not (user / "a.trace").exists()


def test_a_trace_that_fails_leaves_the_rest(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> None:
        raise LookupError("the profiler is gone")

    monkeypatch.setattr(profile, "trace", fails)
    assert call("theirs:make", "--steps", "2", "--trace", str(user / "a.trace"), "--json", str(user / "out.json")) == 1
    told = capsys.readouterr()
    assert "sam-kernels profile: --trace: LookupError: the profiler is gone" in told.err and "sam, 2 steps" in told.out
    assert [x.name for x in user.iterdir() if x.suffix in (".trace", ".json")] == ["out.json"]


def test_ctrl_c_before_the_first_turn(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Bar:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(stepping, "progress", lambda count: Bar())
    assert call("theirs:make") == 130
    assert "interrupted before a step was measured" in capsys.readouterr().err


def test_a_span_that_is_left_open_is_named() -> None:
    found = Recorder("cpu")
    with pytest.raises(RuntimeError, match="span 'a' was entered in this step and not left"), found.step():
        span("a").__enter__()


# ---- options


def test_an_option_takes_the_place_of_the_preset_s_own(user: Path) -> None:
    assert METHODS["m-sam"].but({"shard_size": 2}).options == {"shard_size": 2}
    assert METHODS["m-sam"].but({"shards": 2, "rho": 1}).options == {"shards": 2, "rho": 1}
    assert call("theirs:make", "--method", "m-sam", "--steps", "1", "--option", "shard_size=6") == 0


def test_options_of_one_method() -> None:
    options = [word for option in ("m-sam.rho=0.2", "rho=0.1", "m-sam.shards=3") for word in ("--option", option)]
    presets = profile._checked(profile_arguments("mlp", "--device", "cpu", "--method", "sam,m-sam", *options))
    assert {name: preset.options for name, preset in presets.items()} == {"sam": {"rho": 0.1}, "m-sam": {"rho": 0.2, "shards": 3}}


# ---- on a CUDA device


def test_launches_are_not_counted_beside_nsight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "launches_of", lambda step: {("ascend",): 3})
    monkeypatch.setattr(profile, "profile_of", lambda method, steps, cuda, launched: (method, launched))
    found = stepping.Found({"sam": [object()], "esam": [object()]}, {"esam": ValueError()})  # type: ignore[list-item]
    for words, launched in (([], {("ascend",): 3}), (["--nvtx"], None)):
        given = profile_arguments("mlp", "--device", "cuda", *words)
        steps = dict.fromkeys(found.steps, object())
        assert profile._profiles(steps, found, given) == [("sam", launched), ("esam", None)]  # type: ignore[arg-type]


def profile_arguments(*words: str) -> Namespace:
    return parser().parse_args(["profile", *words])


def test_a_trace_without_the_device_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.profiler, "profile", partial(torch.profiler.profile, activities=[torch.profiler.ProfilerActivity.CPU]))
    original = torch.profiler.profile
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: original())
    assert launches_of(lambda: torch.ones(3).sum()) is None
