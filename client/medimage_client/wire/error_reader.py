"""Failures of a server or a connection as our errors, the same over every wire.

Triton tells a failure by a code and a text, so here, and nowhere else, the text is read: what kind of failure it is,
and which input it names. A scoring endpoint tells row and column beside its text.
"""

import re
from textwrap import shorten

from tritonclient.utils import InferenceServerException

from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    ModelLost,
    NoSharedMemory,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    ServerError,
    SharedMemoryError,
    TransportError,
    Unavailable,
    place_of,
)
from medimage_client.schema import embeddings, reports

# gRPC codes as HTTP numbers, after Triton's own pairs (server, http_server.cc) and, for the rest, grpc-gateway's
GRPC_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "CANCELLED": 499,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
STATUS_ERRORS: dict[int, type[MedImageError]] = {
    400: InvalidInput,
    404: NotFound,
    408: RequestTimeout,
    424: ServerError,  # of a scoring endpoint: its model failed
    429: Unavailable,
    503: Unavailable,
    504: RequestTimeout,
}
MAX_MESSAGE_LENGTH = 400  # characters

COLUMNS = (*embeddings.COLUMNS, *reports.COLUMNS)
PLACE = re.compile(rf"^(?:row (?P<row>\d+)|(?P<column>{'|'.join(COLUMNS)})): ")  # how our models name an input
# Words of the libraries below, each the only mark of what it tells
ENSEMBLE_PREFIX = re.compile(r"^(in ensemble '[^']*', )+")  # Triton, before the message of an ensemble's step
NO_CONNECTION = re.compile(  # gRPC, whose code is UNAVAILABLE like that of a server with a full queue
    r"failed to connect|errors? resolving|dns resolution|socket closed|connection (reset|closed|aborted)|broken pipe",
    re.IGNORECASE,
)
UNREADABLE_BODY = "an exception occurred in the client while decoding"  # tritonclient, over HTTP
STATUS_MARKS = {  # Triton and our models; for streams, whose errors have no status
    # first, for these may go on with any words: of our models, and of Triton's Python backend
    re.compile(r"^(internal error|Failed to process the request|Stub process '[^']*' is not healthy)"): 500,
    re.compile(r"maximum queue size|waiting already|busy; try again|shutting down|Server is stopping"): 503,
    re.compile(r"unknown model"): 404,
}
SHARED_MEMORY_FULL = re.compile(  # Triton's Python backend, in the server or a stub; by our models with words in front
    r"Failed to increase the shared memory pool size for key|Unable to initialize shared memory key|"
    r"Failed to create new mapped region for the grown shared memory region"
)
PROCESS_LOST = re.compile(r"^(Failed to process the request.*)?Stub process '[^']*' is not healthy")  # Triton
TOO_LONG = re.compile(r"took longer than the limit")  # our models, UNAVAILABLE as Triton has no code for it
RESTRICTED = re.compile(r"is restricted, expecting header")  # Triton, where an operator has locked an API
REGION_LOST = re.compile(r"^Unable to find shared memory region")  # Triton, of one that it has never seen
NOT_READY = re.compile(r"not ready|not at ready state|no available versions")  # Triton, before and after a load


def unified_error(error: Exception) -> MedImageError:
    """tritonclient's exceptions, and those of the libraries below it, as ours.

    tritonclient spells a status as "StatusCode.UNAVAILABLE" over gRPC and "503" over HTTP. Ours are raised `from None`:
    a message of aiohttp may quote the answer, which is clinical text.
    """
    if not isinstance(error, InferenceServerException):
        reason = str(error) if isinstance(error, OSError) else ""  # the operating system quotes nothing
        return TransportError(f"cannot reach the server: {one_line(reason or type(error).__name__)}")
    code = (error.status() or "").removeprefix("StatusCode.")
    message = error.message() or ""
    if code == "UNAVAILABLE" and NO_CONNECTION.search(message):
        return TransportError(f"cannot reach the server: {one_line(message)}")
    if not code:
        status = status_of(message, default=500)
    else:
        status = int(code) if code.isdecimal() else GRPC_STATUS.get(code, 500)
    return triton_error(status, not_triton(status) if message.startswith(UNREADABLE_BODY) else message)


def shared_memory_error(error: MedImageError) -> MedImageError:
    """A failure of the server to map a region of this machine's memory; one of the connection as it is."""
    if isinstance(error, TransportError | RequestTimeout):
        return error
    if isinstance(error, Unavailable) and not RESTRICTED.search(str(error)):
        return error
    return SharedMemoryError(
        f"the server does not take shared memory ({error}); it has to run on this machine, see the same /dev/shm and "
        "leave the shared-memory API open; else leave shared_memory out"
    )


def triton_error(status: int, message: str) -> MedImageError:
    """A failure that Triton tells, by its HTTP number and its text."""
    message = one_line(ENSEMBLE_PREFIX.sub("", message))
    if REGION_LOST.search(message):
        return TransportError("the server has restarted and lost the memory that it shared with this client")
    if SHARED_MEMORY_FULL.search(message):
        return NoSharedMemory()
    if NOT_READY.search(message):
        return NotReady(message)
    if TOO_LONG.search(message):
        return RequestTimeout(message)
    error_type = error_type_of(status)
    if issubclass(error_type, InvalidInput) and (place := PLACE.match(message)):
        row, column = place["row"], place["column"]
        return error_type(message[place.end() :], row=None if row is None else int(row), column=column, status=status)
    if issubclass(error_type, ServerError) and PROCESS_LOST.search(message):
        return ModelLost(message, status=status)
    return error_type(message, status=status)


def stream_error(message: str, *, has_begun: bool) -> MedImageError:
    """A failure that a response of a stream tells, which has no status: before the first, it is the request's fault."""
    return triton_error(status_of(message, default=500 if has_begun else 400), message)


def scoring_error(status: int, message: str, *, row: object, column: object, request_id: str | None) -> MedImageError:
    """A failure that a scoring endpoint tells; row and column are of its JSON, and may be anything.

    A column that is none of Azure's is left out: it would be shown.
    """
    message = one_line(message)
    row = row if isinstance(row, int) and not isinstance(row, bool) and row >= 0 else None
    column = column if isinstance(column, str) and column in COLUMNS else None
    error_type = NotReady if status == 503 and NOT_READY.search(message) else error_type_of(status)
    if not issubclass(error_type, InvalidInput):
        error = error_type(message, status=status, request_id=request_id)
        error.row, error.column = row, column  # which its text does not name
        return error
    place = f"{place_of(row, column)}: "
    return error_type(
        message.removeprefix(place),
        row=row,
        column=column,
        place=None if message.startswith(place) else "",
        status=status,
        request_id=request_id,
    )


def error_type_of(status: int) -> type[MedImageError]:
    return STATUS_ERRORS.get(status, ServerError if status >= 500 else ResponseError)


def status_of(message: str, *, default: int) -> int:
    return next((status for mark, status in STATUS_MARKS.items() if mark.search(message)), default)


def not_triton(status: int) -> str:
    return f"HTTP {status} and a body that is not Triton's; is this the address of a Triton server?"


def not_scoring(status: int) -> str:
    return f"HTTP {status} and a body that is not a scoring endpoint's; is this a scoring URI?"


def one_line(message: str) -> str:
    return shorten(message, MAX_MESSAGE_LENGTH, placeholder=" …")
