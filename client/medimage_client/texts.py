"""Texts that callers give, before they travel."""

from medimage_client.errors import InvalidInput


def check_text(text: object, name: str) -> None:
    """Raise InvalidInput unless it is a str that UTF-8 can hold."""
    if not isinstance(text, str):
        raise InvalidInput(f"{name}: is of type {type(text).__name__}; expected str")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{name}: is not valid Unicode; expected no lone surrogates") from None
