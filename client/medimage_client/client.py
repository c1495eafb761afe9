"""The synchronous clients of MedImageInsight and CXRReportGen: the asynchronous ones, run on the background loop."""

import os
import weakref
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from medimage_client.async_client import AsyncCXRReportGen, AsyncMedImageInsight
from medimage_client.background import close_forgotten, event_loop, run
from medimage_client.constants import DEFAULT_CONCURRENCY, DEFAULT_REPORT_TIMEOUT_S, DEFAULT_RETRIES, DEFAULT_TIMEOUT_S
from medimage_client.reports.report import Report
from medimage_client.reports.stream import AsyncReportStream
from medimage_client.wire.transport import Transport

P = ParamSpec("P")
T = TypeVar("T")
Asynchronous = TypeVar("Asynchronous")


def synchronous(
    method: Callable[Concatenate[Asynchronous, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """A method of an asynchronous client as one of the synchronous client, with the same arguments."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(method(self._client, *args, **kwargs))

    return described(method, call)


def described(method: Callable[..., Any], call: Callable[P, T]) -> Callable[P, T]:
    """The call with the name and the signature of a method, and the first sentences of its text."""
    wraps(method)(call)
    text = (method.__doc__ or "").partition("\n\n")[0].rstrip()
    call.__doc__ = f"{text}\n\nSee `{method.__qualname__}`."
    return call


class ReportStream:
    """A report as it is written: an iterator of pieces of text. `report` is available after the last piece.

    Leaving it early cancels the request on the server: with `close()`, at the end of a `with` block, by Ctrl-C while
    it waits, or when the stream is collected, such as after `break` from a loop that holds the only reference.
    """

    def __init__(self, stream: AsyncReportStream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream, and the request on the server if it is still under way."""
        run(self._stream.aclose())

    @property
    def report(self) -> Report:
        """The report, available when the last piece has been read.

        Raises:
            MedImageError: the last piece has not been read yet.
        """
        return self._stream.report


def synchronous_stream(
    method: Callable[Concatenate[Asynchronous, P], AsyncReportStream],
) -> Callable[Concatenate[Any, P], ReportStream]:
    """As `synchronous`, of a method that gives a stream."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> ReportStream:
        return ReportStream(method(self._client, *args, **kwargs))

    described(method, call)
    call.__annotations__ = method.__annotations__ | {"return": ReportStream}
    call.__signature__ = signature(method).replace(return_annotation=ReportStream)  # type: ignore[attr-defined]  # PEP 362
    return call


class SynchronousClient:
    """Runs an asynchronous client, and closes it at the latest when it is collected or the interpreter exits."""

    def __init__(self, client: AsyncMedImageInsight | AsyncCXRReportGen) -> None:
        self._client = client
        event_loop()  # before the finalizer, see background.start
        weakref.finalize(self, close_forgotten, client, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        run(self._client.close())

    def is_ready(self) -> bool:
        """Whether the server answers now and has the models loaded; not retried."""
        return run(self._client.is_ready())


class MedImageInsight(SynchronousClient):
    """MedImageInsight on a Triton server or behind a scoring URI.

    The methods are those of `AsyncMedImageInsight`, without `await`; arguments, results and errors are described there.
    Several threads may share a client; over HTTP a forked process may go on with it, by connections of its own. gRPC
    does not survive a fork after its first call: fork earlier, start processes with `spawn`, or use HTTP. Close a
    client with `close()` or a `with` block; otherwise it is closed when it is collected or the interpreter exits.

    Raises:
        InvalidInput: the url or an option is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        shared_memory: bool = False,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(
            AsyncMedImageInsight(
                url,
                api_key=api_key,
                timeout=timeout,
                retries=retries,
                concurrency=concurrency,
                shared_memory=shared_memory,
                transport=transport,
            )
        )

    embed_images = synchronous(AsyncMedImageInsight.embed_images)
    embed_texts = synchronous(AsyncMedImageInsight.embed_texts)
    classify = synchronous(AsyncMedImageInsight.classify)
    score = synchronous(AsyncMedImageInsight.score)


class CXRReportGen(SynchronousClient):
    """CXRReportGen on a Triton server or behind a scoring URI.

    The methods are those of `AsyncCXRReportGen`, without `await`; arguments, results and errors are described there.
    Threads, forks and closing are as with `MedImageInsight`.

    Raises:
        InvalidInput: the url or an option is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_REPORT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        transport: Transport | None = None,
    ) -> None:
        super().__init__(
            AsyncCXRReportGen(
                url, api_key=api_key, timeout=timeout, retries=retries, concurrency=concurrency, transport=transport
            )
        )

    report = synchronous(AsyncCXRReportGen.report)
    stream = synchronous_stream(AsyncCXRReportGen.stream)
    score = synchronous(AsyncCXRReportGen.score)
