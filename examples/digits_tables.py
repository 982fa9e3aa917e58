"""Tables of the examples, in plain text."""

from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)


def spread(values: Sequence[float], digits: int) -> str:
    """Median (quartiles), or a dash where nothing was measured."""
    if not values:
        return "-"
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation, or a dash where nothing was measured."""
    if not len(values):
        return "-"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def print_rows(rows: Sequence[Sequence[str]], left: int) -> None:
    """A header, a rule and the other rows; the first ``left`` columns to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    print()
    for i, row in enumerate(rows):
        print(
            "  ".join(cell.ljust(width) if k < left else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True)))
        )
        if i == 0:
            print("  ".join("-" * width for width in widths))
