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

A message is one line and holds no pixels and no text of the request.
"""


class MedImageError(Exception):
    """Base of all."""

    status: int | None = None

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class InvalidInput(MedImageError):
    status = 400


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
