"""Errors that a caller of the server may see, and one for its operator.

str() of each is one line, without content of a request.
"""


class InvalidInput(Exception):
    """The request cannot be served as sent. Says what, where, and what would be right.

    Triton carries the text alone; medimage_client.wire.error_reader reads row or column out of it again.

    Args:
        row: of the input at fault, within the request.
        column: of the input at fault, by its name.
    """

    def __init__(self, reason: str, *, row: int | None = None, column: str | None = None) -> None:
        place = column if row is None else f"row {row}"
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.row = row


class InferenceFailed(Exception):
    """The model failed for a reason that is not the caller's. Its text begins with "internal error"."""


class Unavailable(Exception):
    """The server cannot do it now: its queue is full, the request took too long, or it is shutting down."""


class Cancelled(Exception):
    """The caller gave the request up."""


class LaunchError(Exception):
    """A server cannot be started, or goes on no more; says what is wrong and what to do."""
