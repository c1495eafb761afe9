"""The sample requests of the Azure endpoint, from its documentation (deploy-medimageinsight.md) and its model cards.

Below them the readers, of whatever a caller holds.
"""

import base64

from medimage_client.schema import embeddings, reports
from medimage_client.schema.table import read_json

# "Request example", a simple inference on a single string: the body as it stands there
TEXT_ONLY = """{
  "input_data": {
    "columns": [
      "image",
      "text"
    ],
    "index":[0],
    "data": [
      ["", "a quick brown fox jumps over the lazy dog"]
    ]
  },
  "params": {}
}"""

# "Request example", an image and a string: a 2 x 2 picture with line breaks, and the flag as a text
TWO_BY_TWO = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAYAAABytg0kAAAAAXNSR0IArs4c6QAAAARnQU1BAACx\njwv8YQUAAAAJcEhZcwAAFiUAABYlAUlSJPAA"
    "AAAbSURBVBhXY/gUoPS/fhfDfwaGJe///9/J8B8A\nVGwJ5VDvPeYAAAAASUVORK5CYII=\n"
)
IMAGE_AND_TEXT = {
    "input_data": {
        "columns": ["image", "text"],
        "index": [0],
        "data": [[TWO_BY_TWO, "x-ray chest anteroposterior Pleural Effusion"]],
    },
    "params": {"get_scaling_factor": "true"},
}


def card_request(image):
    """The cards' "Sample inputs", for the bytes of an image file."""
    return {
        "input_data": {
            "columns": ["image", "text"],
            "index": [0],
            "data": [[base64.encodebytes(image).decode("utf-8"), "x-ray chest anteroposterior Cardiomegaly"]],
        },
        "params": {"get_scaling_factor": True},
    }


def read_request(request):
    return embeddings.read_request(read_json(request))


def read_report_requests(request):
    return reports.read_report_requests(read_json(request))


def is_report_request(request):
    return reports.is_report_request(read_json(request))
