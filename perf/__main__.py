"""`python -m perf CASE [--quick]` measures a case, and `python -m perf page` writes what was measured into the docs.

A case is a module of perf/cases. Its first line is the question that it answers; its `main` is the command.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

import click

from perf.page import page

CASES = Path(__file__).with_name("cases")


class Cases(click.Group):
    """The commands are the modules of perf/cases, imported when they are asked for: some take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*questions(), *self.commands])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return import_module(f"perf.cases.{name}").main if name in questions() else super().get_command(ctx, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Cases"):
            formatter.write_dl(list(questions().items()))
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in self.commands.items()])


def questions() -> dict[str, str]:
    """The first line of each case, by its name."""
    files = {path.stem: path for path in CASES.glob("*.py")}
    files |= {path.parent.name: path for path in CASES.glob("*/__init__.py")}
    return {name: str(ast.get_docstring(ast.parse(files[name].read_text()))).split("\n")[0] for name in sorted(files)}


def print_questions(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        for name, question in questions().items():
            click.echo(f"{name:<18} {question}")
        ctx.exit()


@click.group(cls=Cases)
@click.option("--list", is_eager=True, is_flag=True, expose_value=False, callback=print_questions, help="List cases.")
def main() -> None:
    """Measure CASE: `python -m perf CASE --help` has its options, and each has --quick.

    Results go to perf/results, those of --quick to build/perf.
    """
    sys.stdout.reconfigure(line_buffering=True)  # so that a long run shows what it has, also in a file


main.add_command(page)

if __name__ == "__main__":
    main(prog_name="python -m perf")
