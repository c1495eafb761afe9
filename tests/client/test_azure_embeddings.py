"""The request and answer rules of Azure's endpoint, with the samples of its model cards and documentation."""

import base64
import json

import numpy as np
import pytest

from medimage_client import InvalidInput
from medimage_client.schema.embeddings import COLUMNS, IMAGE_PARAMS, EmbeddingRow, render_answer
from medimage_client.schema.json_text import MAX_DELIMITERS, NAMES
from medimage_client.schema.reports import COLUMNS as REPORT_COLUMNS
from medimage_client.schema.table import read_json
from tests.client.azure_samples import IMAGE_AND_TEXT, TEXT_ONLY, TWO_BY_TWO, card_request, read_request

PNG = base64.b64decode(TWO_BY_TWO)


def request(data, *, columns=("image", "text"), params=None, **more):
    return {"input_data": {"columns": list(columns), "data": data, **more}, "params": params}


def halves(parsed):
    return [(row.image, row.text) for row in parsed.rows]


def test_sample_of_the_documentation_with_text_only_is_one_text_row():
    parsed = read_request(TEXT_ONLY)
    assert halves(parsed) == [(None, "a quick brown fox jumps over the lazy dog")]
    assert parsed.params.get_scaling_factor is True


def test_sample_of_the_documentation_with_line_breaks_and_text_flag_is_read():
    parsed = read_request(IMAGE_AND_TEXT)
    assert halves(parsed) == [(PNG, "x-ray chest anteroposterior Pleural Effusion")]
    assert parsed.params.get_scaling_factor is True


def test_sample_of_the_model_cards_with_encodebytes_is_read():
    film = bytes(range(256)) * 4
    request = card_request(film)
    assert "\n" in request["input_data"]["data"][0][0].strip()
    assert halves(read_request(request)) == [(film, "x-ray chest anteroposterior Cardiomegaly")]


@pytest.mark.parametrize(
    ("data", "columns", "expected"),
    [
        ([[TWO_BY_TWO, "a"]], ("image", "text"), [(PNG, "a")]),
        ([["a", TWO_BY_TWO]], ("text", "image"), [(PNG, "a")]),
        ([[TWO_BY_TWO, ""]], ("image", "text"), [(PNG, None)]),
        ([[TWO_BY_TWO, None]], ("image", "text"), [(PNG, None)]),
        ([[None, "a"], [TWO_BY_TWO, ""]], ("image", "text"), [(None, "a"), (PNG, None)]),
        ([{"image": TWO_BY_TWO, "text": "a"}], ("image", "text"), [(PNG, "a")]),
        ([{"text": "a"}], ("image", "text"), [(None, "a")]),
        ([[TWO_BY_TWO]], ("image",), [(PNG, None)]),
        ([["a"], ["b"]], ("text",), [(None, "a"), (None, "b")]),
        ([["data:image/png;base64," + TWO_BY_TWO]], ("image",), [(PNG, None)]),
        ([], ("image", "text"), []),
    ],
    ids=[
        "both", "columns-swapped", "empty-text", "null-text", "mixed", "object", "object-without-image", "images-only",
        "texts-only", "data-uri", "no-rows",
    ],
)  # fmt: skip
def test_rows_as_real_clients_send_them_are_accepted(data, columns, expected):
    assert halves(read_request(request(data, columns=columns))) == expected


@pytest.mark.parametrize("index", [None, [0, 1], ["a", "b"], [7, 7]])
def test_index_of_one_entry_a_row_or_null_is_accepted(index):
    assert len(read_request(request([["", "a"], ["", "b"]], index=index)).rows) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (False, False), ("true", True), ("True", True), ("false", False), ("FALSE", False), (None, True)],
)
def test_get_scaling_factor_is_a_boolean_or_its_name(value, expected):
    assert read_request(request([], params={"get_scaling_factor": value})).params.get_scaling_factor is expected


@pytest.mark.parametrize("params", [None, {}, {"unknown": 1}], ids=["null", "empty", "unknown-only"])
def test_params_absent_or_unknown_give_the_defaults(params):
    parsed = read_request(request([], params=params)).params
    assert parsed.get_scaling_factor
    assert parsed.for_images() == {}


def test_request_without_params_key_is_accepted():
    assert read_request({"input_data": {"columns": ["text"], "data": [["a"]]}}).params.get_scaling_factor


def test_image_params_are_passed_on_and_zero_is_the_servers_default():
    params = {"image_standardization_image_size": 480, "image_standardization_jpeg_compression_ratio": 0}
    assert read_request(request([], params=params)).params.for_images() == {"image_standardization_image_size": 480}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([["", "a"], ["", ""]], "row 1, columns 'image' and 'text': both are empty; expected at least one"),
        ([{}], "row 0, columns 'image' and 'text': both are empty; expected at least one"),
        ([["a"]], "row 0: has 1 cells; expected 2, one for each of 'columns'"),
        ([["", "a", "b"]], "row 0: has 3 cells; expected 2, one for each of 'columns'"),
        (["a"], "row 0: is a string; expected a list of cells or an object"),
        (
            [{"txt": "a"}],
            "row 0: key 0 is a string of 3 characters; expected only those of 'columns', ['image', 'text']",
        ),
        ([["", 7]], "row 0, column 'text': is a number; expected a string, or null if absent"),
        ([["", "a"], [["x"], "a"]], "row 1, column 'image': is a list; expected a string, or null if absent"),
        ([["", "\ud800"]], "row 0, column 'text': is not valid Unicode"),
        ([["not base64!", ""]], "row 0, column 'image': is not valid base64; expected an image file as base64"),
        ([["QUJ", ""]], "row 0, column 'image': is not valid base64; expected an image file as base64"),
        (
            [["\n", ""]],
            "row 0, column 'image': holds only white space; expected an image file as base64, or null if absent",
        ),
        (
            [["https://example.org/a.png", ""]],
            "row 0, column 'image': is a URL; nothing is downloaded, send the image file itself as base64",
        ),
    ],
)
def test_bad_row_is_refused_by_row_and_column(data, message):
    with pytest.raises(InvalidInput) as refused:
        read_request(request(data))
    assert str(refused.value) == message
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "the request is not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("[" * 100_000, "the request is not valid JSON: recursion limit exceeded at line 1 column 202"),
        ("[]", "the request is an empty list; expected an object with 'input_data'"),
        ({}, "'input_data' is missing or null; expected an object with 'columns' and 'data'"),
        (
            {"input_data": [{"text": "a"}]},
            "'input_data' is a list; expected an object with 'columns' and 'data'",
        ),
        (
            {"input_data": {"data": []}},
            "'columns' is missing or null; expected a list of names, of ['image', 'text']",
        ),
        (
            request([], columns=["image", "txt"]),
            "entry 1 of 'columns' is a string of 3 characters; expected one of ['image', 'text']",
        ),
        (request([], columns=["text", "text"]), "'columns' holds a name twice; expected each once"),
        (request([], columns=[]), "'columns' is an empty list; expected a list of names, of ['image', 'text']"),
        ({"input_data": {"columns": ["text"]}}, "'data' is missing or null; expected a list of rows"),
        (request([["", "a"]], index=[0, 1]), "'index' has 2 entries and 'data' 1 rows; expected as many"),
        (request([], index=3), "'index' is a number; expected a list with one entry for each row of 'data'"),
        (request([], params=[]), "'params' is an empty list; expected an object"),
        (
            request([], params={"get_scaling_factor": 1}),
            "param 'get_scaling_factor' is 1; expected true or false",
        ),
        (
            request([], params={"image_standardization_image_size": "480"}),
            "param 'image_standardization_image_size' is a string of 3 characters; expected a whole number from 0 to "
            "2048",
        ),
        (
            request([], params={"image_standardization_image_size": 480.0}),
            "param 'image_standardization_image_size' is 480.0; expected a whole number from 0 to 2048",
        ),
        (
            request([], params={"image_standardization_jpeg_compression_ratio": 101}),
            "param 'image_standardization_jpeg_compression_ratio' is 101; expected a whole number from 0 to 100",
        ),
        (
            request([], params={"image_standardization_jpeg_compression_ratio": True}),
            "param 'image_standardization_jpeg_compression_ratio' is True; expected a whole number from 0 to 100",
        ),
    ],
)
def test_bad_request_is_refused_in_one_line(body, message):
    with pytest.raises(InvalidInput) as refused:
        read_request(body)
    assert str(refused.value) == message


TEXT_BODY = '{"input_data": {"columns": ["text"], "data": [["Jane"]]}}'
TWICE = "a key is twice in one object of the request{} at line 1 column {}; expected each once"
NO_NUMBER = "the request has NaN or Infinity at line 1 column {}, which JSON has not; expected null for an absent cell"
INVALID = "the request is not valid JSON: {}"
TOO_MANY = f"the request has more than {MAX_DELIMITERS} commas and brackets; send its rows in parts"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", INVALID.format("EOF while parsing a value at line 1 column 0")),
        (b"\xff", "the request is not valid UTF-8"),
        (TEXT_BODY.replace("Jane", "Jos\u00e9").encode("latin-1"), "the request is not valid UTF-8"),
        (TEXT_BODY.encode().replace(b"Jane", b"\xed\xa0\x80"), "the request is not valid UTF-8"),
        (TEXT_BODY.encode("utf-16-le"), INVALID.format("key must be a string at line 1 column 2")),
        (TEXT_BODY.encode("utf-16"), "the request is not valid UTF-8"),
        (TEXT_BODY.encode("utf-32-be"), INVALID.format("expected value at line 1 column 1")),
        (TEXT_BODY.encode("utf-8-sig"), "the request begins with a byte order mark; expected UTF-8 without one"),
        ("\ufeff" + TEXT_BODY, "the request begins with a byte order mark; expected UTF-8 without one"),
        (TEXT_BODY.replace('"Jane"', "NaN"), NO_NUMBER.format(48)),
        (TEXT_BODY.replace('"Jane"', "-Infinity"), NO_NUMBER.format(49)),
        (
            TEXT_BODY.replace("Jane", "Jane\n"),
            INVALID.format(r"control character (\u0000-\u001F) found while parsing a string at line 2 column 0"),
        ),
        (TEXT_BODY + "{}", INVALID.format("trailing characters at line 1 column 58")),
        ('{"params": {}, "params": {"get_scaling_factor": false}}', TWICE.format(", 'params',", 25)),
        ('{"params": {"get_scaling_factor": 1, "get_scaling_factor": 1}}', TWICE.format(", 'get_scaling_factor',", 59)),
        ('{"a": [{"text": "Jane", "image": "", "text": "Jane"}]}', TWICE.format(", 'text',", 45)),
        ('{"Jane": 1, "Jane": 1}', TWICE.format("", 20)),
        (r'{"a\"b\n": 1, "a\"b\n": 1}', TWICE.format("", 24)),
        ('["\\ud800"]', INVALID.format("unexpected end of hex escape at line 1 column 9")),
        ('{"text": 1, "te\\u0078t": 1}', TWICE.format(", 'text',", 25)),
        ("[" + "[]," * 10**6 + "0]", TOO_MANY),
        ("[" + '{"":0},' * 10**6 + "0]", TOO_MANY),
        ("[" + "1," * 10**6 + "0]", TOO_MANY),
        ('{"a":' * 100_000, INVALID.format("recursion limit exceeded at line 1 column 1006")),
        ("1" * 10**7, INVALID.format("number out of range at line 1 column 4302")),
        ("-1e" + "9" * 10**6, "the request is a number; expected an object with 'input_data'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_json, read_request])
def test_lax_or_hostile_json_is_refused_in_one_line(read, body, message):
    with pytest.raises(InvalidInput) as refused:
        read(body)
    assert str(refused.value) == message


def test_as_many_values_as_a_large_request_has_are_read():
    rows = [["", "x-ray chest, two views, comparison, none, [1]"]] * 25_000
    assert len(read_request(json.dumps(request(rows)).encode()).rows) == 25_000


def test_text_is_read_from_utf_8_bytes_and_from_escapes():
    for body in (TEXT_BODY.replace("Jane", "J\u00f6\U0001f600"), TEXT_BODY.replace("Jane", "J\\u00f6\\ud83d\\ude00")):
        assert halves(read_request(body.encode())) == [(None, "J\u00f6\U0001f600")]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("1e999", "inf"),
        ("-1e-999", "-0.0"),
        (str(2**64), str(2**64)),
        ("9" * 30, "a whole number of more than 20 digits"),
        (10**30, "a whole number of more than 20 digits"),
        (-(10**5000), "a whole number of more than 20 digits"),
    ],
    ids=["1e999", "-1e-999", "64-bits", "30-digits", "python-int", "huge-python-int"],
)
def test_number_out_of_any_range_is_shown_short(number, shown):
    body = request([], params={"image_standardization_image_size": number})
    if isinstance(number, str):
        body = json.dumps(body).replace(f'"{number}"', number)
    with pytest.raises(InvalidInput) as refused:
        read_request(body)
    assert str(refused.value) == (
        f"param 'image_standardization_image_size' is {shown}; expected a whole number from 0 to 2048"
    )


@pytest.mark.parametrize("column", [[], {}, 7, 1.5, True, None, np.array(["image", "text"])])
def test_column_of_another_type_is_refused(column):
    with pytest.raises(InvalidInput, match=r"^entry 1 of 'columns' is .*; expected one of \['image', 'text'\]$"):
        read_request(request([], columns=["text", column]))


def test_names_shown_in_messages_are_those_of_the_schemas():
    schema = ("input_data", "params", "columns", "index", "data", *COLUMNS, "get_scaling_factor", *IMAGE_PARAMS)
    assert sorted(NAMES) == sorted((*schema, *REPORT_COLUMNS))


@pytest.mark.parametrize(
    "body",
    [
        request([], columns=["image", "Jane Doe 1950"]),
        request([{"Jane Doe 1950": "a"}]),
        request([], params={"get_scaling_factor": "Jane Doe 1950"}),
        request([], params={"image_standardization_image_size": "Jane Doe 1950"}),
    ],
    ids=["column", "key", "flag", "number"],
)
def test_misplaced_text_is_not_shown_in_the_message(body):
    with pytest.raises(InvalidInput, match="is a string of 13 characters; expected") as refused:
        read_request(body)
    assert "Jane" not in str(refused.value)


def test_column_of_another_request_is_named_in_the_message():
    with pytest.raises(InvalidInput) as refused:
        read_request(request([{"image": "", "text": "a"}], columns=["image"]))
    assert str(refused.value) == "row 0: key 1 is 'text'; expected only those of 'columns', ['image']"


def test_request_is_read_from_a_file(tmp_path):
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request([["", "a"]])))
    assert halves(read_request(file)) == [(None, "a")]
    with pytest.raises(InvalidInput, match=r"cannot read .*missing\.json: No such file"):
        read_request(tmp_path / "missing.json")


def test_request_shows_no_image_and_no_text_in_its_repr():
    shown = repr(read_request(request([[TWO_BY_TWO, "Jane Doe"]])))
    assert "Jane" not in shown
    assert "PNG" not in shown


IMAGE, TEXT = np.random.default_rng(0).standard_normal((2, 1024), dtype=np.float32)
MIXED = [
    EmbeddingRow(image_features=IMAGE, text_features=TEXT),
    EmbeddingRow(image_features=None, text_features=TEXT),
    EmbeddingRow(image_features=IMAGE, text_features=None),
]


def test_rows_layout_nests_images_leaves_texts_flat_and_gives_only_keys_that_apply():
    image, text = IMAGE.tolist(), TEXT.tolist()
    assert render_answer(MIXED, scaling_factor=4.5) == [
        {"image_features": [image], "text_features": text, "scaling_factor": 4.5},
        {"text_features": text, "scaling_factor": 4.5},
        {"image_features": [image], "scaling_factor": 4.5},
    ]


def test_card_layout_is_a_list_of_one_key_objects():
    image, text = IMAGE.tolist(), TEXT.tolist()
    assert render_answer(MIXED, scaling_factor=4.5, layout="card") == [
        {"image_features": [image, image]},
        {"text_features": [text, text]},
        {"scaling_factor": 4.5},
    ]


def test_object_layout_is_one_object():
    image, text = IMAGE.tolist(), TEXT.tolist()
    assert render_answer(MIXED, scaling_factor=4.5, layout="object") == {
        "image_features": [image, image],
        "text_features": [text, text],
        "scaling_factor": 4.5,
    }


@pytest.mark.parametrize("layout", ["rows", "card", "object"])
def test_scaling_factor_not_asked_for_is_in_no_layout(layout):
    assert "scaling_factor" not in json.dumps(render_answer(MIXED, scaling_factor=None, layout=layout))


@pytest.mark.parametrize(("layout", "empty"), [("rows", []), ("card", []), ("object", {})])
def test_answer_to_no_rows_is_empty(layout, empty):
    assert render_answer([], scaling_factor=4.5, layout=layout) == empty


def test_answer_keeps_every_bit_of_float32_through_json():
    answer = json.loads(json.dumps(render_answer(MIXED[:1], scaling_factor=4.513362407684326)))
    assert np.array_equal(np.array(answer[0]["image_features"][0], dtype=np.float32), IMAGE)
    assert np.array_equal(np.array(answer[0]["text_features"], dtype=np.float32), TEXT)


def test_rows_layout_has_the_shape_of_the_recorded_answer(recorded_answer):
    (recorded,) = recorded_answer
    (row,) = render_answer(MIXED[:1], scaling_factor=None)
    assert {key: np.shape(value) for key, value in row.items()} == {
        key: np.shape(value) for key, value in recorded.items()
    }
