"""How far a run is: rows, their rate, the time that is left, and failures."""

import sys
from collections import deque
from time import monotonic

import click

WINDOW_S = 60.0  # of which the rate is taken
TERMINAL_S, LOG_S = 0.5, 60.0  # between two lines, on a terminal each over the last


class Progress:
    """
    Args:
        n_rows: of the whole part of the run, with those that were done before.
    """

    def __init__(self, n_rows: int, n_done: int) -> None:
        self._n_rows, self._n_done = n_rows, n_done
        self._n_before = n_done
        self._n_failed = 0
        self._is_terminal = sys.stderr.isatty()
        self._begun = self._shown = monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._begun, n_done)])

    def add(self, n_embedded: int, n_failed: int) -> None:
        self._n_done += n_embedded + n_failed
        self._n_failed += n_failed
        now = monotonic()
        if now - self._shown >= (TERMINAL_S if self._is_terminal else LOG_S):
            self._shown = now
            self._seen.append((now, self._n_done))
            while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_S:
                self._seen.popleft()
            self._show(self.line(self.rate()))

    def tell(self, line: str) -> None:
        click.echo(f"\n{line}" if self._is_terminal else line, err=True)

    def rate(self) -> float:
        (then, before), now = self._seen[0], monotonic()
        return (self._n_done - before) / max(now - then, 1e-9)

    def line(self, rate: float) -> str:
        left = self._n_rows - self._n_done
        remaining = f", {duration(left / rate)} left" if rate and left else ""
        return f"{self._n_done:,} of {self._n_rows:,} images, {rate:.1f}/s{remaining}, {self._n_failed:,} failed"

    def end(self) -> None:
        seconds = monotonic() - self._begun
        rate = (self._n_done - self._n_before) / max(seconds, 1e-9)
        self._show(self.line(rate))
        if self._is_terminal:
            click.echo(err=True)

    def _show(self, line: str) -> None:
        click.echo(f"\r\x1b[K{line}" if self._is_terminal else line, err=True, nl=not self._is_terminal)


def duration(seconds: float) -> str:
    """As `3 d 4 h`, `2 h 5 min`, `5 min` or `40 s`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
