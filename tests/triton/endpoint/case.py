"""A request, and how it is to be answered."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.triton.endpoint.broken_files import encode
from tests.triton.endpoint.raw_http import CANARY, request

IMAGE = encode("PNG")
TEXT = f"x-ray chest anteroposterior {CANARY}"


@dataclass(frozen=True)
class Case:
    id: str
    make: bytes | Callable[[], bytes] = field(repr=False)  # what is sent; what is large is made only then
    status: int
    message: str = ""  # a part of it

    @property
    def raw(self):
        return self.make() if callable(self.make) else self.make


def base64_text(file):
    return base64.b64encode(file).decode()


def embeddings(data, columns=("image", "text"), **more):
    """A request for embeddings, as JSON; `more` is what stands beside `input_data`."""
    return json.dumps({"input_data": {"columns": columns, "data": data}, **more}).encode()


def reports(data, columns=("frontal_image", "indication"), **more):
    return embeddings(data, columns, **more)


GOOD = request(body=embeddings([[base64_text(IMAGE), TEXT]]))
GOOD_TEXT = request(body=embeddings([["", TEXT]]))
