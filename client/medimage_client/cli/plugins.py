"""A group of commands that takes in those of other packages, which these offer as entry points."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from medimage_client.errors import MedImageError


class CommandGroup(click.Group):
    """Loads an entry point when its command is named or listed, and ends with one line where an extra is missing.

    Args:
        entry_point_group: under which other packages offer commands of this group.
    """

    def __init__(self, *args: Any, entry_point_group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.entry_point_group = entry_point_group

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *commands_of_other_packages(self.entry_point_group)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry_point = commands_of_other_packages(self.entry_point_group).get(cmd_name)
        return load(entry_point) if entry_point else super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MedImageError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            entry_point = commands_of_other_packages(self.entry_point_group).get(ctx.invoked_subcommand or "")
            if entry_point is None:
                raise
            group = ctx.command_path.removeprefix(ctx.find_root().command_path)  # within `medimage`, however it is run
            raise click.ClickException(f"medimage{group} {entry_point.name} {remedy(entry_point, error)}") from error


def commands_of_other_packages(entry_point_group: str) -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=entry_point_group)}


def load(entry_point: EntryPoint) -> click.Command:
    try:
        command: click.Command = entry_point.load()
    except ModuleNotFoundError as error:
        return unavailable(entry_point, error)
    return command


def remedy(entry_point: EntryPoint, missing: ModuleNotFoundError) -> str:
    room = entry_point.module.split(".")[0].removeprefix("medimage_")
    extra = "all" if room == "install" else room  # the others are named after their extra
    return f"needs {missing.name}: pip install 'medimage-triton[{extra}]'"


def unavailable(entry_point: EntryPoint, missing: ModuleNotFoundError) -> click.Command:
    """Stands in the help for a command that cannot be loaded, and fails as it would."""

    def fail(args: tuple[str, ...]) -> None:
        raise missing

    return click.Command(
        entry_point.name,
        callback=fail,
        params=[click.Argument(["args"], nargs=-1, type=click.UNPROCESSED)],  # whatever follows
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        help=f"({remedy(entry_point, missing)})",
    )
