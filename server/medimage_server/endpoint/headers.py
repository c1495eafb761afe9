"""Headers of requests: what two readers may understand differently is refused, for a proxy may stand before us."""

from http import HTTPStatus

from starlette.datastructures import Headers

from medimage_server.endpoint.responses import Refusal

JSON = "application/json"
SPACE = " \t"  # around what a header says; str.strip() also takes a no-break space, which is part of it


def only(headers: Headers, name: str) -> str | None:
    """What a header says, None where it is not there.

    Raises:
        Refusal: 400 where it is there twice. We would read the first, another the last.
    """
    values = headers.getlist(name)
    if len(values) > 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the header {name} is given {len(values)} times; expected once")
    return values[0] if values else None


def listed(headers: Headers, name: str) -> str:
    """What a header says that may be spread over several lines (RFC 9110, section 5.3)."""
    return ", ".join(headers.getlist(name))


def check_content_type(headers: Headers) -> None:
    content_type, *parameters = (only(headers, "content-type") or "").lower().split(";")
    if content_type.strip(SPACE) != JSON:  # the words of Azure's inference server
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Expects Content-Type to be {JSON}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip(SPACE) == "charset" and value.strip(SPACE + "\"'") not in ("utf-8", "utf8"):
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the charset is not supported; JSON is sent in UTF-8")
    encoding = listed(headers, "content-encoding").strip(SPACE).lower()
    if "content-encoding" in headers and encoding != "identity":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Encoding is not supported; send the JSON as it is")
