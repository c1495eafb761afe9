"""Texts that callers give, before they travel."""

from medimage_client.errors import InvalidInput


def check_text(text: object, *, column: str, row: int | None = None, place: str | None = None) -> None:
    """Raise InvalidInput of that place unless it is a str that UTF-8 can hold."""
    if not isinstance(text, str):
        raise InvalidInput(f"is of type {type(text).__name__}; expected str", row=row, column=column, place=place)
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "is not valid Unicode; expected no lone surrogates"
        raise InvalidInput(reason, row=row, column=column, place=place) from None
