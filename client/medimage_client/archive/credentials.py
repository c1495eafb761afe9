"""How an archive knows its caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from medimage_client.errors import InvalidInput
from medimage_client.images.base64_text import encode_base64


@dataclass(frozen=True, slots=True)
class Credentials:
    """How an archive knows its caller: user and password (basic), a token (bearer), or a file with either."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    file: Path | None = None  # of one line, `user:password` or `Bearer TOKEN`; read for each request, as tokens expire

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Of MEDIMAGE_ARCHIVE_TOKEN, MEDIMAGE_ARCHIVE_USER and _PASSWORD, or MEDIMAGE_ARCHIVE_CREDENTIALS, a file.

        Raises:
            InvalidInput: a user without a password, or a password without a user.
        """
        token, user, password, file = (
            env.get(f"MEDIMAGE_ARCHIVE_{name}") or None for name in ("TOKEN", "USER", "PASSWORD", "CREDENTIALS")
        )
        if (user is None) != (password is None):
            raise InvalidInput("one of MEDIMAGE_ARCHIVE_USER and MEDIMAGE_ARCHIVE_PASSWORD is set; expected both")
        return cls(user, password, token, None if file is None else Path(file))

    def header(self) -> str | None:
        """The value of Authorization; None for none.

        Raises:
            InvalidInput: the file cannot be read, or is of another form.
        """
        if self.file is not None:
            try:
                line = self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"cannot read the credentials in {self.file} ({type(error).__name__})") from None
            scheme, _, token = line.partition(" ")
            if scheme.lower() == "bearer":
                return bearer(token.strip())
            user, colon, password = line.partition(":")
            if not colon or "\n" in line:
                raise InvalidInput(f"{self.file} is not one line, user:password or Bearer TOKEN")
            return basic(user, password)
        if self.token is not None:
            return bearer(self.token)
        if self.user is not None and self.password is not None:
            return basic(self.user, self.password)
        return None


def basic(user: str, password: str) -> str:
    return f"Basic {encode_base64(f'{user}:{password}'.encode()).decode()}"


def bearer(token: str) -> str:
    if not token or " " in token or not token.isascii() or not token.isprintable():
        raise InvalidInput("the archive's token is empty, not ASCII or has white space in it; expected the token alone")
    return f"Bearer {token}"
