"""Exceptions of medimage_client, the same over gRPC, HTTP and from a scoring URI.

MedImageError                    `status` is the HTTP number of the failure, None for a failure without one
├── InvalidInput           400   an input, option or request is wrong; found here or by the server, never retried
├── MissingExtra           None  an optional dependency is not installed; the message has the pip command
├── SharedMemoryError      None  shared_memory=True, and this machine has no room for it or the server does not take it
├── TransportError         None  no answer: refused, reset, name not found; retried
├── RequestTimeout         504   no answer within `timeout`
└── ResponseError                the server answered with another error, such as 401 or 413, or not as Triton does, 200
    ├── NotFound           404   the server has no such model
    ├── Unavailable        503   a queue is full, or the server or a proxy asks to wait (429); retried
    │   ├── NotReady       503   the server is there and the model is not loaded; retried
    │   └── NoSharedMemory 503   the server's own /dev/shm is full; retried
    └── ServerError        500   the server failed, or the model behind a scoring URI (424); see its log
        └── ModelLost      500   the process of a model ended under the request; the server starts another

An error's text is one line and holds no pixels and no text of the request.
"""

from typing import Self


class MedImageError(Exception):
    """Base of all.

    Attributes:
        reason: what is wrong, one line; the text of the error without the place in front of it.
        row: of the input at fault, from 0: its index in the list that was given, or in the `data` of Azure's JSON. None
            if it is not one row's.
        column: of the input at fault, as in Azure's JSON: `image`, `text`, `lateral_image` and so on; or None.
        status: the HTTP number of the failure; over gRPC that of its code. None for a failure without one.
        request_id: by which a scoring endpoint's log names the request; None if none was told.
    """

    status: int | None = None

    def __init__(
        self,
        reason: str,
        *,
        row: int | None = None,
        column: str | None = None,
        place: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        """The text is `place: reason`; the place is made of row and column if it has no words of its own."""
        place = place_of(row, column) if place is None else place
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.row = row
        self.column = column
        self.request_id = request_id
        if status is not None:
            self.status = status


def place_of(row: int | None, column: str | None) -> str:
    """How a message names an input: `row 2, column 'image'`, `row 2`, or by its column alone, `lateral_image`."""
    if row is None:
        return column or ""
    return f"row {row}" if column is None else f"row {row}, column {column!r}"


class InvalidInput(MedImageError):
    status = 400

    def at(self, *, row: int | None = None, column: str | None = None, place: str | None = None) -> Self:
        """The same error as seen by a caller who knows more of the place; what is None stays as it is."""
        return type(self)(
            self.reason,
            row=self.row if row is None else row,
            column=self.column if column is None else column,
            place=place,
            status=self.status,
            request_id=self.request_id,
        )


class MissingExtra(MedImageError):
    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'medimage-triton[{extra}]'")


class SharedMemoryError(MedImageError):
    pass


class TransportError(MedImageError):
    pass


class RequestTimeout(MedImageError):
    status = 504


class ResponseError(MedImageError):
    pass


class NotFound(ResponseError):
    status = 404


class Unavailable(ResponseError):
    status = 503
    retry_after_s: float = 0.0  # how long the server asks to wait


class NotReady(Unavailable):
    pass


class NoSharedMemory(Unavailable):
    def __init__(self) -> None:
        super().__init__(
            "the server's shared memory is full; try again, or give it a larger /dev/shm (in a container: --shm-size)"
        )


class ServerError(ResponseError):
    status = 500


class ModelLost(ServerError):
    pass
