"""Answers of an archive: read whole, within bounds, and failures of the archive and the libraries as our errors."""

from __future__ import annotations  # types of libraries that are extras

import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from time import monotonic
from typing import TYPE_CHECKING

from medimage_client.archive.credentials import Credentials
from medimage_client.constants import MAX_OBJECT_BYTES
from medimage_client.errors import MedImageError, RequestTimeout, ResponseError, TransportError, Unavailable
from medimage_client.wire.error_reader import error_type_of

if TYPE_CHECKING:
    from requests import Response

UNAVAILABLE = {408, 429, 502, 503, 504}  # of a proxy, too; asking again is what helps
FAILURES = {  # of a store, PS3.18 table I.2-2
    0x0110: "processing failure",
    0x0122: "it does not take this kind of object",
    0x0124: "not authorized",
    0xA700: "out of resources",
    0xA900: "the object does not match its SOP class",
    0xC000: "it cannot understand the object",
}
# Their logs hold UIDs, queries and traces, also above debug level
QUIET = ("charset_normalizer", "dicomweb_client.web", "retrying", "urllib3.connectionpool", "urllib3.util.retry")
deadline_of_request: ContextVar[float | None] = ContextVar("deadline_of_request", default=None)


def is_not_ours(record: logging.LogRecord) -> bool:
    return deadline_of_request.get() is None


@contextmanager
def errors_as_ours(credentials: Credentials, left_s: float, silence_s: float) -> Iterator[None]:
    """The time limit for what is asked within, and failures of the libraries as ours, none with a url in its text."""
    import requests

    token = deadline_of_request.set(monotonic() + left_s)
    try:
        yield
    except MedImageError as error:
        if error.status in (401, 403) and credentials == Credentials():
            raise type(error)(f"{error}; none were given, set MEDIMAGE_ARCHIVE_*", status=error.status) from None
        raise
    except requests.exceptions.SSLError as error:
        raise MedImageError(f"the archive's certificate is not trusted{tls_reason(error)}; give its own CA") from None
    except requests.Timeout:
        raise TransportError(f"the archive sent nothing for {silence_s:g} s") from None
    except requests.exceptions.InvalidJSONError:
        raise ResponseError("the archive's answer is not what DICOMweb has here (no JSON)", status=200) from None
    except requests.RequestException as error:  # its text has the url, with the query
        raise TransportError(f"cannot reach the archive ({type(error).__name__})") from None
    except OSError as error:
        raise TransportError(f"cannot reach the archive ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # of the reading of an answer, of almost any type
        raise ResponseError(
            f"the archive's answer is not what DICOMweb has here ({type(error).__name__})", status=200
        ) from None
    finally:
        deadline_of_request.reset(token)


def tls_reason(error: BaseException) -> str:
    """OpenSSL's words, which lie within the library's exceptions."""
    inner = [error]
    for one in inner:  # which grows
        if isinstance(one, ssl.SSLCertVerificationError):
            return f" ({one.verify_message})"
        inner += [cause for cause in (*one.args, getattr(one, "reason", None)) if isinstance(cause, BaseException)]
    return ""


def check_answer(response: Response, **_: object) -> Response:
    """The answer with its body read: whole, within the time limit and within bounds; a hook of `requests`.

    Raises:
        MedImageError: the status tells a failure, or the body is not whole.
    """
    import requests

    deadline = deadline_of_request.get()
    if response.status_code >= 300:
        with response:
            raise status_error(response)
    chunks, size = [], 0
    with response:
        for chunk in response.iter_content(2**20):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_OBJECT_BYTES:
                raise ResponseError(f"the archive's answer has more than {MAX_OBJECT_BYTES >> 20} MiB", status=200)
            if deadline is not None and monotonic() > deadline:
                raise RequestTimeout("the archive was still sending at the end of the time limit")
    body = b"".join(chunks)
    content_type = response.headers.get("Content-Type", "")
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if content_type.startswith("multipart/") and boundary and boundary[1].encode() + b"--" not in body[-1024:]:
        raise TransportError("the archive's answer ended in the middle")
    whole = requests.Response()  # one that is read: the library would take what came of a body as the whole
    whole.status_code, whole.url, whole.request = response.status_code, response.url, response.request
    whole.headers, whole.raw = response.headers, BytesIO(body)
    if content_type.startswith("application/dicom") and not content_type.startswith("application/dicom+"):
        whole.headers["Content-Type"] = "multipart/related"  # an object without its envelope, taken as one part
    elif "+json" in content_type or "+xml" in content_type:
        whole.headers["Content-Type"] = content_type.partition(";")[0].strip()  # the library compares the whole text
    return whole


def status_error(response: Response) -> MedImageError:
    status = response.status_code
    if 300 <= status < 400:
        reason = "a redirect, which is not followed; expected the url that it leads to"
    elif status in (401, 403):
        reason = "the archive refuses the credentials or needs some"
    elif status == 404:
        reason = "the archive has no such object, or no DICOMweb at this address"
    elif status == 409:
        reason = refused_store(failure_reason(response))
    elif status in UNAVAILABLE:
        error = Unavailable(f"the archive answered HTTP {status}", status=status)
        if re.fullmatch(r"[0-9]{1,9}", response.headers.get("Retry-After", "")):
            error.retry_after_s = float(response.headers["Retry-After"])
        return error
    else:
        reason = "the archive refuses the request" if status < 500 else "the archive failed"
    return error_type_of(status)(f"HTTP {status}, {reason}", status=status)


def failure_reason(response: Response) -> int | None:
    """The first Failure Reason (0008,1197) of an answer to a store; None if there is none that can be read."""
    try:
        answer = response.json()
        item = answer[0] if isinstance(answer, list) else answer
        return int(item["00081198"]["Value"][0]["00081197"]["Value"][0])
    except Exception:  # XML, HTML or nothing
        return None


def refused_store(reason: int | None) -> str:
    if not reason:
        return "the archive does not store the object"
    return f"the archive does not store the object: {FAILURES.get(reason, 'failure reason')} ({reason:04X})"
