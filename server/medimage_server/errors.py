"""Errors that a caller of the server may see, and one for its operator.

str() of each is one line, without content of a request.
"""


class InvalidInput(Exception):
    """The request cannot be served as sent. Says what, where, and what would be right."""


class InferenceFailed(Exception):
    """The model failed for a reason that is not the caller's. Its text begins with "internal error"."""


class Unavailable(Exception):
    """The server cannot do it now: its queue is full, the request took too long, or it is shutting down."""


class Cancelled(Exception):
    """The caller gave the request up."""


class LaunchError(Exception):
    """A server cannot be started, or goes on no more; says what is wrong and what to do."""
