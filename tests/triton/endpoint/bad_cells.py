"""Tables whose cells are wrong: no text, no base64, no image, or an image that is broken."""

import json

from tests.triton.endpoint.broken_files import MB, broken_files, odd_files
from tests.triton.endpoint.case import IMAGE, Case, base64_text, embeddings, reports
from tests.triton.endpoint.raw_http import CANARY, request

GOOD_BASE64 = base64_text(IMAGE)
URL = "is a URL; nothing is downloaded"
NOT_BASE64 = "is not valid base64"
WHITE = "holds only white space"
EVENT_STREAM = "text/event-stream"

CELLS = {
    "zero": (0, "is a number; expected a string, or null if absent"),
    "number": (1.5, "is a number"),
    "false": (False, "is a boolean"),
    "list": ([CANARY], "is a list"),
    "empty-list": ([], "is an empty list"),
    "bytes-as-numbers": (list(IMAGE[:100]), "is a list"),
    "object": ({"$content-type": "image/png", "$content": CANARY}, "is an object"),
    "empty-object": ({}, "is an object"),
}
IMAGES = CELLS | {
    "url-http": (f"http://{CANARY}.example/image.png", URL),
    "url-https": (f"https://{CANARY}.example/image.png", URL),
    "url-in-capitals-after-spaces": (f"  HTTPS://{CANARY}.example/image.png", URL),
    "url-of-the-cloud": ("http://169.254.169.254/latest/meta-data", URL),
    "url-ftp": (f"ftp://{CANARY}.example/image.png", NOT_BASE64),
    "url-file": ("file:///etc/passwd", NOT_BASE64),
    "url-of-a-blob": (f"azureml://datastores/{CANARY}", NOT_BASE64),
    "path": (f"/etc/{CANARY}.png", NOT_BASE64),
    "data-url-without-base64": (f"data:image/png,{CANARY}", NOT_BASE64),
    "data-url-without-comma": ("data:image/png;base64", WHITE),
    "data-url-in-percent": ("data:image/svg+xml;utf8,%3Csvg%3E", NOT_BASE64),
    "data-url-of-nothing": ("data:image/png;base64,", WHITE),
    "data-url-twice": (f"data:;base64,data:;base64,{GOOD_BASE64}", NOT_BASE64),
    "words": (f"{CANARY}, female, 62", NOT_BASE64),
    "of-the-url-alphabet": ("_-8=", NOT_BASE64),
    "one-letter": ("A", NOT_BASE64),
    "without-padding": (GOOD_BASE64.rstrip("=")[:-3], NOT_BASE64),
    "too-much-padding": ("QUJD====", NOT_BASE64),
    "padding-inside": ("QQ==QUJD", NOT_BASE64),
    "padding-alone": ("====", NOT_BASE64),
    "python-bytes": (f"b'{GOOD_BASE64}'", NOT_BASE64),
    "quoted": (f'"{GOOD_BASE64}"', NOT_BASE64),
    "in-percent": (GOOD_BASE64.replace("=", "%3D") + "%2B", NOT_BASE64),
    "nul-inside": (GOOD_BASE64[:8] + "\0\0\0\0" + GOOD_BASE64[8:], NOT_BASE64),
    "full-width-letters": ("\uff31\uff35\uff2a\uff24", NOT_BASE64),
    "no-break-space": (GOOD_BASE64[:8] + "\u00a0" + GOOD_BASE64[8:], NOT_BASE64),
    "hexadecimal": (IMAGE.hex() + "0", NOT_BASE64),
    "spaces": (" \t", WHITE),
    "line-breaks": ("\r\n\r\n", WHITE),
}
REPORT_IMAGES = {
    "missing": ("", "is missing; expected an image file as base64"),
    "null": (None, "is missing; expected an image file as base64"),
    "number": (7, "is a number"),
    "url": (f"https://{CANARY}.example", URL),
    "words": (f"{CANARY}?", NOT_BASE64),
    "spaces": ("  ", WHITE),
}


def cell_cases():
    for word, (cell, message) in IMAGES.items():
        body = embeddings([[GOOD_BASE64, CANARY], [cell, CANARY]])
        yield f"image-{word}", body, f"row 1, column 'image': {message}"
    for word, (cell, message) in CELLS.items():
        yield f"text-{word}", embeddings([[GOOD_BASE64, cell]]), f"row 0, column 'text': {message}"
    for word, (cell, message) in REPORT_IMAGES.items():
        yield f"report-{word}", reports([[cell, CANARY]]), f"row 0, column 'frontal_image': {message}"
    for column in ("lateral_image", "prior_image"):
        body = reports([[GOOD_BASE64, f"{CANARY}!"]], ["frontal_image", column])
        yield f"report-{column[:-6]}", body, f"row 0, column '{column}': {NOT_BASE64}"
    for column in ("indication", "technique", "comparison", "prior_report"):
        body = reports([[GOOD_BASE64, [CANARY]]], ["frontal_image", column])
        yield f"report-{column.replace('_', '-')}", body, f"row 0, column '{column}': is a list"


def too_large(model, column):
    """An image file of 40 MB that would be a good one."""
    body = model(
        [[base64_text(IMAGE + bytes(40 * MB)), CANARY]], [column, "text" if column == "image" else "indication"]
    )
    return request(body=body)


def image_cases():
    """Every broken file, once for each model, in the second of two rows."""
    for word, (file, message) in broken_files().items():
        cell = base64_text(file)
        yield Case(f"file-{word}", request(body=embeddings([["", CANARY], [cell, ""]])), 400, message)
        message = "is a DICOM file" if word == "dicom" else message  # which the report client would convert
        yield Case(f"report-of-{word}", request(body=reports([[cell, CANARY]])), 400, message)
    yield Case("file-of-40-mb", lambda: too_large(embeddings, "image"), 400, "at most 33554432 are allowed")
    yield Case("report-of-40-mb", lambda: too_large(reports, "frontal_image"), 400, "at most 33554432 are allowed")
    yield Case(
        "streamed-report-of-no-image",
        request(body=reports([[base64_text(b"\xff"), CANARY]]), accept=EVENT_STREAM),
        400,
        "not an image Pillow can read",
    )


def long_text_cases():
    for n_characters, message in [
        (2**15 + 1, "indication has 32769 characters; at most 32768"),
        (2**15, "tokens; at most"),
        (10**6, "indication has 1000000 characters"),
    ]:
        body = reports([[GOOD_BASE64, (f"{CANARY} " * 10**6)[:n_characters]]])
        yield Case(f"report-text-of-{n_characters}-characters", request(body=body), 400, message)


# Refused before any model is asked
UNREAD = [Case(f"cell-{word}", request(body=body), 400, message) for word, body, message in cell_cases()]

CASES = [*image_cases(), *long_text_cases()]

# What is odd and yet has an answer
HARMLESS = [
    *(
        Case(f"odd-{word}", request(body=embeddings([[base64_text(file), ""]])), 200)
        for word, file in odd_files().items()
    ),
    *(
        Case(f"odd-text-{word}", request(body=embeddings([["", text]])), 200)
        for word, text in {
            "nul": f"{CANARY}\0",
            "control-characters": "".join(map(chr, range(32))),
            "million-characters": CANARY * 200_000,
            "only-spaces": "   ",
            "not-a-character": "\uffff\U0010ffff",
            "right-to-left-marks": "\u202e\u200f" + CANARY,
            "tower-of-accents": "a" + "\u0301" * 10_000,
            "start-and-end": f"<|startoftext|>{CANARY}<|endoftext|>",
            "ten-thousand-starts": "<|startoftext|>" * 10_000,
            "url": f"https://{CANARY}.example",
        }.items()
    ),
    Case("odd-no-rows", request(body=json.dumps({"input_data": {"columns": ["text"], "data": []}}).encode()), 200),
]
