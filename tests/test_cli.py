"""``python -m sam_kernels info | bench``: what is measured is matched first, what cannot be is refused by name, and counts are right."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sam_kernels.__main__ import main
from sam_kernels.profiling import bench, cases, info, kernels, match, measuring, plans
from sam_kernels.profiling.batch_cases import BATCH_OPS, BatchCase
from sam_kernels.profiling.cases import LIST_OPS, ListCase, StepCase
from sam_kernels.profiling.methods import Method
from sam_kernels.profiling.workloads import WORKLOADS, Workload, elements, llama7b, named, own

ROOT = Path(__file__).parent.parent
QUICK = ["--seconds", "0.01"]
SMALL = Workload("small", ((33, 5), (7,), (), (4, 3, 3, 3)))
SIZES = {  # of each kind of layer: small, and no size equal to another
    "samples": (9,), "draws": (50, 20), "classes": (6, 11), "linear": (3, 5, 7, 4), "conv": (3, 2, 6, 5, 4, 3),
    "embedding": (3, 8, 5, 6), "normalization": (3, 2, 2, 3, 5),
}  # fmt: skip


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """conftest asks for Triton's interpreter, which is not to be timed."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def results(path: Path, *arguments: str) -> dict:
    assert main(["bench", *arguments, *QUICK, "--json", str(path)]) == 0
    return json.loads(path.read_text())


# ---- end to end


def test_info_and_bench_as_a_process(tmp_path: Path) -> None:
    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "sam_kernels", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = output("info")
    assert "ascend_" in told and "cpp" in told and torch.__version__ in told
    table = output("bench", "--op", "ascend_", "--workload", "resnet18", "--backend", "reference", *QUICK)
    assert "resnet18" in table and "GB/s" in table and "resnet18: matched on" in table


def test_bench_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = results(
        tmp_path / "out" / "a.json", "--op", "ascend_", "--workload", "resnet18", "--backend", "reference,cpp", "--device", "cpu"
    )
    (result,) = found["results"]
    assert result["parameters"] == 11_689_512 and result["tensors"] == 62 and result["bytes"] == 20 * result["parameters"]
    assert (
        result["matched"] == elements(cases.part(WORKLOADS["resnet18"])) > 0.9 * cases.MATCHED
        and not found["interrupted"]
        and found["where"]["torch"] == torch.__version__
    )
    copy = result["copy_gb_per_s"]["median"]
    for p in result["backends"].values():
        assert p["gb_per_s"]["median"] == pytest.approx(result["bytes"] / (p["ms"]["median"] * 1e6), rel=0.5)
        assert p["share_of_copy"]["median"] == pytest.approx(p["gb_per_s"]["median"] / copy, rel=0.9)
    assert result["backends"]["reference"]["over_first"]["median"] == 1.0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:4]] and "cpp" in lines[3] and "ascend_" in lines[2]


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plots" / "a.png"
    results(tmp_path / "a.json", "--op", "ascend_,draw:top_k", "--shapes", "64x3,7", "--backend", "reference", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_steps_and_dtypes(tmp_path: Path) -> None:
    found = results(tmp_path / "a.json", "--step", "sam,stable_sam", "--base", "sgd,lion", "--dtype", "fp32,bf16", "--shapes", "64x3,7")
    assert [(r["what"], r["dtype"]) for r in found["results"]] == [
        (f"step {step} {base}", dtype) for dtype in ("fp32", "bf16") for step in ("sam", "stable_sam") for base in ("sgd", "lion")
    ]
    assert [r["bytes"] // r["parameters"] for r in found["results"]] == [40, 40, 44, 44, 24, 24, 26, 26]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    calls, original = [], LIST_OPS["ascend_:adaptive"].call

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 12:  # 3 for the match, then rounds
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setitem(LIST_OPS, "ascend_:adaptive", replace(LIST_OPS["ascend_:adaptive"], call=interrupted))
    monkeypatch.setattr(measuring, "in_a_row", lambda phases, device: 1)
    path = tmp_path / "a.json"
    ops = "ascend_,ascend_:adaptive,inner_products:gh"
    assert main(["bench", "--op", ops, "--shapes", "9x4", "--backend", "reference", "--json", str(path), *QUICK]) == 130
    found = json.loads(path.read_text())
    assert found["interrupted"] and [r["what"] for r in found["results"]] == ["ascend_", "ascend_:adaptive"]
    assert 1 <= found["results"][1]["rounds"] < found["results"][0]["rounds"]
    assert "interrupted" in capsys.readouterr().out


# ---- registers and occupancy

DUMP = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4samk1_13ascend_kernelINS_7Float16ELb0EEEvNS_6LaunchINS_10AscendArgsEEE:
  REG:80 STACK:16 SHARED:1089 LOCAL:0 CONSTANT[2]:16
 Function _ZN4samk21gibbs_weights_kernelIfEEvNS_9GibbsArgsE:
  REG:32 STACK:0 SHARED:0 LOCAL:0
"""


def test_resource_usage_is_read() -> None:
    ascend, gibbs = kernels.parse(DUMP)
    assert ascend == kernels.Usage("ascend", "fp16", "90", 80, 65, 16) and gibbs.kernel == "gibbs_weights" and gibbs.dtype == "fp32"
    assert (ascend.blocks, ascend.occupancy) == (3, 0.375) and (gibbs.blocks, gibbs.occupancy) == (2, 1.0)


@pytest.mark.parametrize(("registers", "shared", "threads", "arch", "blocks"), [
    (32, 0, 256, "80", 8), (33, 0, 256, "80", 6), (64, 0, 256, "90", 4), (65, 0, 256, "90", 3), (255, 0, 256, "100", 1),
    (16, 0, 32, "80", 32), (16, 99 << 10, 256, "80", 1), (16, 0, 1024, "86", 1), (128, 0, 1024, "90", 0),
])  # fmt: skip
def test_blocks_per_multiprocessor(registers: int, shared: int, threads: int, arch: str, blocks: int) -> None:
    """By hand; 0: such a block does not start."""
    assert kernels.blocks_per_multiprocessor(registers, shared, threads, kernels.ARCHS[arch]) == blocks


def test_threads_are_those_of_the_sources() -> None:
    """kThreads in payload.cuh, and kernels that say otherwise."""
    sources = {path.name: path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir()}
    assert "constexpr int kThreads = 256;" in sources["payload.cuh"]
    bounds = {name: re.findall(r"__launch_bounds__\((\w+)", text) for name, text in sources.items()}
    others = {name.split(".")[0] for name, found in bounds.items() if set(found) - {"kThreads"}}
    assert others == set(kernels.THREADS) and "kGibbsThreads = 1024;" in sources["gibbs_weights.cu"]


def test_info_of_the_built_library(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if not info.LIBRARY.exists() or kernels.cuobjdump() is None:
        pytest.skip("no CUDA library, or no cuobjdump")
    path = tmp_path / "info.json"
    assert main(["info", "--arch", "all", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    seen = {(u["kernel"], u["dtype"], u["arch"]) for u in found["kernels"]}
    assert {("ascend", "fp32", "90"), ("descend_adam", "bf16", "80"), ("gibbs_weights", "fp32", "100")} <= seen
    assert all(u["blocks"] >= 1 and 0 < u["occupancy"] <= 1 for u in found["kernels"])
    assert found["ops"]["ascend_"]["there"]["reference"] and " sm_90 " in capsys.readouterr().out
    assert main(["info", "--arch", "42"]) == 2


# ---- matches


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_everything_matches(backend: str, dtype: str) -> None:
    for what in LIST_OPS:
        assert ListCase(what, SMALL, dtype).match(backend, "cpu") == elements(SMALL.shapes)
    for what, op in BATCH_OPS.items():
        sizes = SIZES[op.layer]
        assert BatchCase(what, "small", sizes, dtype).match(backend, "cpu") == sizes[0]
    for variant in ("sam", "asam", "stable_sam"):
        for base in ("sgd", "adamw", "lion"):
            StepCase(Method(variant, base, dtype), SMALL).match(backend, "cpu")


def wrong(value: object) -> object:
    """Results of which the first floating element is off by a thousandth, integers by one."""
    if isinstance(value, torch.Tensor):
        value = value.clone()
        flat = value.reshape(-1)
        flat[:1] += 1 if not value.is_floating_point() else 1e-2 * flat.abs().max() + 1e-3
        return value
    return type(value)(*map(wrong, value)) if hasattr(value, "_fields") else tuple(map(wrong, value))


@pytest.mark.parametrize("what", BATCH_OPS)
def test_wrong_results_of_batch_ops_are_seen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = BATCH_OPS[what]

    def call(inputs: dict, backend: str) -> object:
        out = op.call(inputs, backend)
        return tuple(wrong(x) if isinstance(x, torch.Tensor) else x for x in out) if backend == "cpp" else out

    monkeypatch.setitem(BATCH_OPS, what, replace(op, call=call))
    with pytest.raises(match.Mismatch, match="small"):
        BatchCase(what, "small", SIZES[op.layer], "fp32").match("cpp", "cpu")


@pytest.mark.parametrize("what", LIST_OPS)
def test_wrong_results_of_list_ops_are_seen_and_not_timed(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    op = LIST_OPS[what]

    def call(**arguments: object) -> object:
        out = op.call(**arguments)
        if arguments["backend"] == "cpp":
            for name in op.writes:
                arguments[name][0].mul_(1.001)
            return out * 1.01 if what.startswith("inner") else out
        return out

    monkeypatch.setitem(LIST_OPS, what, replace(op, call=call))
    path = tmp_path / "a.json"
    assert main(["bench", "--op", what, "--shapes", "33x5,7", "--backend", "reference,cpp", "--json", str(path), *QUICK]) == 1
    (result,) = json.loads(path.read_text())["results"]
    assert "ms" in result["backends"]["reference"] and set(result["backends"]["cpp"]) == {"failed"}
    assert "Mismatch" in capsys.readouterr().err


def test_a_part_is_matched_of_what_is_large() -> None:
    assert cases.part([(2, 3), (4,)]) == [(2, 3), (4,)]
    large = [(1 << 12, 1 << 12), (5,), (1 << 10, 1 << 10)]
    assert cases.part(large) == [(5,), (1 << 10, 1 << 10)]
    assert cases.part(large[:1]) == [(1 << 10, 1 << 12)] and cases.part([(1 << 40,)]) == [(cases.MATCHED,)]


# ---- workloads


def conv_bn(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs))


def resnet152() -> nn.Module:
    layers, inputs = [conv_bn(3, 64, 7)], 64
    for width, count in ((64, 3), (128, 8), (256, 36), (512, 3)):
        for block in range(count):
            layers += [conv_bn(inputs, width, 1), conv_bn(width, width, 3), conv_bn(width, 4 * width, 1)]
            layers += [conv_bn(inputs, 4 * width, 1)] if block == 0 else []
            inputs = 4 * width
    return nn.Sequential(*layers, nn.Linear(inputs, 1000))


def wrn28_10() -> nn.Module:
    layers, inputs = [nn.Conv2d(3, 16, 3, bias=False)], 16
    for width in (160, 320, 640):
        for _ in range(4):
            layers += [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, bias=False)]
            layers += [nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, bias=False)]
            layers += [nn.Conv2d(inputs, width, 1, bias=False)] if inputs != width else []
            inputs = width
    return nn.Sequential(*layers, nn.BatchNorm2d(640), nn.Linear(640, 10))


def transformer(width: int, depth: int) -> list[nn.Module]:
    return [
        nn.TransformerEncoderLayer(width, 1, 4 * width, norm_first=True) for _ in range(depth)
    ] + [nn.LayerNorm(width)]  # fmt: skip


def vit(width: int, depth: int) -> nn.Module:
    holder = nn.Sequential(nn.Conv2d(3, width, 16, 16), *transformer(width, depth), nn.Linear(width, 1000))
    holder.tokens, holder.positions = nn.Parameter(torch.empty(1, 1, width)), nn.Parameter(torch.empty(1, 197, width))
    return holder


def gpt2(width: int, depth: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(50257, width), nn.Embedding(1024, width), *transformer(width, depth))


def llama() -> nn.Module:
    def layer() -> nn.Module:
        square = [nn.Linear(4096, 4096, bias=False) for _ in range(4)]
        wide = [nn.Linear(4096, 11008, bias=False), nn.Linear(4096, 11008, bias=False), nn.Linear(11008, 4096, bias=False)]
        return nn.Sequential(*square, *wide, nn.RMSNorm(4096), nn.RMSNorm(4096))

    return nn.Sequential(
        nn.Embedding(32000, 4096), *(layer() for _ in range(32)), nn.RMSNorm(4096), nn.Linear(4096, 32000, bias=False)
    )  # fmt: skip


MODELS = {
    "resnet152": (resnet152, 60_192_808),
    "wrn28_10": (wrn28_10, 36_479_194),
    "vit_s16": (lambda: vit(384, 12), 22_050_664),
    "vit_l16": (lambda: vit(1024, 24), 304_326_632),
    "gpt2_xl": (lambda: gpt2(1600, 48), 1_557_611_200),
    "llama7b": (llama, 6_738_415_616),
}


@pytest.mark.parametrize("name", MODELS)
def test_workloads_are_the_models(name: str) -> None:
    build, published = MODELS[name]
    with torch.device("meta"):
        model = build()
    assert sorted(tuple(p.shape) for p in model.parameters()) == sorted(WORKLOADS[name])
    assert elements(WORKLOADS[name]) == published


def test_llama_takes_as_many_layers_as_fit() -> None:
    whole = named("llama7b", 40, 1 << 62)
    assert whole.shapes == tuple(llama7b(32)) and not whole.note
    some = named("llama7b", 40, 40 * elements(llama7b(5)))
    assert some.shapes == tuple(llama7b(5)) and some.label == "llama7b (5 of 32 layers)"
    assert named("llama7b", 40, 40 * elements(llama7b(5)) - 1).shapes == tuple(llama7b(4))
    assert named("llama7b", 40, 0).shapes == tuple(llama7b(1))


def test_own_shapes(tmp_path: Path) -> None:
    assert own("64x3x7x7,64").shapes == ((64, 3, 7, 7), (64,))
    path = tmp_path / "mine.json"
    path.write_text("[[3, 4], [5]]")
    assert own(str(path)) == Workload("mine", ((3, 4), (5,)))
    path.write_text('{"layer.weight": [3, 4], "layer.bias": [3]}')
    assert own(str(path)).shapes == ((3, 4), (3,))


# ---- what is refused


@pytest.mark.parametrize(("arguments", "message"), [
    (["--op", "ascent_"], "--op is 'ascent_'; expected some of inner_products"),
    (["--op", "draw:stratified"], "--op is 'draw:stratified'; expected"),
    (["--op", "ascend_", "--backend", "c++"], "--backend is 'c++'; expected some of reference, cpp, triton, cuda"),
    (["--op", "ascend_", "--workload", "resnet19"], "--workload is 'resnet19'; expected some of resnet18, resnet50"),
    (["--op", "ascend_", "--dtype", "int8"], "--dtype is 'int8'; expected some of fp32, bf16, fp16, fp64"),
    (["--step", "bsam"], "--step is 'bsam'; expected some of sam, asam, stable_sam"),
    (["--step", "sam", "--base", "adam"], "--base is 'adam'; expected some of sgd, adamw, lion"),
    (["--op", "ascend_", "--device", "tpu"], "--device is 'tpu'; expected cpu or cuda"),
    (["--op", "ascend_", "--shapes", "64xx3"], "--shapes is '64xx3'; expected sizes such as"),
    (["--op", "ascend_", "--shapes", "64x0"], "at least one tensor and no empty ones"),
    (["--op", "ascend_", "--shapes", "nowhere.json"], "--shapes nowhere.json: No such file"),
    (["--op", "draw", "--sizes", "100"], "--sizes is '100'; expected nxk for draw, such as 256x128"),
    (["--op", "conv_grad_norms", "--workload", "gpt2"], "has no layer for conv_grad_norms:direct; expected one of resnet18"),
    (["--op", "ascend_", "--sizes", "100"], "none of the ops is one on batches"),
    (["--op", "ascend_", "--seconds", "0"], "--seconds is 0.0; expected a number > 0"),
    ([], "nothing to measure: pass --op"),
])  # fmt: skip
def test_what_is_refused_says_what_is_expected(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out


def test_a_backend_by_name_that_cannot_run_it(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--op", "draw:top_k", "--device", "cpu", "--backend", "cuda"]) == 2
    assert "backend 'cuda' cannot run draw: has no CUDA C++ kernel" in capsys.readouterr().err


def test_too_large_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(plans, "memory", lambda device: (20 << 30, 30 << 30))
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("something was allocated"))
    arguments = ["bench", "--device", "cpu", "--backend", "reference"]
    assert main([*arguments, "--op", "ascend_", "--workload", "resnet18,gpt2_xl"]) == 2
    told = capsys.readouterr().err
    assert "ascend_, gpt2_xl, fp32 with 1 backends needs 2" in told and "21.5 GB are free" in told
    assert main([*arguments, "--op", "cross_entropy_sample", "--sizes", "1000000x100000"]) == 2
    assert "needs" in capsys.readouterr().err


def test_llama_is_made_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 80 << 30
    monkeypatch.setattr(plans, "memory", lambda device: (free, free))
    seen = []
    monkeypatch.setattr(bench, "measure", lambda case, backends, *_: (seen.append((case, backends)), ({"backends": {}}, True))[1])
    assert main(["bench", "--device", "cpu", "--backend", "reference,cpp", "--step", "sam", "--workload", "llama7b"]) == 130
    ((case, backends),) = seen
    assert 1 < int(case.workload.note.split()[0]) < 32
    assert 0.8 * free < case.needed(len(backends)) + measuring.COPY <= 0.95 * free


def test_the_interpreter_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["bench", "--op", "ascend_", "--backend", "triton", "--shapes", "9"]) == 2
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err
    assert main(["bench", "--op", "ascend_", "--device", "cpu", "--backend", "reference", "--shapes", "9", *QUICK]) == 0


def test_bytes_are_those_of_the_operands() -> None:
    """Of every op on batches: what its inputs and results take, each once, logits and gradients of the same shape included."""
    for what, op in BATCH_OPS.items():
        case = BatchCase(what, "small", SIZES[op.layer], "fp32")
        inputs = case._inputs(case.sizes, torch.float32, "cpu")
        out = op.call(inputs, "reference")
        read = [x for name, x in inputs.items() if isinstance(x, torch.Tensor) and name != "state"]
        written = [x for x in list(out)[: 2 if op.op == "draw" else None] if isinstance(x, torch.Tensor) and x.dim()]
        expected = sum(x.nbytes for x in (*read, *written))
        expected += 3 * 4 * case.sizes[0] if op.op == "cross_entropy_sample" else 0  # the public function keeps log_norm to itself
        assert case.moved == expected, what
    for what, per_parameter in (
        ("ascend_", 20),
        ("descend_:sgd", 20),
        ("descend_:adamw", 28),
        ("descend_:lion", 20),
        ("inner_products", 4),
    ):
        assert (
            ListCase(what, SMALL, "fp32").moved
            == per_parameter * elements(SMALL.shapes)
            == per_parameter * sum(map(math.prod, SMALL.shapes))
        )
