"""JSON that is not a request: each key missing, null and of each wrong type; tables that are none."""

import json

from tests.triton.endpoint.case import IMAGE, Case, base64_text, embeddings, reports
from tests.triton.endpoint.raw_http import CANARY, request

WRONG = {
    "null": (None, "missing or null"),
    "boolean": (True, "a boolean"),
    "number": (12, "a number"),
    "text": (CANARY, "a string"),
    "list": ([CANARY], "a list"),
    "object": ({CANARY: CANARY}, "an object"),
}
FLAG, SIZE, QUALITY = (
    "get_scaling_factor",
    "image_standardization_image_size",
    "image_standardization_jpeg_compression_ratio",
)
HIDDEN = f"a string of {len(CANARY)} characters"


def document(**input_data):
    return json.dumps({"input_data": input_data}).encode()


def wrong(place, right, make):
    """A case for each type that is not right at a place."""
    return {
        f"{place.replace('_', '-')}-is-{word}": (make(value), f"'{place}' is {name}")
        for word, (value, name) in WRONG.items()
        if word not in right
    }


TABLES = {
    **wrong("input_data", ["object"], lambda value: json.dumps({"input_data": value}).encode()),
    **wrong("columns", ["list"], lambda value: document(columns=value, data=[])),
    **wrong("data", ["list"], lambda value: document(columns=["text"], data=value)),
    **wrong("index", ["list", "null"], lambda value: document(columns=["text"], data=[[CANARY]], index=value)),
    **wrong("params", ["object", "null"], lambda value: embeddings([[None, CANARY]], params=value)),
    "only-unknown-keys": (json.dumps({CANARY: 1}).encode(), "'input_data' is missing or null"),
    "input-data-with-a-capital": (json.dumps({"Input_Data": {}}).encode(), "'input_data' is missing or null"),
    "inputs-of-triton": (b'{"inputs":[{"name":"text","shape":[1,1],"datatype":"BYTES"}]}', "'input_data' is missing"),
    "records": (
        json.dumps({"input_data": [{"image": None, "text": CANARY}]}).encode(),
        "'input_data' is a list; expected an object with 'columns' and 'data'",
    ),
    "columns-missing": (document(data=[[CANARY]]), "'columns' is missing or null"),
    "columns-empty": (document(columns=[], data=[]), "'columns' is an empty list"),
    "columns-as-object": (document(columns={"text": 0}, data=[]), "'columns' is an object"),
    "data-missing": (document(columns=["text"]), "'data' is missing or null"),
    "data-as-object": (
        document(columns=["text"], data={"0": [CANARY]}),
        "'data' is an object; expected a list of rows",
    ),
    "column-unknown": (embeddings([["", "", ""]], ["image", "text", CANARY]), f"entry 2 of 'columns' is {HIDDEN}"),
    "column-with-a-capital": (embeddings([["", ""]], ["image", "Text"]), "entry 1 of 'columns' is a string of 4"),
    "column-of-the-other-model": (
        embeddings([["", ""]], ["text", "frontal_image"]),
        "entry 0 of 'columns' is a string of 4 characters; expected one of ['frontal_image'",
    ),
    "column-number": (embeddings([[""]], [0]), "entry 0 of 'columns' is 0"),
    "column-null": (embeddings([[""]], [None]), "entry 0 of 'columns' is missing or null"),
    "column-list": (embeddings([[""]], [["text"]]), "entry 0 of 'columns' is a list"),
    "column-empty": (embeddings([[""]], [""]), "entry 0 of 'columns' is a string of 0 characters"),
    "column-of-4000-digits": (b'{"input_data":{"columns":[%b],"data":[]}}' % (b"9" * 4000), "entry 0 of 'columns'"),
    "column-twice": (embeddings([["", ""]], ["text", "text"]), "'columns' holds a name twice"),
    "100000-columns": (embeddings([[]], ["text"] * 100_000), "'columns' holds a name twice"),
    "100000-unknown-columns": (embeddings([[]], [CANARY] * 100_000), f"entry 0 of 'columns' is {HIDDEN}"),
    "row-number": (embeddings([12]), "row 0: is a number; expected a list of cells or an object"),
    "row-null": (embeddings([["", CANARY], None]), "row 1: is missing or null"),
    "row-text": (embeddings([CANARY]), "row 0: is a string"),
    "row-boolean": (embeddings([True]), "row 0: is a boolean"),
    "row-empty": (embeddings([[]]), "row 0: has 0 cells; expected 2"),
    "row-short": (embeddings([["", CANARY], [CANARY]]), "row 1: has 1 cells; expected 2, one for each of 'columns'"),
    "row-long": (embeddings([["", "", CANARY]]), "row 0: has 3 cells; expected 2"),
    "row-of-100000-cells": (embeddings([[CANARY] * 100_000]), "row 0: has 100000 cells"),
    "row-nested": (embeddings([[["", CANARY]]]), "row 0: has 1 cells; expected 2"),
    "row-object-empty": (embeddings([{}]), "row 0, columns 'image' and 'text': both are empty"),
    "row-object-unknown-key": (embeddings([{"text": "a", CANARY: 1}]), f"row 0: key 1 is {HIDDEN}"),
    "row-object-key-not-in-columns": (embeddings([{"image": CANARY}], ["text"]), "row 0: key 0 is"),
    "row-without-anything": (embeddings([["", None]]), "row 0, columns 'image' and 'text': both are empty"),
    "index-too-long": (document(columns=["text"], data=[[CANARY]], index=[0, 1]), "'index' has 2 entries and 'data' 1"),
    "index-too-short": (document(columns=["text"], data=[[CANARY]], index=[]), "'index' has 0 entries and 'data' 1"),
    "1025-rows": (embeddings([[CANARY]] * 1025, ["text"]), "'data' has 1025 rows; at most 1024 are taken"),
    "100000-rows": (embeddings([[CANARY]] * 100_000, ["text"]), "'data' has 100000 rows"),
    "11-reports": (reports([[base64_text(IMAGE), CANARY]] * 11), "'data' has 11 rows; at most 10 are taken"),
}


def with_param(name, value):
    return embeddings([[base64_text(IMAGE), CANARY]], params={name: value})


PARAMS = {
    **{
        f"scaling-factor-{word}": (with_param(FLAG, value), f"param '{FLAG}' is")
        for word, value in {"number": 1, "text": "yes", "empty-text": "", "list": [], "object": {}}.items()
    },
    **{
        f"{name.rpartition('_')[2]}-{word}": (with_param(name, value), f"param '{name}' is {said}")
        for name in (SIZE, QUALITY)
        for word, value, said in [
            ("negative", -1, "-1; expected a whole number from 0 to"),
            ("too-large", 10**6, "1000000; expected a whole number from 0 to"),
            ("of-40-digits", 10**40, ""),
            ("fraction", 64.5, "64.5"),
            ("whole-fraction", 64.0, "64.0"),
            ("boolean", True, "True"),
            ("text", CANARY, HIDDEN),
            ("digits-in-a-text", "64", "a string of 2 characters"),
            ("list", [64], "a list"),
            ("object", {CANARY: 1}, "an object"),
        ]
    },
    "size-1e999": (
        with_param(SIZE, 0).replace(b": 0}", b": 1e999}"),
        f"param '{SIZE}' is inf; expected a whole number",
    ),
    "report-param": (reports([[base64_text(IMAGE), ""]], params={CANARY: 1}), f"'params' has {HIDDEN}; expected none"),
    "report-param-known": (reports([[base64_text(IMAGE), ""]], params={"mode": "phrase"}), "'params' has 'mode'"),
    "report-params-list": (reports([[base64_text(IMAGE), ""]], params=[]), "'params' is an empty list"),
}

CASES = [
    Case(f"schema-{word}", request(body=body), 400, message) for word, (body, message) in (TABLES | PARAMS).items()
]
