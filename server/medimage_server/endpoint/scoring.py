"""From the body of a request to its answer: read, asked and rendered by the client's own functions."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medimage_client.embeddings import score
from medimage_client.errors import InvalidInput
from medimage_client.heads import score_images
from medimage_client.images.dicom import is_dicom
from medimage_client.images.encoding import encode_file
from medimage_client.reports.requests import score_reports
from medimage_client.schema.embeddings import EmbeddingRequest, Layout, read_request
from medimage_client.schema.heads import HeadRequest, read_head_request
from medimage_client.schema.reports import (
    IMAGE_INPUTS,
    ReportRequest,
    is_report_request,
    read_report_requests,
    render_reports,
)
from medimage_client.schema.table import read_json
from medimage_client.wire.connection import Connection
from medimage_server.endpoint.balancing import BalancedTransport
from medimage_server.endpoint.report_events import report_events, with_comments
from medimage_server.endpoint.settings import EMBEDDINGS, REPORTS, max_rows

# Calls to Triton at once for one request: enough to fill a batch, and no more, so that a request of a thousand rows
# leaves the others their turn.
CALLS_PER_REQUEST = 4
NO_RETRIES = 0  # the caller is told when to come again; what another Triton can do is tried by the transport


@dataclass(frozen=True, slots=True)
class Question:
    """A request that has been read."""

    deployment: str
    request: EmbeddingRequest | HeadRequest | list[ReportRequest]

    @property
    def n_rows(self) -> int:
        match self.request:
            case EmbeddingRequest():
                return len(self.request.rows)
            case HeadRequest():
                return len(self.request.images)
        return len(self.request)


def read_question(body: bytes, deployment: str | None, deployments: Sequence[str]) -> Question:
    """Read a body.

    Args:
        deployment: that the caller has named; if None, the only one there is, or the one that has these columns.

    Raises:
        InvalidInput: not the schema of that deployment; has row and column where it is one cell's.
    """
    content = read_json(body)
    if deployment is None:
        deployment = deployments[0] if len(deployments) == 1 else by_columns(content)
        if deployment not in deployments:
            raise InvalidInput(f"name the deployment in path or header; there is {' and '.join(deployments)}")
    question = Question(deployment, request_of(content, deployment))
    limit = max_rows(deployment)
    if question.n_rows > limit:
        raise InvalidInput(f"'data' has {question.n_rows} rows; at most {limit} are taken in a request")
    return question


def request_of(content: Mapping[str, Any], deployment: str) -> EmbeddingRequest | HeadRequest | list[ReportRequest]:
    if deployment == REPORTS:
        return without_dicom(read_report_requests(content))
    return read_request(content) if deployment == EMBEDDINGS else read_head_request(content)


def without_dicom(requests: list[ReportRequest]) -> list[ReportRequest]:
    """The requests; for a DICOM file, which their client would decode here without any bound, raise InvalidInput."""
    for n, request in enumerate(requests):
        for column in IMAGE_INPUTS:
            image = getattr(request, column)
            if image is not None and is_dicom(image):
                raise InvalidInput("is a DICOM file; expected an image file such as PNG", row=n, column=column)
    return requests


def by_columns(content: Any) -> str:
    return REPORTS if is_report_request(content) else EMBEDDINGS


async def answer_to(question: Question, transport: BalancedTransport, *, layout: Layout, timeout: float) -> Any:
    """The answer, as what JSON is made of.

    Raises:
        MedImageError: see `responses.refusal_of`.
    """
    connection = connection_over(transport, timeout)
    if isinstance(question.request, EmbeddingRequest):
        return await score(connection, question.request, layout=layout)
    if isinstance(question.request, HeadRequest):
        return await head_answer(connection, question.deployment, question.request)
    return render_reports(await score_reports(connection, question.request, timeout=None))


async def head_answer(connection: Connection, head: str, request: HeadRequest) -> list[list[dict[str, Any]]]:
    """Azure's answer of a fine-tuned deployment: for each image its labels with their scores, the highest first."""
    if not request.images:
        return []
    found = await score_images(
        connection,
        head,
        request.images,
        encode=encode_file,
        params=request.params,
        resize="server",
        rows=range(len(request.images)),
        timeout=None,
    )
    return found.ranked()


def events_of(question: Question, transport: BalancedTransport, *, timeout: float) -> AsyncGenerator[bytes, None]:
    """The server-sent events of a question for reports."""
    assert isinstance(question.request, list)
    connection = connection_over(transport, timeout)
    return with_comments(report_events(connection, question.request, concurrency=CALLS_PER_REQUEST))


def connection_over(transport: BalancedTransport, timeout: float) -> Connection:
    """One for each request: its bound on calls at once is then the request's own."""
    return Connection(
        lambda: transport,
        timeout=timeout,
        retries=NO_RETRIES,
        concurrency=CALLS_PER_REQUEST,
        transport=transport,  # which other requests have, too: it does not end with this one
    )
