"""How long a process has given no sign of life."""

from time import monotonic

LOOK_S = 1.0  # that one look counts for at most: in a longer pause we were stopped ourselves, and heard nobody


class Silence:
    """Measures the time without a change in what a process says, as far as we listened.

    Args:
        limit_s: after which it lasts too long.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard: object = None
        self._seconds = 0.0
        self._looked_at = monotonic()

    def lasts(self, said: object) -> bool:
        """Whether it has lasted too long.

        Args:
            said: what it says now, such as a time or a count; None if it never says anything, which is no silence.
        """
        now = monotonic()
        self._seconds += min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        if said is None or said != self._heard:
            self._heard, self._seconds = said, 0.0
        return self._seconds > self._limit_s
