"""What a command was asked to write: refused before anything is measured where it cannot be, whole or not at all, whoever stops reading."""

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from sam_kernels.__main__ import main
from sam_kernels.profiling import bench, info, outputs, plans, report
from sam_kernels.profiling.outputs import Outputs
from sam_kernels.profiling.tables import number

ROOT = Path(__file__).parent.parent
QUICK = ["--op", "ascend_", "--shapes", "9x4", "--backend", "reference", "--device", "cpu", "--seconds", "0.01"]
COMMANDS = {"info": ["info"], "bench": ["bench", *QUICK], "profile": ["profile", "mlp", "--device", "cpu", "--steps", "1", "--warmup", "0"]}


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> None:
        pytest.fail("something was measured")

    monkeypatch.setattr(bench, "measure", measured)
    monkeypatch.setattr("sam_kernels.profiling.profile.subject_of", measured)
    monkeypatch.setattr(info, "backends_table", measured)


# ---- before


def unwritable(folder: Path) -> dict[str, tuple[str, str]]:
    """Name -> path, and what is said of it."""
    (folder / "file").write_text("")
    found = {
        "folder": (str(folder), "which is a folder; expected the name of a file"),
        "empty": ("", "which is a folder; expected the name of a file"),
        "below a file": (str(folder / "file" / "x.json"), "below a file; expected a folder"),
        "a folder of the system": ("/proc/x.json", "which cannot be written: "),
        "no such": ("/proc/nowhere/x.json", "which cannot be written: "),
        "too long": (str(folder / (400 * "x" + ".json")), "which cannot be written: File name too long"),
    }
    if os.getuid():
        (folder / "closed").mkdir(mode=0o500)
        (folder / "kept.json").write_text("")
        (folder / "kept.json").chmod(0o400)
        found["closed"] = (str(folder / "closed" / "x.json"), "which cannot be written: Permission denied")
        found["kept"] = (str(folder / "kept.json"), "it may not be written")
    return found


@pytest.mark.parametrize(("command", "flag"), [("info", "json"), ("bench", "json"), ("profile", "json"), ("profile", "trace")])
def test_what_cannot_be_written_is_refused(
    command: str, flag: str, tmp_path: Path, nothing_measured: None, capsys: pytest.CaptureFixture
) -> None:
    for path, message in unwritable(tmp_path).values():
        assert main([*COMMANDS[command], f"--{flag}", path]) == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"sam-kernels {command}: --{flag} is ") and message in told.err and not told.out, path
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("command", ["bench", "profile"])
@pytest.mark.parametrize("name", ["bar", "bar.xyz", "bar.json"])
def test_figures_of_no_known_type_are_refused(
    name: str, command: str, tmp_path: Path, nothing_measured: None, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    assert main([*COMMANDS[command], "--plot", str(tmp_path / name)]) == 2
    assert "expected a name that ends in " in capsys.readouterr().err and not list(tmp_path.iterdir())


# ---- while they are written


def test_files_are_replaced_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kept, link = tmp_path / "kept.json", tmp_path / "link.json"
    kept.write_text("[1]")
    link.symlink_to(kept)
    os.link(kept, tmp_path / "other.json")
    given = Outputs(json=link, trace=None)

    def fails(path: Path) -> None:
        path.write_text("[")
        raise OSError(28, "No space left on device")

    given.write("json", fails)
    given.write("json", fails)
    given.write("json", lambda path: None)
    given.write("trace", lambda path: pytest.fail("nobody asked for it"))
    assert kept.read_text() == "[1]" and [x.name for x in sorted(tmp_path.iterdir())] == ["kept.json", "link.json", "other.json"]
    assert given.failed == [
        f"--json {link}: not written: No space left on device", f"--json {link}: not written: whoever should have written it did not",
    ]  # fmt: skip
    given.json({"a": 1})
    assert link.is_symlink() and json.loads(kept.read_text()) == {"a": 1}
    assert (tmp_path / "other.json").read_text() == "[1]", "replaced, and not written over"
    given.end("text")
    told = capsys.readouterr()
    assert told.out == "text\n" and told.err.splitlines() == given.failed


def test_what_is_no_plain_file_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    Outputs(json=pipe).json([1])
    assert json.loads(reader.communicate(timeout=20)[0]) == [1] and pipe.is_fifo()


def test_a_file_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "_write", full)
    for command, words in COMMANDS.items():
        assert main([*words, "--json", str(tmp_path / "a.json")]) == 1
        told = capsys.readouterr()
        assert "not written: No space left on device" in told.err and told.out, command


# ---- standard output


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_has_to_read_it(command: str, tmp_path: Path) -> None:
    """The files are there; no traceback, in a pipe and on a full device."""
    words = [sys.executable, "-m", "sam_kernels", *COMMANDS[command], "--json", str(tmp_path / "a.json")]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe, writer = os.pipe()
    os.close(pipe)
    with open("/dev/full", "w") as full:
        for out, status, message in ((full, 1, b"standard output: No space left on device"), (writer, 141, b"")):
            (tmp_path / "a.json").unlink(missing_ok=True)
            done = subprocess.run(words, cwd=ROOT, env=buffered, stdout=out, stderr=subprocess.PIPE, check=False)
            assert done.returncode == status and message in done.stderr and b"Traceback" not in done.stderr, done.stderr
            assert json.loads((tmp_path / "a.json").read_text())
    os.close(writer)


def test_without_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with report.progress(3) as tick:
        tick("a")


def test_one_long_measurement_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    with report.progress(1) as tick:
        tick("ascend_, gpt2")
    assert "ascend_, gpt2" in terminal.getvalue()


# ---- Ctrl-C


@pytest.mark.parametrize(("command", "place"), [
    ("bench", (plans, "named")), ("bench", (report, "number")), ("info", (info, "build_info")), ("info", (outputs, "print")),
    ("profile", (outputs, "print")),
])  # fmt: skip
def test_ctrl_c_anywhere(command: str, place: tuple[object, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*place, interrupted, raising=False)
    words = [*COMMANDS[command], *(["--workload", "resnet18"] if place[0] is plans else [])]
    assert main(words) == 130
    told = capsys.readouterr()
    assert told.err.endswith(f"sam-kernels {command}: interrupted\n") and not told.out


# ---- numbers


def test_numbers_that_are_none() -> None:
    assert [number(x) for x in (float("inf"), float("-inf"), float("nan"), 0.0, 1234.5)] == ["inf", "-inf", "nan", "0", "1234"]
