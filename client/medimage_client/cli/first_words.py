"""What standard error shows until a report's first words: when to expect them and, on a terminal, a progress bar."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from medimage_client.schema.reports import ReportProgress

TOLD_FROM_S = 1.0  # less is not worth a line


class FirstWords:
    """Shows the progress of one report."""

    def __init__(self) -> None:
        self._is_told = False
        self._bar: Any = None  # of click, which does not export the class

    def show(self, progress: ReportProgress) -> None:
        seconds = progress.first_words_s
        if seconds is not None and not self._is_told:
            self._is_told = True
            if seconds >= TOLD_FROM_S:
                click.echo(f"First words in about {seconds:.0f} s.", err=True)
        if progress.state == "reading":
            if self._bar is None:
                self._bar = click.progressbar(
                    length=progress.tokens, label="Prompt", file=sys.stderr, hidden=not sys.stderr.isatty()
                )
                self._bar.render_progress()
            self._bar.update(progress.tokens_read - self._bar.pos)

    def before(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces of the report; the bar ends before the first."""
        try:
            for piece in pieces:
                self._end()
                yield piece
        finally:
            self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
