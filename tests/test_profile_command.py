"""``python -m sam_kernels profile``: models of users, what is refused, what is shown and written, and what ends a measurement."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from user_models import call, user_folder  # noqa: F401

from sam_kernels.__main__ import parser as whole_parser
from sam_kernels.profiling import profile_text
from sam_kernels.profiling.models import MODELS
from sam_kernels.profiling.subjects import Wish, subject_of


def test_everything_at_once(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {flag: user / f"{flag}.{end}" for flag, end in (("json", "json"), ("plot", "png"), ("trace", "trace"))}
    options = [word for flag, path in files.items() for word in (f"--{flag}", str(path))]
    assert call("theirs:make", "--method", "sam,rw-exact,m-sam", "--steps", "3", "--option", "rho=0.1", *options) == 0
    said = capsys.readouterr().out
    found = json.loads(files["json"].read_text())
    where, profiles = found["where"], {one["method"]: one for one in found["profiles"]}
    assert found["complete"] and list(profiles) == ["sam", "rw-exact", "m-sam"]
    assert (where["model"], where["batch_size"], where["dtype"], where["parameters"]) == ("theirs:make", 12, "fp32", 67)
    assert where["options"] == {"rho": 0.1}
    for name, one in profiles.items():
        assert one["steps"] == 3 and 0 < one["ms"]["p20"] <= one["ms"]["median"] <= one["ms"]["p80"] and one["launches"] is None
        assert sum(row["share"] for row in one["rows"]) == pytest.approx(1)
        assert one["rows"][-1]["path"] == ["other"]
        (ascend,) = [row for row in one["rows"] if row["path"] == ["ascend"]]
        assert ascend["calls"] == (4 if name == "m-sam" else 1)
        block = said.split(f"\n{name}, 3 steps", 1)[1].split("\n\n")[0]
        assert [line.split("  ")[0] for line in block.splitlines() if line.startswith("ascend")] == ["ascend"]
        assert "100.0%" in block.splitlines()[-1]
    heads = [said.split(f"\n{name}, 3 steps", 1)[1].split("\n", 1)[0] for name in profiles]
    assert [head.endswith(" x sam") for head in heads] == [False, True, True] and "batch 12, fp32, sgd" in said
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    labels = {event["name"] for event in json.loads(files["trace"].read_text())["traceEvents"] if event.get("cat") == "user_annotation"}
    assert {"sam", "m-sam", "ascend", "first pass", "weighted gradients", "average"} <= labels


@pytest.mark.parametrize(("function", "words", "expected"), [
    ("make", [], (12, "fp32")), ("make", ["--batch-size", "5", "--dtype", "fp64"], (5, "fp64")),
    ("sized", [], (6, "fp32")), ("sized", ["--batch-size", "40"], (40, "fp32")), ("of_losses", [], (12, "fp32")),
    ("of_losses", ["--dtype", "fp64"], (12, "fp64")), ("of_pairs", ["--method", "sam,rw-logits,esam,ausam"], (12, "fp32")),
])  # fmt: skip
def test_functions_of_users(user: Path, function: str, words: list[str], expected: tuple[int, str]) -> None:
    path = user / "out.json"
    assert call(f"theirs:{function}", *words, "--steps", "1", "--base", "adamw", "--json", str(path)) == 0
    where = json.loads(path.read_text())["where"]
    assert (where["batch_size"], where["dtype"]) == expected


REFUSED = [
    (["resnet"], "MODEL is 'resnet'; expected one of mlp, vit, cnn, resnet18_cifar, wrn28_10, vit_s16, vit_b16, gpt2, or module:function"),
    (["nowhere:make"], "there is no module 'nowhere'"),
    (["theirs:made"], "theirs has no 'made'. Its functions: net, batch, make"),
    (["theirs:constant"], "which is int"),
    (["theirs:pair"], "a tuple of 2; expected (model, x, y) or (model, losses, batch_size)"),
    (["theirs:nothing"], "returned NoneType; expected (model, x, y)"),
    (["theirs:function_first"], "returned function first"),
    (["theirs:list_second"], "returned list second"),
    (["theirs:soft"], "returned (12, 3) torch.float32 third; expected y int64 [B]"),
    (["theirs:uneven"], "expected the same number of samples"),
    (["theirs:frozen"], "without trainable parameters"),
    (["theirs:needy"], "needs an argument 'seed'"),
    (["theirs:size_of_tensor"], "batch_size tensor(12); expected the number of samples"),
    (["theirs:reduced"], "theirs:reduced: losses() returned shape (); expected [12]"),
    (["theirs:make", "--batch-size", "13"], "returned 12 samples with --batch-size 13"),
    (["theirs:make", "--batch-size", "0"], "--batch-size is 0"),
    (["theirs:stubborn", "--batch-size", "5"], "returned 12 samples with --batch-size 5"),
    (["theirs:of_losses", "--batch-size", "5"], "give it a parameter batch_size"),
    (["theirs:of_pairs", "--dtype", "fp64"], "give it a parameter dtype"),
    (["theirs:of_losses", "--autocast"], "theirs:of_losses returned a function with --autocast: enter torch.autocast in it"),
    (["theirs:of_losses", "--method", "rw-logits"], "return ops.cross_entropy_sample"),
    (["theirs:make", "--method", "sam,sgd"], "--method is 'sam,sgd'; expected one or several of sam, asam"),
    (["theirs:make", "--method", ","], "--method is ','"),
    (["theirs:make", "--steps", "0"], "--steps is 0"),
    (["theirs:make", "--warmup", "-1"], "--warmup is -1"),
    (["theirs:make", "--option", "rho"], "--option is 'rho'; expected NAME=VALUE"),
    (["theirs:make", "--option", "rho=-1"], "sam on theirs:make: rho is -1"),
    (["theirs:make", "--option", "shards=3"], "shards"),
    (["theirs:make", "--method", "m-sam", "--batch-size", "2"], "shards is 4 for batch_size 2"),
    (["theirs:make", "--backend", "fast"], "backend is 'fast'"),
    (["theirs:make", "--json", "theirs.py/where.json"], "--json is 'theirs.py/where.json', below a file"),
    ([":make"], "MODEL is ':make'; expected module:function with the name that `import` takes"),
    ([".theirs:make"], "MODEL is '.theirs:make'; expected module:function"),
    (["./theirs:make"], "MODEL is './theirs:make'; expected module:function"),
    (["theirs:constant.y"], "theirs has no 'constant.y'. Its functions: none"),
    (["builtins:dict"], "MODEL is 'builtins:dict', whose arguments Python does not tell"),
    (["sys:exit"], "sys:exit ended with SystemExit(None); expected (model, x, y)"),
    (["theirs:make", "--option", "backend='reference'"], "--option is \"backend='reference'\"; pass --backend instead"),
    (["theirs:make", "--option", "model=3"], "--option is 'model=3'; pass MODEL instead"),
    (["theirs:make", "--option", "esam.beta=1"], "--option names 'esam.beta', but --method is 'sam'"),
    (["theirs:make", "--option", "sam.backend=1"], "pass --backend instead"),
    (["theirs:make", "--option", "lr=abc"], "with lr='abc', which is text"),
]
if not torch.cuda.is_available():
    REFUSED += [
        (["mlp", "--device", "cuda"], "no CUDA device"),
        (["mlp", "--nvtx"], "--nvtx needs"),
        (["mlp", "--backend", "cuda"], "cuda"),
    ]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_is_refused(user: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*words) == 2
    said = capsys.readouterr()
    assert message in said.err and not said.out


def test_what_a_module_lacks_itself_is_not_called_missing(user: Path) -> None:
    (user / "broken_module.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        subject_of("broken_module:make", Wish())


def test_the_interpreter_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert call("mlp", "--backend", "triton") == 2
    assert "the interpreter is not to be timed" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls of losses(): one to try it, four to match a step, two for every step, of which one is the warm-up."""
    path, plot = user / "out.json", user / "out.png"
    assert call("theirs:interrupted", "--steps", "50", "--json", str(path), "--plot", str(plot)) == 130
    found = json.loads(path.read_text())
    assert not found["complete"] and found["profiles"][0]["steps"] == 2
    assert "interrupted: what was measured" in capsys.readouterr().out and plot.stat().st_size
    sys.modules["theirs"].calls = 7
    assert call("theirs:interrupted", "--steps", "50") == 130
    said = capsys.readouterr()
    assert "before a step was measured" in said.err and not said.out


def test_the_ncu_command(user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(user))
    words = ["theirs:make", "--method", "m-sam", "--steps", "1", "--option", "shards=3", "--batch-size", "9", "--autocast"]
    given = whole_parser().parse_args(["profile", *words, "--device", "cuda"])
    assert not profile_text.advice(given, "m-sam")
    tool = user / "ncu"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert call(*words) == 0 and "ncu" not in capsys.readouterr().out, "on a CPU there is nothing that it could see"
    command = shlex.split(profile_text.advice(given, "m-sam").splitlines()[-1])
    assert not profile_text.advice(whole_parser().parse_args(["profile", *words, "--device", "cuda", "--nvtx"]), "m-sam")
    assert command[:2] == ["ncu", "--nvtx"] and "ascend/" in command
    again = whole_parser().parse_args(command[command.index("profile") :])
    assert (again.model, again.method, again.batch_size, again.option) == ("theirs:make", "m-sam", 9, ["shards=3"])
    assert again.device == "cuda" and again.nvtx and again.autocast and again.steps == 1


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    subject = subject_of(name, Wish(batch_size=2))
    assert subject.losses().shape == (2,) and subject.losses(torch.tensor([1])).shape == (1,)
    losses, norms = subject.with_norms()
    assert losses.shape == norms.shape == (2,)
