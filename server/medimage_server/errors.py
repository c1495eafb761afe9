"""Errors that a caller of the server may see; str() of each is one public line, without content of the request."""


class InvalidInput(Exception):
    """The request cannot be served as sent. Says what, where, and what would be right."""


class InferenceFailed(Exception):
    """The model failed for a reason that is not the caller's. Its text begins with "internal error"."""


class Unavailable(Exception):
    """The server cannot do it now: its queue is full, the request took too long, or it is shutting down."""


class Cancelled(Exception):
    """The caller gave the request up."""
