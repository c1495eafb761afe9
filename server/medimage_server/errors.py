"""Errors that a caller of the server may see."""


class InvalidInput(Exception):
    """The request cannot be served as sent. str() is one public line: what, where, what would be right; no content."""


class InferenceFailed(Exception):
    """The model failed for a reason that is not the caller's; str() is public and carries no data."""
