"""What killed runs have left: removed when the next one starts, and by `medimage clean`."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from medimage_server.banner import tell
from medimage_server.guard import forbid_cores
from medimage_server.run_folder import RunFolder, remove_dead, run_folder, shared_memory_warning


@click.command()
def clean() -> None:
    """Remove what killed servers and clients of this user left in /dev/shm and the temporary directory.

    This can include images and texts of the last requests. What running servers use is kept.
    """
    removed = remove_dead()
    click.echo("\n".join([f"removed {path}" for path in removed] or ["nothing to remove"]))


@contextmanager
def clean_run() -> Iterator[RunFolder]:
    """The folder of a command's run, after what dead ones have left is removed; the operator is told of both.

    Raises:
        LaunchError: see `run_folder`.
    """
    forbid_cores()
    for path in remove_dead():
        tell(f"removed {path}, left by a run that was killed")
    with run_folder() as run:
        if warning := shared_memory_warning():
            tell(warning)
        yield run
