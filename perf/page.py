"""Writes the tables of README.md and of pages in docs/ from perf/results/*.json.

A table stands between `<!-- table: NAME FILE -->` and `<!-- end of table -->`; the rest of a page is written by hand. A
measured number stands in a table or beside it, between those marks, and never in the text written by hand.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from perf.tables import TABLES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("performance", "search", "clusters")))
TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a page differs from the results.")
def page(check: bool) -> None:
    """Write the tables of README.md and of pages in docs/ from perf/results."""
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new == old:
            continue
        if check:
            raise click.ClickException(f"{path.relative_to(ROOT)} differs from perf/results; run `python -m perf page`")
        path.write_text(new, encoding="utf-8")


def filled(text: str) -> str:
    """The page with the tables of today's results.

    Raises:
        ClickException: the page asks for a table or a result that does not exist, or a result lacks what a table shows.
    """

    def written(match: re.Match[str]) -> str:
        begin, name, file, end = match.groups()
        if name not in TABLES:
            raise click.ClickException(f"there is no table {name!r}; expected one of {', '.join(TABLES)}")
        try:
            table = TABLES[name](json.loads((RESULTS / file).read_text(encoding="utf-8"))).strip()
        except FileNotFoundError as missing:
            raise click.ClickException(f"the table {name} is of {file}, which perf/results does not have") from missing
        except KeyError as missing:
            raise click.ClickException(f"{file} has no {missing} for {name}; was its measurement stopped?") from missing
        return f"{begin}\n{table}\n\n{end}"

    return TABLE.sub(written, text)


def shown(pages: Sequence[Path] = PAGES) -> list[tuple[str, str]]:
    """The tables that the pages show, one after the other: name and file."""
    return [(name, file) for path in pages for _, name, file, _ in TABLE.findall(path.read_text(encoding="utf-8"))]
