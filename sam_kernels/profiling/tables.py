"""Numbers and tables of results as text."""

from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    if not isfinite(x):
        return str(x)
    return f"{x:.{max(0, 2 - floor(log10(abs(x))))}f}" if x else "0"


def between(s: Mapping[str, float]) -> str:
    return f"{number(s['median'])} ({number(s['p20'])} to {number(s['p80'])})"


def plain(lines: Sequence[Sequence[str]], left: int) -> str:
    """A header and its lines in columns, the first ``left`` of them aligned to the left, an underlined header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def row(cells: Sequence[str]) -> str:
        aligned = [cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(aligned).rstrip()

    return "\n".join([row(lines[0]), "  ".join("-" * w for w in widths), *map(row, lines[1:])])
