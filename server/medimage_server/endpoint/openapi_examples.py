"""Examples in the OpenAPI document: requests of the published model cards and documentation, and answers like theirs.

Every request can be sent as it stands: its image is the picture of 2 x 2 pixels in the documentation's own example
(MicrosoftDocs/azure-ai-docs, deploy-medimageinsight.md), with line breaks as there.
"""

import json
from typing import Any

from medimage_client.constants import EMBEDDING_SIZE

IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAYAAABytg0kAAAAAXNSR0IArs4c6QAAAARnQU1BAACx\njwv8YQUAAAAJcEhZcwAAFiUAABYlAUlSJPAA"
    "AAAbSURBVBhXY/gUoPS/fhfDfwaGJe///9/J8B8A\nVGwJ5VDvPeYAAAAASUVORK5CYII=\n"
)
SCALING_FACTOR = 4.513362407684326  # of the model card; a logarithm
VECTOR = [EMBEDDING_SIZE**-0.5] * EMBEDDING_SIZE  # of length 1, as every embedding


def example(summary: str, value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}


def table(columns: list[str], *data: Any, **params: Any) -> dict[str, Any]:
    return {"input_data": {"columns": columns, "index": list(range(len(data))), "data": list(data)}, "params": params}


EMBEDDING_REQUESTS = {
    "image-and-text": example(
        "An image and a text, as on the model card",
        table(
            ["image", "text"],
            [IMAGE, "x-ray chest anteroposterior Cardiomegaly"],
            get_scaling_factor=True,
        ),
    ),
    "text-only": example(
        "A text, as in the documentation", table(["image", "text"], ["", "a quick brown fox jumps over the lazy dog"])
    ),
    "image-only": example("An image, with one column", table(["image"], [IMAGE])),
    "mixed": example(
        "Rows of every kind, as lists and as objects; null and an empty text stand for what a row has not",
        table(
            ["image", "text"],
            [IMAGE, "x-ray chest anteroposterior Pneumonia"],
            [None, "x-ray chest anteroposterior Pleural Effusion"],
            [IMAGE, ""],
            {"text": "x-ray chest anteroposterior Atelectasis"},
            get_scaling_factor=False,
            image_standardization_image_size=512,
            image_standardization_jpeg_compression_ratio=75,
        ),
    ),
}

REPORT_REQUESTS = {
    "study": example(
        "Frontal and lateral image, as on the model card",
        table(
            ["frontal_image", "lateral_image", "indication", "technique", "comparison"],
            [IMAGE, IMAGE, "Pneumonia", "One view chest", "None"],
        ),
    ),
    "frontal-only": example("The least that is needed", table(["frontal_image"], [IMAGE])),
}

EMBEDDING_ANSWERS = {
    "rows": example(
        "Layout rows: an object for each row",
        [{"image_features": [VECTOR], "text_features": VECTOR, "scaling_factor": SCALING_FACTOR}],
    ),
    "card": example(
        "Layout card: an object for each key, with the vectors of all rows",
        [{"image_features": [VECTOR]}, {"text_features": [VECTOR]}, {"scaling_factor": SCALING_FACTOR}],
    ),
    "object": example(
        "Layout object: one object, with the vectors of all rows",
        {"image_features": [VECTOR], "text_features": [VECTOR], "scaling_factor": SCALING_FACTOR},
    ),
}

FINDINGS = json.dumps(
    [["The heart size is normal.", None], ["The aorta is tortuous.", [[0.415, 0.225, 0.635, 0.755]]]]
)  # of the model card
REPORT_ANSWERS = {"reports": example("One report", [{"output": FINDINGS}])}


def event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


REPORT_EVENTS = {
    "stream": example(
        "One report while it is written",
        event("text", {"row": 0, "text": "<obj>The heart size is"})
        + event("text", {"row": 0, "text": " normal.</obj>"})
        + event("row", {"row": 0, "output": FINDINGS, "status": "complete"})
        + event("end", {}),
    )
}
