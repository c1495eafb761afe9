"""What the tables of results have in common: their cells, and their layout in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

Content = Mapping[str, Any]

NONE = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A Markdown table, its first `left` columns aligned left and the others right, padded to be read as text, too."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def ms(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def spread(timing: Content) -> str:
    return f"{ms(timing['min_ms'])}-{ms(timing['max_ms'])}"


def floor_ms(gflop: float, gflop_per_s: float) -> float:
    """Milliseconds that the work takes at that rate."""
    return 1e3 * gflop / gflop_per_s
