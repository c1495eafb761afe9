"""The synchronous clients of MedImageInsight and CXRReportGen: the asynchronous ones, run on the background loop."""

import os
import weakref
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from medimage_client.async_client import AsyncCXRReportGen, AsyncMedImageInsight
from medimage_client.background import close_forgotten, event_loop, run
from medimage_client.constants import DEFAULT_CONCURRENCY, DEFAULT_REPORT_TIMEOUT_S, DEFAULT_RETRIES, DEFAULT_TIMEOUT_S
from medimage_client.embeddings import Embeddings
from medimage_client.images.encoding import ImageInput
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import Window
from medimage_client.reports.report import Report
from medimage_client.reports.stream import AsyncReportStream
from medimage_client.schema.embeddings import Answer, Layout
from medimage_client.schema.reports import Mode
from medimage_client.schema.table import Request
from medimage_client.wire.transport import Transport


class MedImageInsight:
    """MedImageInsight on a Triton server or behind a scoring URI.

    The methods are those of `AsyncMedImageInsight`, without `await`; arguments, results and errors are described there.
    Several threads may share a client; a forked process needs its own. gRPC does not survive a fork after its first
    call: fork earlier, start processes with `spawn`, or use HTTP. Close a client with `close()` or a `with` block;
    otherwise it is closed when it is collected or the interpreter exits.

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
        self._client = AsyncMedImageInsight(
            url,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            shared_memory=shared_memory,
            transport=transport,
        )
        event_loop()  # before the finalizer, see background.start
        weakref.finalize(self, close_forgotten, self._client, os.getpid())

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

    def embed_images(
        self,
        images: Sequence[ImageInput],
        *,
        window: Window | None = None,
        frame: int | None = None,
        image_standardization_image_size: int = 0,
        image_standardization_jpeg_compression_ratio: int = 0,
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> Embeddings:
        """Embeddings of images, (n, 1024) float32, L2-normalised; see `AsyncMedImageInsight.embed_images`."""
        return run(
            self._client.embed_images(
                images,
                window=window,
                frame=frame,
                image_standardization_image_size=image_standardization_image_size,
                image_standardization_jpeg_compression_ratio=image_standardization_jpeg_compression_ratio,
                resize=resize,
                timeout=timeout,
            )
        )

    def embed_texts(self, texts: Sequence[str], *, timeout: float | None = None) -> Embeddings:
        """Embeddings of texts, (n, 1024) float32, L2-normalised; see `AsyncMedImageInsight.embed_texts`."""
        return run(self._client.embed_texts(texts, timeout=timeout))

    def classify(
        self,
        images: Sequence[ImageInput] | Embeddings,
        labels: Sequence[str],
        *,
        multilabel: bool = False,
        template: str = "{}",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> NDArray[np.float32]:
        """Zero-shot probabilities, (n, labels) float32; see `AsyncMedImageInsight.classify`."""
        return run(
            self._client.classify(
                images, labels, multilabel=multilabel, template=template, resize=resize, timeout=timeout
            )
        )

    def score(
        self,
        request: Request,
        *,
        layout: Layout = "rows",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> Answer:
        """Answer a request of Azure's endpoint in its own JSON; see `AsyncMedImageInsight.score`."""
        return run(self._client.score(request, layout=layout, resize=resize, timeout=timeout))


class CXRReportGen:
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
        self._client = AsyncCXRReportGen(
            url, api_key=api_key, timeout=timeout, retries=retries, concurrency=concurrency, transport=transport
        )
        event_loop()  # before the finalizer, see background.start
        weakref.finalize(self, close_forgotten, self._client, os.getpid())

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

    def report(
        self,
        frontal: ImageInput,
        *,
        lateral: ImageInput | None = None,
        prior: ImageInput | None = None,
        indication: str | None = "",
        technique: str | None = "",
        comparison: str | None = "",
        prior_report: str | None = "",
        mode: Mode = "grounded",
        phrase: str | None = None,
        max_new_tokens: int | None = None,
        constrained: bool = False,
        timeout: float | None = None,
    ) -> Report:
        """The findings of a chest X-ray study; see `AsyncCXRReportGen.report`."""
        return run(
            self._client.report(
                frontal,
                lateral=lateral,
                prior=prior,
                indication=indication,
                technique=technique,
                comparison=comparison,
                prior_report=prior_report,
                mode=mode,
                phrase=phrase,
                max_new_tokens=max_new_tokens,
                constrained=constrained,
                timeout=timeout,
            )
        )

    def stream(
        self,
        frontal: ImageInput,
        *,
        lateral: ImageInput | None = None,
        prior: ImageInput | None = None,
        indication: str | None = "",
        technique: str | None = "",
        comparison: str | None = "",
        prior_report: str | None = "",
        mode: Mode = "grounded",
        phrase: str | None = None,
        max_new_tokens: int | None = None,
        constrained: bool = False,
        timeout: float | None = None,
    ) -> "ReportStream":
        """The report as it is written, an iterator of pieces of text; see `AsyncCXRReportGen.stream`."""
        return ReportStream(
            self._client.stream(
                frontal,
                lateral=lateral,
                prior=prior,
                indication=indication,
                technique=technique,
                comparison=comparison,
                prior_report=prior_report,
                mode=mode,
                phrase=phrase,
                max_new_tokens=max_new_tokens,
                constrained=constrained,
                timeout=timeout,
            )
        )

    def score(self, request: Request, *, timeout: float | None = None) -> list[dict[str, str]]:
        """Answer a request of Azure's endpoint in its own JSON; see `AsyncCXRReportGen.score`."""
        return run(self._client.score(request, timeout=timeout))


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
