"""Options of our commands: each is also read from the environment, as MEDIMAGE_ and its name."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PORT = click.IntRange(0, 65535)


def option(flag: str, *names: str, help: str, **settings: Any) -> Callable[[F], F]:  # as click's own is named
    """`click.option`, with its environment variable and, where there is one, its default in the help."""
    name = flag.partition("/")[0].removeprefix("--").replace("-", "_")
    settings |= {"envvar": f"MEDIMAGE_{name.upper()}", "show_envvar": True}
    settings.setdefault("show_default", settings.get("default") is not None)
    return click.option(flag, *names, help=help, **settings)
