"""`score()` at a scoring URI: the request is posted as it was given, and the answer is checked and laid out.

It is read here first, so that what is wrong with it is said before anything is sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medimage_client.errors import InvalidInput, MedImageError
from medimage_client.schema import embeddings, reports
from medimage_client.schema.embeddings import Answer, EmbeddingRow, Layout, read_request, render_answer
from medimage_client.schema.parts import Part, parts_of
from medimage_client.schema.reports import read_report_requests, render_reports
from medimage_client.schema.table import Request, loaded, read_json
from medimage_client.wire.connection import Connection, gather
from medimage_client.wire.scoring_messages import read_text, read_vectors

Rows = Sequence[Mapping[str, Any]]


async def post_embeddings(connection: Connection, request: Request, *, layout: Layout, timeout: float | None) -> Answer:
    """The answer to a request of MedImageInsight's, in this layout whatever the endpoint's own is.

    Raises:
        InvalidInput: has row and column of the cell at fault.
        MedImageError: see `errors.py`.
    """
    given = loaded(request)
    content = read_json(given)
    parsed = read_request(content)
    answers = await post(connection, parts_of(given, content, max_rows=embeddings.MAX_ROWS), timeout)
    images = {n: answers[n] for n, row in enumerate(parsed.rows) if row.image is not None}
    texts = {n: answers[n] for n, row in enumerate(parsed.rows) if row.text is not None}
    image_features = dict(zip(images, read_vectors([*images.values()], "image_features"), strict=True))
    text_features = dict(zip(texts, read_vectors([*texts.values()], "text_features"), strict=True))
    scaling_factor = None
    if answers and parsed.params.get_scaling_factor:
        scaling_factor = float(read_vectors(answers, "scaling_factor", size=1)[0, 0])
    rows = [
        EmbeddingRow(image_features=image_features.get(n), text_features=text_features.get(n))
        for n in range(len(answers))
    ]
    return render_answer(rows, scaling_factor=scaling_factor, layout=layout)


async def post_reports(connection: Connection, request: Request, *, timeout: float | None) -> list[dict[str, str]]:
    """The answer to a request of CXRReportGen's; errors as above."""
    given = loaded(request)
    content = read_json(given)
    read_report_requests(content)
    answers = await post(connection, parts_of(given, content, max_rows=reports.MAX_ROWS), timeout)
    return render_reports([read_text(answer, "output") for answer in answers])


async def post(connection: Connection, parts: Iterable[Part], timeout: float | None) -> Rows:
    """The rows of the answers to all parts, in order."""

    async def answer_to(part: Part) -> Rows:
        try:
            async with connection.slots:
                return await connection.score(part.body, part.n_rows, timeout=timeout)
        except InvalidInput as error:
            raise error if error.row is None else error.at(row=part.first_row + error.row) from error
        except MedImageError as error:
            if error.row is not None:
                error.row += part.first_row
            raise

    return [row for answer in await gather([answer_to(part) for part in parts]) for row in answer]
