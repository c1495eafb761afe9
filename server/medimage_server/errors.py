"""Errors that a caller of the server may see."""


class InvalidInput(Exception):
    """The request cannot be served as sent. str() is one public line: what, where, what would be right; no content."""
