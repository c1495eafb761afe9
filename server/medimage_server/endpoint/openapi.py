"""The OpenAPI 3.0.3 document of the endpoint."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from medimage_client.schema.embeddings import Layout
from medimage_server.endpoint.headers import JSON
from medimage_server.endpoint.openapi_examples import (
    EMBEDDING_ANSWERS,
    EMBEDDING_REQUESTS,
    REPORT_ANSWERS,
    REPORT_EVENTS,
    REPORT_REQUESTS,
)
from medimage_server.endpoint.openapi_schemas import Schema, ref, schemas
from medimage_server.endpoint.report_events import MEDIA_TYPE as EVENT_STREAM
from medimage_server.endpoint.score_route import DEPLOYMENT_HEADER, LAYOUT_HEADER
from medimage_server.endpoint.settings import EMBEDDINGS, REPORTS

SECURITY = "key"
TAGS = {
    "scoring": "Embeddings and reports, with the JSON of the Azure endpoints.",
    "operation": "Health, state and numbers.",
    "description": "This document.",
}

# The request and answer schemas of a deployment, and the examples of both.
REQUEST_SCHEMAS = {EMBEDDINGS: ("EmbeddingRequest",), REPORTS: ("ReportRequest",)}
ANSWER_SCHEMAS = {
    EMBEDDINGS: ("EmbeddingRows", "EmbeddingCard", "EmbeddingObject"),
    REPORTS: ("Reports",),
}
REQUEST_EXAMPLES = {EMBEDDINGS: EMBEDDING_REQUESTS, REPORTS: REPORT_REQUESTS}
ANSWER_EXAMPLES = {EMBEDDINGS: EMBEDDING_ANSWERS, REPORTS: REPORT_ANSWERS}

# What a status means; headers that come with it, those of ALL_HEADERS aside.
MEANINGS: dict[int, tuple[str, tuple[str, ...]]] = {
    400: ("The request is not of the schema, or an image cannot be read; `message` names row and column.", ()),
    401: ("There is no key.", ("WWW-Authenticate",)),
    403: ("The key is not valid.", ()),
    404: ("No such deployment is served.", ()),
    405: ("The path does not take this method.", ("Allow",)),
    408: ("The body came too slowly.", ()),
    413: ("The body is larger than this server takes; send fewer rows.", ()),
    415: ("The body is not `application/json`, or it is compressed.", ()),
    424: ("The model failed. The same request will fail again.", ("x-ms-run-function-failed",)),
    429: ("As many requests are at work as the server takes. Nothing was done; try again.", ("Retry-After",)),
    500: ("A fault of the endpoint; its log has the place by the request id.", ()),
    503: ("No Triton is ready, or the server is about to end. Try again.", ("Retry-After",)),
    504: ("No answer within the time limit.", ()),
}
ALL_HEADERS = ("x-request-id", "x-ms-request-id", "x-ms-client-request-id", "x-ms-server-version")
SCORE_HEADERS = (DEPLOYMENT_HEADER, "x-ms-run-fn-exec-ms", "x-ms-run-function-failed")
KEY_STATUSES = (401, 403)
SCORE_STATUSES = (400, 404, 405, 408, 413, 415, 424, 429, 500, 503, 504)


def openapi(deployments: Sequence[str], *, version: str, keys: bool) -> dict[str, Any]:
    """The document, as what JSON is made of.

    Args:
        deployments: that are served, of `settings.MODELS`.
        version: of the server.
        keys: whether the server asks for one.
    """
    document: dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": "medimage-triton scoring endpoint",
            "version": version,
            "description": "MedImageInsight and CXRReportGen with the JSON of their Azure endpoints. "
            "Research only, not for clinical use.",
            "license": {"name": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths(deployments, keys=keys),
        "components": {
            "schemas": schemas(deployments),
            "headers": headers(deployments),
            "responses": {str(status): refusal(status) for status in MEANINGS if keys or status not in KEY_STATUSES},
            "examples": dict(examples(deployments)),
        },
    }
    if keys:
        document["components"]["securitySchemes"] = {
            SECURITY: {"type": "http", "scheme": "bearer", "description": "A key of this server."}
        }
    return document


def examples(deployments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for name in deployments:
        yield from REQUEST_EXAMPLES[name].items()
        yield from ANSWER_EXAMPLES[name].items()
    if REPORTS in deployments:
        yield from REPORT_EVENTS.items()


# Routes


def paths(deployments: Sequence[str], *, keys: bool) -> dict[str, Any]:
    document = json_answer("An OpenAPI document.", {"type": "object"})
    return {
        "/score": {"post": score("score", deployments, keys=keys)},
        **{f"/{name}/score": {"post": score(f"score_{name}", [name], keys=keys)} for name in deployments},
        "/": get(
            "health",
            "operation",
            "Whether every deployment can be asked.",
            text_answer("It can.", "text/plain", "Healthy"),
            statuses=(503,),
        ),
        "/live": get(
            "live",
            "operation",
            "Whether the process runs.",
            text_answer("It does.", "text/plain", "Alive"),
        ),
        "/status": get(
            "status",
            "operation",
            "Versions, readiness and load.",
            json_answer("The state of this server.", ref("schemas", "Status")),
            keys=keys,
        ),
        "/metrics": get(
            "metrics",
            "operation",
            "Numbers for Prometheus, Triton's own among them.",
            text_answer("Metrics in Prometheus' text format.", "text/plain"),
            keys=keys,
        ),
        "/openapi.json": get("openapi", "description", "This document.", document),
        "/swagger.json": get("swagger", "description", "This document, where Azure's server has it.", document),
        "/docs": get(
            "docs",
            "description",
            "This document as a page to read.",
            text_answer("A page.", "text/html"),
        ),
    }


def get(
    operation_id: str,
    tag: str,
    summary: str,
    answer: dict[str, Any],
    *,
    statuses: Sequence[int] = (),
    keys: bool = False,
) -> dict[str, Any]:
    return {
        "get": {
            "operationId": operation_id,
            "tags": [tag],
            "summary": summary,
            "parameters": id_parameters(),
            "responses": {"200": answer, **refusals((*statuses, 405, 500), keys=keys)},
            **security(keys),
        }
    }


def score(operation_id: str, deployments: Sequence[str], *, keys: bool) -> dict[str, Any]:
    description = (
        "Which deployment is meant is said by the path, by the header, or else by the columns. "
        "The body is strict JSON in UTF-8: no NaN or Infinity, and each key once. "
        "Images are sent themselves, as base64 with or without line breaks; a URL is never followed."
    )
    if REPORTS in deployments:
        description += f" With `Accept: {EVENT_STREAM}`, reports are sent as they are written."
    return {
        "operationId": operation_id,
        "tags": ["scoring"],
        "summary": f"Ask {' or '.join(deployments)}.",
        "description": description,
        "parameters": [*score_parameters(deployments), *id_parameters()],
        "requestBody": {
            "required": True,
            "content": {JSON: media(deployments, REQUEST_SCHEMAS, REQUEST_EXAMPLES)},
        },
        "responses": {"200": score_answer(deployments), **refusals(SCORE_STATUSES, keys=keys)},
        **security(keys),
    }


def media(
    deployments: Sequence[str],
    schema_names: Mapping[str, Sequence[str]],
    named_examples: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    references = [ref("schemas", schema) for name in deployments for schema in schema_names[name]]
    return {
        # not oneOf: the answer to no rows, [], is of several layouts
        "schema": references[0] if len(references) == 1 else {"anyOf": references},
        "examples": {example: ref("examples", example) for name in deployments for example in named_examples[name]},
    }


def score_answer(deployments: Sequence[str]) -> dict[str, Any]:
    content = {JSON: media(deployments, ANSWER_SCHEMAS, ANSWER_EXAMPLES)}
    if REPORTS in deployments:
        content[EVENT_STREAM] = {
            "schema": {
                "type": "string",
                "description": "Server-sent events: `text` with a piece of a row's report, `row` with its `output` and "
                "`status` (complete, truncated or malformed), `end` after the last row, or `error` with what is the "
                "body of an error else. Rows come mixed. Comments keep the connection alive.",
            },
            "examples": {name: ref("examples", name) for name in REPORT_EVENTS},
        }
    return {
        "description": "The answer, in the order of the rows.",
        "headers": header_refs((*ALL_HEADERS, *SCORE_HEADERS)),
        "content": content,
    }


def score_parameters(deployments: Sequence[str]) -> list[dict[str, Any]]:
    deployment = header_parameter(
        DEPLOYMENT_HEADER, "The deployment that is meant.", {"type": "string", "enum": list(deployments)}
    )
    layout = header_parameter(
        LAYOUT_HEADER,
        "The layout of an answer of medimageinsight; without it, that of the server's settings.",
        {"type": "string", "enum": list(get_args(Layout))},
    )
    return [deployment, layout] if EMBEDDINGS in deployments else [deployment]


def id_parameters() -> list[dict[str, Any]]:
    return [
        header_parameter(
            "x-request-id",
            "The caller's name for the request, 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'; any other is replaced.",
            {"type": "string"},
        )
    ]


def header_parameter(name: str, description: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def security(keys: bool) -> dict[str, Any]:
    return {"security": [{SECURITY: []}]} if keys else {}


# Answers


def refusals(statuses: Sequence[int], *, keys: bool) -> dict[str, Any]:
    return {
        str(status): ref("responses", str(status)) for status in sorted((*statuses, *(KEY_STATUSES if keys else ())))
    }


def refusal(status: int) -> dict[str, Any]:
    description, names = MEANINGS[status]
    error = {
        "message": HTTPStatus(status).phrase,
        "status": status,
        "request_id": "8f14e45f-ceea-467f-a8d5-0c9d1b6b3a1e",
    }
    return {
        "description": description,
        "headers": header_refs((*ALL_HEADERS, *names)),
        "content": {JSON: {"schema": ref("schemas", "Error"), "example": error}},
    }


def json_answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "headers": header_refs(ALL_HEADERS), "content": {JSON: {"schema": schema}}}


def text_answer(description: str, media_type: str, example: str | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"type": "string"}}
    if example is not None:
        content["example"] = example
    return {"description": description, "headers": header_refs(ALL_HEADERS), "content": {media_type: content}}


def header_refs(names: Sequence[str]) -> dict[str, Any]:
    return {name: ref("headers", name) for name in names}


def headers(deployments: Sequence[str]) -> dict[str, Any]:
    text: Schema = {"type": "string"}

    def header(description: str, schema: Schema, *, always: bool = True) -> dict[str, Any]:
        return {"description": description, "required": always, "schema": schema}

    return {
        "x-request-id": header("The caller's own, or one made for the request; it is in the log.", text),
        "x-ms-request-id": header("The same, or the caller's own.", text),
        "x-ms-client-request-id": header("The caller's own, if there was one.", text, always=False),
        "x-ms-server-version": header("medimage-triton/VERSION.", text),
        DEPLOYMENT_HEADER: header("The deployment that answered.", {"type": "string", "enum": list(deployments)}),
        "x-ms-run-fn-exec-ms": header("Milliseconds in the model; not on a stream.", {"type": "number"}, always=False),
        "x-ms-run-function-failed": header(
            "Whether the model failed; not on a stream.", {"type": "string", "enum": ["True", "False"]}, always=False
        ),
        "WWW-Authenticate": header("Bearer.", text),
        "Retry-After": header("Seconds after which to try again.", {"type": "integer", "minimum": 1}),
        "Allow": header("The methods that the path takes.", text),
    }
