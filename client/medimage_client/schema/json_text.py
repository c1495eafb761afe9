"""JSON that others have written, requests and answers.

By jiter, which can refuse a key that is twice in an object, and reads vectors seven times as fast as the standard
library. jiter writes none: the standard library does, but for the endpoint's answers, where orjson is twenty times as
fast.
"""

import re
from codecs import BOM_UTF8
from typing import Any

import numpy as np
from jiter import from_json

from medimage_client.errors import InvalidInput

# Every key and column of the models' schemas. A key that is none of them is not shown in a message.
NAMES = (
    *("input_data", "columns", "index", "data", "params"),
    *("image", "text", "get_scaling_factor"),
    *("image_standardization_image_size", "image_standardization_jpeg_compression_ratio"),
    *("frontal_image", "lateral_image", "prior_image", "indication", "technique", "comparison", "prior_report"),
)

# Commas and brackets in a request, those in texts included. 1024 rows of 7 columns, the most rows that Azure documents,
# have 9000. A value can take 30 times the memory of its JSON, as in [{},{},{}]: so many take 30 MB, and those of a
# request that is too short to be counted take no more.
MAX_DELIMITERS = 250_000
MAX_UNCOUNTED_BYTES = 2**20

# The words of jiter. What it quotes of a text, keys as of 0.19, stands between quotes, and is not passed on.
DUPLICATE_KEY = re.compile(r'Detected duplicate key "(.*)"', re.DOTALL)
PLACE = re.compile(r" at line \d+ column \d+$")
QUOTE = '"'


def decode_json(content: bytes, *, allow_inf_nan: bool = True) -> Any:
    """JSON in UTF-8, decoded; with NaN and Infinity, which JSON has not, unless they are not allowed.

    Raises:
        ValueError: anything else; its message may quote the text.
    """
    return from_json(content, allow_inf_nan=allow_inf_nan, catch_duplicate_keys=True, cache_mode="none")


def parse_json(text: str | bytes) -> Any:
    """Strict JSON, decoded.

    Raises:
        InvalidInput: not UTF-8, not JSON as RFC 8259 has it, a key twice in one object, half a surrogate pair, an
            integer of more than 4300 digits, or too many values.
    """
    content = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    check_delimiters(content)
    try:
        return decode_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput(json_fault(content, str(error))) from None


def json_fault(content: bytes, told: str) -> str:
    """What is wrong with a JSON text that the parser has refused with these words."""
    place = PLACE.search(told)
    where = place[0] if place else ""
    if twice := DUPLICATE_KEY.match(told):
        key = f", {twice[1]!r}," if twice[1] in NAMES else ""
        return f"a key is twice in one object of the request{key}{where}; expected each once"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "the request is not valid UTF-8"
    if content.startswith(BOM_UTF8):
        return "the request begins with a byte order mark; expected UTF-8 without one"
    try:
        decode_json(content)
    except ValueError:
        return f"the request is not valid JSON: {told if QUOTE not in told else 'refused' + where}"
    return f"the request has NaN or Infinity{where}, which JSON has not; expected null for an absent cell"


def check_delimiters(text: bytes) -> None:
    """Bound the number of values before there is memory for each."""
    if len(text) <= MAX_UNCOUNTED_BYTES:
        return
    codes = np.frombuffer(text, dtype=np.uint8)  # four times as fast as bytes.count
    if sum(np.count_nonzero(codes == code) for code in b",[{") > MAX_DELIMITERS:
        raise InvalidInput(f"the request has more than {MAX_DELIMITERS} commas and brackets; send its rows in parts")
