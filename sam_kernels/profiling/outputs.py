"""What a command gives back: files, known to be writable before anything is measured, each written whole or not at all; and text, last."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import Refused


class Unprinted(Exception):
    """The standard output takes no more: ``closed`` by its reader, who has seen enough, or for a reason."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.closed = isinstance(error, BrokenPipeError)


def say(text: str) -> None:
    """Print at once, so that what goes wrong does so here and not when Python ends."""
    try:
        print(text, flush=True)
    except OSError as error:
        with suppress(OSError, ValueError):  # Python flushes once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unprinted(error) from None


def figure_types() -> Sequence[str]:
    """Suffixes of files that matplotlib writes."""
    if find_spec("matplotlib") is None:
        raise Refused("--plot needs matplotlib, which is not installed: pip install matplotlib")
    base = importlib.import_module("matplotlib.backend_bases").FigureCanvasBase
    return [f".{name}" for name in base.get_supported_filetypes()]


class Outputs:
    """The files that were asked for, by flag; None where one was not. ``failed`` says why one was not written after all.

    Folders are made. A file is replaced once its successor is complete; what is no plain file, such as /dev/stdout, is written into.
    """

    def __init__(self, **paths: Path | None) -> None:
        self.failed: list[str] = []
        self._paths = {name: path for name, path in paths.items() if path is not None}
        for name, path in self._paths.items():
            self._check(f"--{name}", path, figure_types() if name == "plot" else ())

    def _check(self, flag: str, path: Path, suffixes: Sequence[str]) -> None:
        if os.path.isdir(path):  # asked of any text
            raise Refused(f"{flag} is {str(path)!r}, which is a folder; expected the name of a file")
        if suffixes and path.suffix.lower() not in suffixes:
            raise Refused(f"{flag} is {str(path)!r}; expected a name that ends in {', '.join(suffixes)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not os.access(path, os.W_OK):
                raise PermissionError(None, "it may not be written")
            if _replaceable(path):
                fresh = _beside(path)
                fresh.touch()
                fresh.unlink()
        except FileExistsError:
            raise Refused(f"{flag} is {str(path)!r}, below a file; expected a folder that exists or can be made") from None
        except OSError as error:
            raise Refused(f"{flag} is {str(path)!r}, which cannot be written: {error.strerror or error}; pass another place") from None

    def write(self, name: str, fill: Callable[[Path], object]) -> None:
        """``fill`` a file where one was asked for."""
        if (path := self._paths.get(name)) is None:
            return
        try:
            _write(path, fill)
        except OSError as error:
            line = f"--{name} {path}: not written: {error.strerror or error}"
            self.failed += [] if line in self.failed else [line]

    def end(self, text: str) -> None:
        """What there is to say, once everything else is written."""
        for line in self.failed:
            print(line, file=sys.stderr)
        say(text)

    def json(self, found: Any) -> None:
        self.write("json", lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))


def _replaceable(path: Path) -> bool:
    return path.is_file() or not path.exists()


def _beside(path: Path) -> Path:
    """A new file in the folder of the one that it will be; of its type."""
    real = path.resolve()
    return real.with_name(f".sam-kernels-{os.getpid()}{real.suffix}")


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    if not _replaceable(path):
        fill(path)
        return
    fresh = _beside(path)
    try:
        fill(fresh)
        if not fresh.exists():  # torch's profiler only logs why
            raise OSError(None, "whoever should have written it did not")
        fresh.replace(path.resolve())
    finally:
        fresh.unlink(missing_ok=True)
