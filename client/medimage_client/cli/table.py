"""Tables of plain text."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in (head, *rows)
    ]


def in_one_line(value: object) -> str:
    """A cell, such as the name of a file, without line breaks and what else would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(value).splitlines()))
