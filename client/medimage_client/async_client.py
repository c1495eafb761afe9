"""The asyncio clients of MedImageInsight and CXRReportGen. `client.py` offers the same without asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast, get_args, overload

import numpy as np
from numpy.typing import NDArray

from medimage_client.archive.choice import Choice
from medimage_client.archive.report_images import StudyInput, read_report_images
from medimage_client.constants import (
    DEFAULT_CONCURRENCY,
    DEFAULT_REPORT_TIMEOUT_S,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    EMBEDDING_SIZE,
)
from medimage_client.embeddings import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    Embeddings,
    embed_images,
    embed_texts,
    probabilities,
    score,
)
from medimage_client.errors import InvalidInput
from medimage_client.heads import check_names, score_images, score_vectors
from medimage_client.images.encoding import ImageInput, encode_image
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow, Window
from medimage_client.labels.prompts import Labels, check_list, read_prompts
from medimage_client.reports.report import Report, report_of
from medimage_client.reports.requests import (
    MODEL,
    WHOLE_OUTPUTS,
    infer_report,
    request_of,
    score_reports,
    stream_report,
)
from medimage_client.reports.stream import AsyncReportStream
from medimage_client.schema.embeddings import Answer, Layout, RequestParams, read_request
from medimage_client.schema.heads import HeadScores
from medimage_client.schema.reports import Mode, ReportProgress, ReportRequest, read_report_requests, render_reports
from medimage_client.schema.table import Request, read_json
from medimage_client.wire.connection import Connection, connector, gather
from medimage_client.wire.posted_requests import post_embeddings, post_reports
from medimage_client.wire.scoring_messages import no_place_for
from medimage_client.wire.transport import Outputs, Transport


class AsyncMedImageInsight:
    """MedImageInsight on a Triton server or behind a scoring URI, for asyncio.

    Many inputs are sent as several concurrent requests, and results are in the order of the inputs. The first error is
    raised, and requests that have no answer yet are cancelled.

    A scoring URI takes Azure's JSON, which has no `resize` and no empty texts.

    Args:
        url: of a Triton, `grpc://host:port`, `grpcs://…`, `http://…` or `https://…`, or a scoring URI, `https://…/score`.
        api_key: of the scoring URI, if it has one.
        timeout: seconds for one request with its retries. A call with many inputs makes many requests; bound it as a
            whole with `asyncio.timeout`.
        retries: attempts after the first, made after failed connections and when the server is overloaded.
        concurrency: requests in flight, over all calls of this client.
        shared_memory: pass images of 1 MiB and more through shared memory; the server must run on the same machine.
        transport: a connection to use instead of one to `url`.

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
        self._connection = Connection(
            connector(url, api_key=api_key, shared_memory=shared_memory),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. A later call opens another."""
        await self._connection.close()

    async def is_ready(self) -> bool:
        """Whether the server answers now and has the models loaded; not retried."""
        return await self._connection.is_ready([IMAGE_ENCODER.model, TEXT_ENCODER.model])

    async def embed_images(
        self,
        images: Sequence[ImageInput],
        *,
        window: Window | None = None,
        dicom_window: DicomWindow = "file",
        frame: int | None = None,
        image_standardization_image_size: int = 0,
        image_standardization_jpeg_compression_ratio: int = 0,
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> Embeddings:
        """Embeddings of images, (n, 1024) float32, L2-normalised; (0, 1024) for none.

        Args:
            images: any mix of paths, bytes, base64 text, Pillow images, arrays and DICOM files.
            window: (low, high), for arrays that are not uint8 and for DICOM files.
            dicom_window: how DICOM files are shown: `file`, by their own VOI LUT or window, or by `window` if that is
                given; `percentile`, from the 1st to the 99th percentile, as Microsoft's healthcareai toolkit does it;
                or (low, high).
            frame: of multi-frame DICOM files, from 0; the first if None.
            image_standardization_image_size: Azure's parameter, side in pixels; 0 for the server's own, 512.
            image_standardization_jpeg_compression_ratio: Azure's parameter, JPEG quality; 0 for the server's own, 75.
            resize: where large images are resized to the square that preprocessing starts with. `client` sends a PNG of
                the square: far fewer bytes, and the same vectors.
            timeout: seconds for one request, instead of the client's.

        Raises:
            InvalidInput: names the image by its index, as `images[3]: …`, which is also its `row`.
            MedImageError: any other failure.
        """
        params = RequestParams(
            image_standardization_image_size=image_standardization_image_size,
            image_standardization_jpeg_compression_ratio=image_standardization_jpeg_compression_ratio,
        )
        encode = partial(encode_image, window=window, dicom_window=dicom_window, frame=frame)
        return await self._embed_images(images, encode, params=params, resize=resize, timeout=timeout)

    async def embed_texts(self, texts: Sequence[str], *, timeout: float | None = None) -> Embeddings:
        """Embeddings of texts, (n, 1024) float32, L2-normalised; (0, 1024) for none. Equal texts are sent once.

        The model reads the first 77 tokens of a text.

        Raises:
            InvalidInput: names the text by its index, as `texts[3]: …`, which is also its `row`.
            MedImageError: any other failure.
        """
        check_list(texts, "texts")
        embedded = await embed_texts(
            self._connection, texts, rows=range(len(texts)), place="texts[{}]".format, timeout=timeout
        )
        return embedded.features

    @overload
    async def classify(
        self,
        images: Sequence[ImageInput] | Embeddings,
        labels: Labels,
        *,
        head: None = None,
        multilabel: bool = False,
        template: str = "{}",
        dicom_window: DicomWindow = "file",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> NDArray[np.float32]: ...

    @overload
    async def classify(
        self,
        images: Sequence[ImageInput] | Embeddings,
        *,
        head: str,
        dicom_window: DicomWindow = "file",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> HeadScores: ...

    @overload
    async def classify(
        self,
        images: Sequence[ImageInput] | Embeddings,
        *,
        head: list[str] | tuple[str, ...],
        dicom_window: DicomWindow = "file",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> dict[str, HeadScores]: ...

    async def classify(
        self,
        images: Sequence[ImageInput] | Embeddings,
        labels: Labels | None = None,
        *,
        head: str | list[str] | tuple[str, ...] | None = None,
        multilabel: bool = False,
        template: str = "{}",
        dicom_window: DicomWindow = "file",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> NDArray[np.float32] | HeadScores | dict[str, HeadScores]:
        """Zero-shot probabilities, (n, labels) float32; or with `head` the scores of a trained head.

        Several heads give a dict by their names, and one run of the image encoder serves them all; a scoring URI, which
        takes no vectors, is asked for each of them.

        Args:
            images: what `embed_images` takes, or its result, a floating-point (n, 1024) array.
            head: name of a head, or a list of names, that `medimage export head` put beside the encoder.
            labels: texts such as `x-ray chest anteroposterior Pneumonia`, the pattern the model was trained on; or a
                mapping from each label to its prompts, whose embeddings are averaged and normalised.
            multilabel: rate each label independently (sigmoid); otherwise a row sums to 1 (softmax).
            template: text around each label or prompt, which replaces `{}`.
            dicom_window, resize: as in `embed_images`.
            timeout: seconds for one request, instead of the client's.

        Raises:
            InvalidInput: no labels, a template without `{}`, or as for `embed_images` and `embed_texts`.
            MedImageError: any other failure.
        """
        if (labels is None) == (head is None):
            raise InvalidInput("give labels or head, one of them")
        encode = partial(encode_image, dicom_window=dicom_window, advise_window=False)
        if head is not None:
            if multilabel or template != "{}":
                raise InvalidInput("multilabel and template are for labels; a head has its own")
            return await self._classify_by_heads(images, head, encode, resize=resize, timeout=timeout)
        assert labels is not None
        prompts = read_prompts(labels, template)
        label_embedding = await embed_texts(
            self._connection,
            prompts.texts,
            rows=range(len(prompts.texts)),
            place=prompts.places.__getitem__,
            timeout=timeout,
        )
        assert label_embedding.scaling_factor is not None  # there is a label
        if isinstance(images, np.ndarray):
            features = check_embeddings(images)
        else:
            features = await self._embed_images(images, encode, params=RequestParams(), resize=resize, timeout=timeout)
        label_features = prompts.by_label(label_embedding.features)
        return probabilities(features, label_features, label_embedding.scaling_factor, multilabel=multilabel)

    async def score(
        self,
        request: Request,
        *,
        layout: Layout = "rows",
        resize: Resize = "server",
        timeout: float | None = None,
    ) -> Answer:
        """Answer a request of Azure's MedImageInsight endpoint in its own JSON.

        A scoring URI gets the request as it was given, in one call; in several, on borders of rows, if it has more than
        1,024 rows or 60 MiB.

        Args:
            request: the decoded object, its JSON text, or the path (`os.PathLike`) of a JSON file.
            layout: `rows` as the endpoint answers, `card` as in the model card, `object` as in the documentation.
            resize: as in `embed_images`.
            timeout: seconds for one call to the server, instead of the client's.

        Raises:
            InvalidInput: names `row` and `column`, as `row 2, column 'image': …`.
            MedImageError: any other failure.
        """
        if layout not in get_args(Layout):
            raise InvalidInput(f"layout is {layout!r}; expected one of {list(get_args(Layout))}")
        if self._connection.is_to_scoring_uri:
            if resize != "server":
                raise no_place_for(f"resize={resize!r}")
            return await post_embeddings(self._connection, request, layout=layout, timeout=timeout)
        return await score(
            self._connection, read_request(read_json(request)), layout=layout, resize=resize, timeout=timeout
        )

    async def _classify_by_heads(
        self,
        images: Sequence[ImageInput] | Embeddings,
        heads: str | Sequence[str],
        encode: Callable[..., bytes],
        *,
        resize: Resize,
        timeout: float | None,
    ) -> HeadScores | dict[str, HeadScores]:
        names = [heads] if isinstance(heads, str) else [*heads]
        check_names(names)
        to_scoring_uri = self._connection.is_to_scoring_uri
        if isinstance(images, np.ndarray) and to_scoring_uri:
            raise InvalidInput("a scoring URI takes images, not embeddings; give images, or the url of a Triton server")
        if isinstance(images, np.ndarray) or (len(names) > 1 and not to_scoring_uri):
            features = (
                check_embeddings(images)
                if isinstance(images, np.ndarray)
                else await self._embed_images(images, encode, params=RequestParams(), resize=resize, timeout=timeout)
            )
            found = await gather([score_vectors(self._connection, name, features, timeout=timeout) for name in names])
        else:
            check_list(images, "images")
            found = [
                await score_images(
                    self._connection,
                    name,
                    images,
                    encode=encode,
                    params=RequestParams(),
                    resize=resize,
                    rows=range(len(images)),
                    place="images[{}]".format,
                    timeout=timeout,
                )
                for name in names
            ]
        return found[0] if isinstance(heads, str) else dict(zip(names, found, strict=True))

    async def _embed_images(
        self,
        images: Sequence[ImageInput],
        encode: Callable[..., bytes],
        *,
        params: RequestParams,
        resize: Resize,
        timeout: float | None,
    ) -> Embeddings:
        check_list(images, "images")
        embedded = await embed_images(
            self._connection,
            images,
            encode=encode,
            rows=range(len(images)),
            place="images[{}]".format,
            params=params,
            resize=resize,
            timeout=timeout,
        )
        return embedded.features


class AsyncCXRReportGen:
    """CXRReportGen on a Triton server or behind a scoring URI, for asyncio.

    A scoring URI takes Azure's JSON, which has no `mode`, `phrase`, `max_new_tokens` and `constrained`. Azure's own
    endpoint returns no status either, so only `score` works with it.

    Args:
        url: of a Triton, `grpc://host:port`, `grpcs://…`, `http://…` or `https://…`, or a scoring URI, `https://…/score`.
        api_key: of the scoring URI, if it has one.
        timeout: seconds for one report with its retries, or for one stream to its end.
        retries: attempts after the first, made after failed connections and when the server is overloaded; a stream is
            not retried once a piece of it has arrived.
        concurrency: reports in flight, over all calls of this client; streams are not counted.
        transport: a connection to use instead of one to `url`.

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
        self._connection = Connection(
            connector(url, api_key=api_key, shared_memory=False),  # a report takes seconds, its images milliseconds
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. A later call opens another."""
        await self._connection.close()

    async def is_ready(self) -> bool:
        """Whether the server answers now and has the models loaded; not retried."""
        return await self._connection.is_ready([MODEL])

    async def report(
        self,
        frontal: ImageInput | None = None,
        *,
        study: StudyInput | None = None,
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
        dicom_window: DicomWindow = "file",
        timeout: float | None = None,
    ) -> Report:
        """The findings of a chest X-ray study.

        Args:
            frontal: the current frontal image; a path, bytes, base64 text, a Pillow image, an array or a DICOM file.
            study: where the images are, instead of `frontal`: a folder, a zip, a DICOMDIR, `dicomweb+https://…`, what
                `read_studies` made of it, or a `Choice`. `choose` says how the images are chosen, and the report's
                `choice` which.
            lateral, prior: the current lateral image, and the frontal image of an earlier study; with `study`, instead
                of those that would be chosen.
            indication, technique, comparison: sections of the request form; empty ones are not sent.
            prior_report: the report of the earlier study, whose image is `prior`.
            mode: `grounded` for findings with boxes, `findings` for plain text, `phrase` to locate one finding.
            phrase: the finding to locate, in mode `phrase` and only there.
            max_new_tokens: length at which the answer is cut; None for the server's default of the mode.
            constrained: keep the model to its grammar, so that no answer is malformed.
            dicom_window: how DICOM files are shown: `file`, by their own VOI LUT or window; `percentile`, from the 1st
                to the 99th percentile; or (low, high).
            timeout: seconds for this report, instead of the client's; an archive has a limit of its own.

        Raises:
            InvalidInput: names the input at fault, as `lateral_image: …`, which is also its `column`; or no frontal
                image can be told in the study.
            MedImageError: any other failure.
        """
        request = request_before(
            study,
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
        )
        request, choice = await with_images(request, study)
        outputs = await infer_report(self._connection, request, WHOLE_OUTPUTS, timeout, dicom_window)
        return report_of(outputs, choice)

    def stream(
        self,
        frontal: ImageInput | None = None,
        *,
        study: StudyInput | None = None,
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
        dicom_window: DicomWindow = "file",
        on_progress: Callable[[ReportProgress], object] | None = None,
        timeout: float | None = None,
    ) -> AsyncReportStream:
        """The report as it is written: an iterator of pieces of text, which `reports.grammar.FindingParser` can parse.

        Arguments and errors are those of `report`. The request is sent when the first piece is read; errors of
        images, of an archive and of the server are raised there. Closing the stream cancels the request on the server.

        Args:
            on_progress: called before the first piece, also from another thread: when the request has arrived, and as
                its prompt is read. Older servers tell nothing.
        """
        request = request_before(
            study,
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
        )
        responses = stream_study(
            self._connection, request, study, timeout, dicom_window, progress=on_progress is not None
        )
        return AsyncReportStream(responses, on_progress)

    async def score(self, request: Request, *, timeout: float | None = None) -> list[dict[str, str]]:
        """Answer a request of Azure's CXRReportGen endpoint in its own JSON.

        A scoring URI gets the request as it was given, in one call; in several, on borders of rows, if it has more than
        10 rows or 60 MiB.

        Args:
            request: the decoded object, its JSON text, or the path (`os.PathLike`) of a JSON file.
            timeout: seconds for one report, or one call to a scoring URI, instead of the client's.

        Returns:
            One object per row, in order, whose `output` is the JSON text of `[[text, null or boxes], …]`.

        Raises:
            InvalidInput: names `row` and `column`, as `row 2, column 'lateral_image': …`.
            MedImageError: any other failure.
        """
        if self._connection.is_to_scoring_uri:
            return await post_reports(self._connection, request, timeout=timeout)
        studies = read_report_requests(read_json(request))
        return render_reports(await score_reports(self._connection, studies, timeout))


def request_before(study: StudyInput | None, frontal: ImageInput | None, **options: Any) -> ReportRequest:
    """The request; with an empty frontal image as long as a study has not told its own."""
    if study is None:
        request = request_of(cast(ImageInput, frontal), **options)  # None is refused with the rest of the request
        check_prior(request)
        return request
    if frontal is not None:
        raise InvalidInput(
            "frontal and study are both given; choose(read_studies(…), frontal=UID) overrules the choice"
        )
    return request_of(b"", **options)


async def with_images(request: ReportRequest, study: StudyInput | None) -> tuple[ReportRequest, Choice | None]:
    """The request with the images of its study, if it has one.

    Raises:
        InvalidInput: as of `report_images`, or a report is given of a prior image that is not there.
    """
    if study is None:
        return request, None
    images = await asyncio.to_thread(
        read_report_images, study, lateral=request.lateral_image, prior=request.prior_image
    )
    request = replace(request, frontal_image=images.frontal, lateral_image=images.lateral, prior_image=images.prior)
    check_prior(request)
    return request, images.choice


async def stream_study(
    connection: Connection,
    request: ReportRequest,
    study: StudyInput | None,
    timeout: float | None,
    dicom_window: DicomWindow,
    *,
    progress: bool,
) -> AsyncGenerator[Outputs | Choice, None]:
    """The choice of images, if one is made, and the responses of `stream_report`."""
    request, choice = await with_images(request, study)
    if choice is not None:
        yield choice
    async with aclosing(stream_report(connection, request, timeout, dicom_window, progress=progress)) as responses:
        async for outputs in responses:
            yield outputs


def check_prior(request: ReportRequest) -> None:
    """Refuse an earlier report without its image: the model's prompt has no place for it, so it would be dropped."""
    if request.prior_report and request.prior_image is None:
        raise InvalidInput(
            "is given without prior, the image of that study; pass the image too, or leave the report out",
            column="prior_report",
        )


def check_embeddings(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 2 or array.shape[1] != EMBEDDING_SIZE or array.dtype.kind != "f":
        raise InvalidInput(
            f"images is a {array.dtype} array of shape {array.shape}; expected embeddings, floating-point "
            f"(n, {EMBEDDING_SIZE}), or a list of images"
        )
    return array
