"""Who may ask: `Authorization: Bearer KEY`, as for an Azure endpoint with key authentication."""

from http import HTTPStatus

from starlette.datastructures import Headers

from medimage_server.endpoint.head import SPACE, only
from medimage_server.endpoint.keys import Keyring
from medimage_server.endpoint.refusal import Refusal


def authorize(headers: Headers, keys: Keyring) -> None:
    """Let the request pass.

    Raises:
        Refusal: 400 with two headers, 401 without a key, 403 with one that is not valid.
    """
    header = only(headers, "authorization") or ""
    if keys.is_open:
        return
    scheme, _, key = header.partition(" ")
    key = key.strip(SPACE)
    if scheme.lower() != "bearer" or not key:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED, "no key; send the header Authorization: Bearer KEY", {"www-authenticate": "Bearer"}
        )
    if not keys.accepts(key):
        raise Refusal(HTTPStatus.FORBIDDEN, "the key is not valid here")
