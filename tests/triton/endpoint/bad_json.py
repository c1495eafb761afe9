"""Bodies that are not the JSON of RFC 8259, or not the JSON of an object."""

import json

from tests.triton.endpoint.case import Case, embeddings
from tests.triton.endpoint.raw_http import CANARY, request

INVALID = "the request is not valid JSON"
NAN = "the request has NaN or Infinity"
NOT_UTF8 = "the request is not valid UTF-8"
TWICE = "a key is twice in one object of the request"
GOOD = embeddings([[None, CANARY]])
SECRET = CANARY.encode()


def in_a_cell(json_text):
    """A good request with one cell replaced."""
    return GOOD.replace(b'"' + SECRET + b'"', json_text)


def nested(opening, closing, depth=100_000):
    return in_a_cell(opening * depth + closing * depth)


BODIES = {
    "empty": (b"", INVALID),
    "white-space": (b" \r\n\t", INVALID),
    "word": (SECRET, INVALID),
    "opening-brace": (b"{", INVALID),
    "cut-in-a-key": (GOOD[:5], INVALID),
    "cut-in-a-text": (GOOD[: GOOD.index(SECRET) + 3], INVALID),
    "cut-before-its-last-brace": (GOOD[:-1], INVALID),
    "brace-too-many": (GOOD + b"}", INVALID),
    "twice": (GOOD + GOOD, INVALID),
    "two-lines-of-json": (GOOD + b"\n" + GOOD, INVALID),
    "form": (b"input_data=" + SECRET, INVALID),
    "xml": (b"<input_data>" + SECRET + b"</input_data>", INVALID),
    "python-literal": (str(json.loads(GOOD)).encode(), INVALID),
    "single-quotes": (GOOD.replace(b'"', b"'"), INVALID),
    "comment": (b"/* " + SECRET + b" */" + GOOD, INVALID),
    "comment-at-its-end": (GOOD + b" // " + SECRET, INVALID),
    "trailing-comma-in-an-object": (GOOD[:-1] + b",}", INVALID),
    "trailing-comma-in-a-list": (in_a_cell(b'"",'), INVALID),
    "missing-comma": (in_a_cell(b'"" ""'), INVALID),
    "missing-colon": (GOOD.replace(b'"data":', b'"data"'), INVALID),
    "key-without-quotes": (GOOD.replace(b'"data"', b"data"), INVALID),
    "key-of-a-number": (GOOD.replace(b'"data"', b"1"), INVALID),
    "capital-true": (in_a_cell(b"True"), INVALID),
    "undefined": (in_a_cell(b"undefined"), INVALID),
    "leading-zero": (in_a_cell(b"007"), INVALID),
    "leading-plus": (in_a_cell(b"+1"), INVALID),
    "hexadecimal": (in_a_cell(b"0x10"), INVALID),
    "dot-without-digits": (in_a_cell(b"1."), INVALID),
    "digits-of-other-scripts": (in_a_cell("١٢".encode()), INVALID),
    "nan": (in_a_cell(b"NaN"), NAN),
    "infinity": (in_a_cell(b"Infinity"), NAN),
    "minus-infinity": (in_a_cell(b"-Infinity"), NAN),
    "line-break-in-a-text": (in_a_cell(b'"a\nb"'), INVALID),
    "nul-in-a-text": (in_a_cell(b'"a\0b"'), INVALID),
    "nul-before": (b"\0" + GOOD, INVALID),
    "nul-behind": (GOOD + b"\0", INVALID),
    "unknown-escape": (in_a_cell(rb'"\x41"'), INVALID),
    "half-an-escape": (in_a_cell(rb'"\u00"'), INVALID),
    "half-a-surrogate-pair": (in_a_cell(rb'"a\ud800b"'), f"{INVALID}: unexpected end of hex escape at line 1 column"),
    "surrogates-in-the-wrong-order": (in_a_cell(rb'"\udc00\ud800"'), f"{INVALID}: lone leading surrogate"),
    "byte-order-mark": (b"\xef\xbb\xbf" + GOOD, "the request begins with a byte order mark"),
    "utf-16": (GOOD.decode().encode("utf-16"), NOT_UTF8),
    "utf-16-without-a-mark": (GOOD.decode().encode("utf-16-le"), INVALID),
    "utf-32": (GOOD.decode().encode("utf-32"), NOT_UTF8),
    "latin-1": (in_a_cell('"Röntgen"'.encode("latin-1")), NOT_UTF8),
    "utf-8-overlong": (in_a_cell(b'"\xc0\xaf"'), NOT_UTF8),
    "utf-8-of-a-surrogate": (in_a_cell(b'"\xed\xa0\x80"'), NOT_UTF8),
    "utf-8-cut": (in_a_cell(b'"\xf0\x9f\x92"'), NOT_UTF8),
    "random-bytes": (bytes(range(256)), NOT_UTF8),
    "png-itself": (b"\x89PNG\r\n\x1a\n" + SECRET, NOT_UTF8),
    "null": (b"null", "the request is missing or null; expected an object with 'input_data'"),
    "true": (b"true", "the request is a boolean"),
    "number": (b"12", "the request is a number"),
    "text": (b'"' + SECRET + b'"', "the request is a string"),
    "list": (b"[" + GOOD + b"]", "the request is a list"),
    "empty-list": (b"[]", "the request is an empty list"),
    "empty-object": (b"{}", "'input_data' is missing or null"),
    "100000-lists-deep": (nested(b"[", b"]"), INVALID),
    "100000-objects-deep": (nested(b'{"a":', b"}").replace(b":}", b":1}"), INVALID),
    "100000-lists-opened": (b"[" * 100_000, INVALID),
    "600000-empty-lists": (in_a_cell(b"[" + b"[]," * 600_000 + b"[]]"), "more than 250000 commas and brackets"),
    "key-twice": (GOOD[:-1] + b',"input_data":{}}', f"{TWICE}, 'input_data'"),
    "key-twice-in-input-data": (GOOD.replace(b'"data"', b'"columns":[],"data"'), f"{TWICE}, 'columns'"),
    "key-twice-in-params": (
        GOOD[:-1] + b',"params":{"get_scaling_factor":true,"get_scaling_factor":false}}',
        f"{TWICE}, 'get_scaling_factor'",
    ),
    "key-twice-in-a-row": (GOOD.replace(b'[null, "' + SECRET + b'"]', b'{"text":"a","text":"b"}'), f"{TWICE}, 'text'"),
    "key-twice-by-an-escape": (GOOD[:-1] + rb',"\u0069nput_data":{}}', f"{TWICE}, 'input_data'"),
    "unknown-key-twice": (
        GOOD[:-1] + b',"%b":1,"%b":2}' % (SECRET, SECRET),
        f"{TWICE} at line 1 column",
    ),
    "4000-digits": (in_a_cell(b"9" * 4000), "row 0, column 'text': is a number"),
    "million-digits": (in_a_cell(b"9" * 10**6), INVALID),
    "1e999": (in_a_cell(b"1e999"), "row 0, column 'text': is a number"),
}

CASES = [Case(f"json-{word}", request(body=body), 400, message) for word, (body, message) in BODIES.items()]
