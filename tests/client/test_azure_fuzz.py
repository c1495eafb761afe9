"""Property-based fuzzing of the schema: 1200 generated requests, the same in every run; 400 in the usual tests.

Any JSON, any bytes and any damage to a good request are read or refused in one line that shows nothing of the request;
a good request, in any of the forms that clients send, is read as exactly what it was made of.
"""

import base64
import copy
import json
import re
import string
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medimage_client import InvalidInput
from medimage_client.images.base64_text import decode_base64
from medimage_client.schema.embeddings import COLUMNS, EmbeddingRequest, RequestParams, RequestRow
from medimage_client.schema.json_text import NAMES
from medimage_client.schema.reports import COLUMNS as REPORT_COLUMNS
from medimage_client.schema.reports import IMAGE_INPUTS, ReportRequest
from tests.amounts import amounts
from tests.client.azure_samples import is_report_request, read_report_requests, read_request


def cases(number, strategy):
    """A test of so many cases, and of a third of them in the usual tests."""

    def decorate(check):
        @pytest.mark.parametrize("n", amounts(number // 3, number))
        def test(n):
            limits = settings(
                max_examples=n,
                derandomize=True,
                database=None,
                deadline=timedelta(seconds=5),  # a case takes milliseconds; the rest is for a busy machine
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            )
            limits(given(strategy)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


CANARY = "ЖаннаДоу"  # in no message, nor any of its letters; messages are English
MAX_MESSAGE = 250  # characters

# Values of JSON

names = st.sampled_from(NAMES)
secrets = st.text(max_size=8).map(lambda text: CANARY + text)
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(10**40), 10**40),
    st.floats(allow_subnormal=False),  # which another test of this process may have had flushed to zero
    st.sampled_from([2048, 10**4000, -(10**4000), 1e308]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, names, secrets)
keys = st.one_of(names, secrets)


def containers(values):
    return st.one_of(st.lists(values, max_size=4), st.dictionaries(keys, values, max_size=4))


json_values = st.recursive(scalars, containers, max_leaves=8)

# Good requests, with what they are to be read as

files = st.binary(min_size=1, max_size=90)
texts = st.text(min_size=1, max_size=20)  # all of Unicode but surrogates, with NUL and line breaks
absent = st.sampled_from([None, ""])


@st.composite
def base64_texts(draw, file):
    text = base64.b64encode(file).decode()
    match draw(st.sampled_from(["plain", "encodebytes", "CRLF", "spaces", "data"])):
        case "encodebytes":
            return base64.encodebytes(file).decode()
        case "CRLF":
            return base64.encodebytes(file).decode().replace("\n", "\r\n")
        case "spaces":
            return draw(st.text(string.whitespace, max_size=3)).join(text)
        case "data":
            return draw(st.sampled_from(["data:image/png;base64,", "DATA:;base64,", " data:a/b;c=d;base64,\n"])) + text
    return text


@st.composite
def requests(draw, columns, image_columns, row_strategy):
    """A request, and the cells that are there of each row."""
    rows = draw(st.lists(row_strategy, max_size=4))
    used = {column for row in rows for column in row}
    unused = draw(st.sets(st.sampled_from(columns)))
    order = draw(st.permutations(sorted(used | unused) or list(columns)))
    data = []
    for row in rows:
        cells = {name: draw(base64_texts(row[name])) if name in image_columns else row[name] for name in row}
        if draw(st.booleans()):
            data.append([cells[name] if name in cells else draw(absent) for name in order])
        else:
            gaps = draw(st.lists(st.sampled_from(order), unique=True))
            data.append({name: draw(absent) for name in gaps if name not in cells} | cells)
    input_data = {"columns": order, "data": data}
    if draw(st.booleans()):
        entries = st.one_of(st.integers(), secrets, st.none())
        input_data["index"] = draw(st.none() | st.lists(entries, min_size=len(rows), max_size=len(rows)))
    return {"input_data": input_data}, rows


embedding_rows = st.fixed_dictionaries({}, optional={"image": files, "text": texts}).filter(bool)
study_rows = st.fixed_dictionaries(
    {"frontal_image": files},
    optional={name: files if name in IMAGE_INPUTS else texts for name in REPORT_COLUMNS if name != "frontal_image"},
)
FLAGS = {
    True: [True, None, "true", "True", "TRUE"],
    False: [False, "false", "False", "fAlSe"],
}


@st.composite
def params_as_sent(draw):
    """A `params` object, and what it says."""
    said, sent = {}, {}
    if draw(st.booleans()):
        said["get_scaling_factor"] = draw(st.booleans())
        sent["get_scaling_factor"] = draw(st.sampled_from(FLAGS[said["get_scaling_factor"]]))
    for name, largest in (
        ("image_standardization_image_size", 2048),
        ("image_standardization_jpeg_compression_ratio", 100),
    ):
        if draw(st.booleans()):
            said[name] = draw(st.integers(0, largest))
            sent[name] = said[name] if said[name] or draw(st.booleans()) else None
    return sent | draw(st.dictionaries(secrets, secrets, max_size=1)), RequestParams(**said)


@st.composite
def embedding_requests(draw):
    request, rows = draw(requests(COLUMNS, {"image"}, embedding_rows))
    params = RequestParams()
    if draw(st.booleans()):
        request["params"], params = draw(params_as_sent() | st.just((None, params)))
    return request, EmbeddingRequest(tuple(RequestRow(row.get("image"), row.get("text")) for row in rows), params)


@st.composite
def report_requests(draw):
    request, rows = draw(requests(REPORT_COLUMNS, set(IMAGE_INPUTS), study_rows))
    if draw(st.booleans()):
        request["params"] = draw(st.sampled_from([None, {}]))
    return request, [ReportRequest(**row) for row in rows]


def spellings(value):
    """The forms in which a request reaches the reader."""
    unescaped = json.dumps(value, ensure_ascii=False)
    return st.sampled_from([value, json.dumps(value, indent=1), unescaped, unescaped.encode()])


# Damage


def nodes(value, path=()):
    """Paths to all values inside a request."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from nodes(value[key], (*path, key))


@st.composite
def damaged_requests(draw):
    """A good request with one to three of its values replaced, dropped or added to."""
    request = copy.deepcopy(draw(embedding_requests() | report_requests())[0])
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(nodes(request))))
        if not path:
            return draw(json_values)
        parent = request
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "drop", "add"])):
            case "replace":
                parent[path[-1]] = draw(json_values)
            case "drop":
                del parent[path[-1]]
            case "add" if isinstance(parent, list):
                parent.insert(path[-1], draw(json_values))
            case "add":
                parent[draw(keys)] = draw(json_values)
    return request


@st.composite
def damaged_bodies(draw):
    """The bytes of a good request, cut, overwritten or with bytes put in."""
    request = draw(embedding_requests() | report_requests())[0]
    body = json.dumps(request, ensure_ascii=draw(st.booleans())).encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.sampled_from([start, start + 1, start + 10, len(body)]))
        piece = st.one_of(
            st.binary(max_size=5), st.sampled_from([b'"', b"[", b"}", b"NaN", b"\xef\xbb\xbf", b"\\ud800"])
        )
        body = body[:start] + draw(piece) + body[end:]
    return body


def check(request):
    """Each reader returns, or refuses in one short line of printable ASCII that holds no letter of the canary."""
    for read in (read_request, read_report_requests, is_report_request):
        try:
            read(request)
        except InvalidInput as error:
            message = str(error)
            assert message.isascii()
            assert message.isprintable()
            assert len(message) <= MAX_MESSAGE


@cases(200, json_values.flatmap(spellings))
def test_any_json_is_read_or_refused_without_showing_it(request):
    check(request)


@cases(150, damaged_requests().flatmap(spellings))
def test_damaged_request_is_read_or_refused_without_showing_it(request):
    check(request)


@cases(150, damaged_bodies())
def test_damaged_body_is_read_or_refused_without_showing_it(body):
    check(body)


@cases(250, st.binary(max_size=200) | st.text(max_size=100))
def test_any_bytes_or_text_is_refused(body):
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        with pytest.raises(InvalidInput):
            read_request(body)
    check(body)


@cases(100, st.data())
def test_embedding_request_is_read_as_what_it_was_made_of(data):
    request, expected = data.draw(embedding_requests())
    request = data.draw(spellings(request))
    assert read_request(request) == expected
    assert not is_report_request(request)


@cases(100, st.data())
def test_report_request_is_read_as_what_it_was_made_of(data):
    request, expected = data.draw(report_requests())
    request = data.draw(spellings(request))
    assert read_report_requests(request) == expected
    assert is_report_request(request)


BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")  # RFC 4648, section 4


@cases(250, st.text("AQgz09+/=\n _-é", max_size=12) | st.text(max_size=12))
def test_base64_is_that_of_the_standard_with_white_space(text):
    compact = re.sub(r"[ \t\n\r\v\f]", "", text)
    if BASE64.fullmatch(compact):
        assert decode_base64(text) == base64.b64decode(compact)
    else:
        with pytest.raises(ValueError):
            decode_base64(text)
