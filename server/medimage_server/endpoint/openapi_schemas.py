"""The schemas in the OpenAPI document, made of what the client's reader of requests goes by.

What a schema forbids, the endpoint refuses. The reverse cannot be said in this language: that a row has one cell for
each of `columns`, that an image is one, that a row is not empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.schema import embeddings, reports
from medimage_client.schema.embeddings import IMAGE_PARAMS
from medimage_client.schema.reports import IMAGE_INPUTS
from medimage_server.endpoint.settings import EMBEDDINGS, MAX_ROWS, REPORTS

Schema = dict[str, Any]


def ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def schemas(deployments: Sequence[str]) -> dict[str, Schema]:
    """All schemas by name."""
    named = {"Error": error_schema(), "Status": status_schema()}
    if EMBEDDINGS in deployments:
        named |= embedding_schemas()
    if REPORTS in deployments:
        named |= report_schemas()
    return named


def embedding_schemas() -> dict[str, Schema]:
    vector: Schema = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": EMBEDDING_SIZE,
        "maxItems": EMBEDDING_SIZE,
        "description": "Of length 1.",
    }
    vectors: Schema = {"type": "array", "items": ref("schemas", "Embedding"), "minItems": 1}
    one_vector: Schema = vectors | {"maxItems": 1}
    factor: Schema = {"type": "number", "description": "The logarithm of the scale of the logits; callers apply exp."}
    row = {"image_features": one_vector, "text_features": ref("schemas", "Embedding"), "scaling_factor": factor}
    rows = {"image_features": vectors, "text_features": vectors, "scaling_factor": factor}
    card = closed(rows, minProperties=1, maxProperties=1)
    return {
        "EmbeddingRequest": request(EMBEDDINGS, embeddings.COLUMNS, embedding_row(), embedding_params()),
        "Embedding": vector,
        "EmbeddingRows": {"type": "array", "items": closed(row, minProperties=1)},
        "EmbeddingCard": {"type": "array", "items": card, "maxItems": len(rows)},
        "EmbeddingObject": closed(rows),
    }


def report_schemas() -> dict[str, Schema]:
    output: Schema = {
        "type": "string",
        "description": "JSON in a text: a list of findings, each `[text, null]` or `[text, [[x_min, y_min, x_max, "
        "y_max], …]]`, as fractions of the square that the model saw.",
    }
    return {
        "ReportRequest": request(REPORTS, reports.COLUMNS, study(), report_params()),
        "Reports": {"type": "array", "items": required_all({"output": output})},
    }


def closed(properties: Mapping[str, Schema], **more: Any) -> Schema:
    """An object of these keys alone."""
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def required_all(properties: Mapping[str, Schema]) -> Schema:
    return closed(properties, required=list(properties))


def request(deployment: str, columns: Sequence[str], row: Schema, params: Schema) -> Schema:
    cells = {
        "type": "array",
        "items": {"type": "string", "nullable": True},
        "minItems": 1,
        "maxItems": len(columns),
        "description": "One cell for each of `columns`; null or an empty text for one that is not there.",
    }
    input_data = {
        "columns": {
            "type": "array",
            "items": {"type": "string", "enum": list(columns)},
            "minItems": 1,
            "uniqueItems": True,
            "description": "In any order.",
        },
        "index": {
            "type": "array",
            "items": {},
            "nullable": True,
            "description": "One entry for each row, of any kind.",
        },
        "data": {"type": "array", "items": {"anyOf": [cells, row]}, "maxItems": MAX_ROWS[deployment]},
    }
    return {
        "type": "object",
        "required": ["input_data"],
        "properties": {
            "input_data": {"type": "object", "required": ["columns", "data"], "properties": input_data},
            "params": params,
        },
    }


def cell(column: str) -> Schema:
    if column in ("image", *IMAGE_INPUTS):
        return {"type": "string", "format": "byte", "nullable": True, "description": "An image file as base64."}
    return {"type": "string", "nullable": True}


def embedding_row() -> Schema:
    row = closed({column: cell(column) for column in embeddings.COLUMNS}, minProperties=1)
    return row | {"description": "Cells by column; an image, a text or both."}


def study() -> Schema:
    cells = {column: cell(column) for column in reports.COLUMNS}
    cells["frontal_image"] |= {"nullable": False, "minLength": 1}
    return closed(cells, required=["frontal_image"]) | {"description": "Cells by column."}


def embedding_params() -> Schema:
    flag = {
        "anyOf": [
            {"type": "boolean", "nullable": True},
            {"type": "string", "pattern": "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"},
        ],
        "description": "Whether the answer has `scaling_factor`; it has by default.",
    }
    numbers = {
        name: {
            "type": "integer",
            "minimum": 0,
            "maximum": maximum,
            "nullable": True,
            "description": "0: the server's own.",
        }
        for name, maximum in IMAGE_PARAMS.items()
    }
    return {
        "type": "object",
        "nullable": True,
        "properties": {"get_scaling_factor": flag, **numbers},
        "description": "Unknown ones are ignored.",
    }


def report_params() -> Schema:
    return closed({}, nullable=True, description="There are none; empty, null or absent.")


def error_schema() -> Schema:
    always: dict[str, Schema] = {
        "message": {"type": "string", "description": "One line; it shows nothing of images and texts."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "request_id": {"type": "string"},
    }
    place: dict[str, Schema] = {
        "row": {"type": "integer", "minimum": 0, "description": "Of `data`, from 0, if one row is at fault."},
        "column": {"type": "string", "description": "Of the cell at fault, if it is one."},
    }
    return closed(always | place, required=list(always))


def status_schema() -> Schema:
    count: Schema = {"type": "integer", "minimum": 0}
    truth: Schema = {"type": "boolean"}
    text: Schema = {"type": "string"}
    by_deployment: Schema = {"type": "object", "additionalProperties": truth}
    triton = {"url": text, "version": text | {"nullable": True}, "ready": by_deployment}
    export = {"precision": text, "format": text, "checkpoint": text, "checkpoint_sha256": text | {"nullable": True}}
    return required_all(
        {
            "version": text,
            "draining": truth,
            "deployments": {
                "type": "object",
                "additionalProperties": required_all({"ready": truth, "max_rows": count}),
            },
            "exports": {"type": "object", "additionalProperties": required_all(export)},
            "tritons": {"type": "array", "items": required_all(triton)},
            "load": required_all(
                dict.fromkeys(("in_flight", "in_flight_bytes", "answered", "failed", "refused"), count)
            ),
        }
    )
