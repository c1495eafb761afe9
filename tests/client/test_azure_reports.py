"""The request and answer rules of Azure's CXRReportGen endpoint, with the samples of its card and documentation."""

import base64
import json

import pytest

from medimage_client import InvalidInput
from medimage_client.schema.reports import COLUMNS, render_reports
from tests.client.azure_samples import IMAGE_AND_TEXT, TEXT_ONLY, TWO_BY_TWO, is_report_request, read_report_requests

PNG = base64.b64decode(TWO_BY_TWO)
OTHER = b"another file"
OTHER_TEXT = base64.encodebytes(OTHER).decode()


def request(data, columns, **more):
    return {"input_data": {"columns": list(columns), "data": data}, **more}


def read_one(data, columns, **more):
    (study,) = read_report_requests(request(data, columns, **more))
    return {name: value for name in COLUMNS if (value := getattr(study, name)) is not None}


def test_sample_of_the_card_is_read():
    sample = {
        "input_data": {
            "columns": ["frontal_image", "lateral_image", "indication", "technique", "comparison"],
            "index": [0],
            "data": [[TWO_BY_TWO, OTHER_TEXT, "Pneumonia", "One view chest", "None"]],
        },
        "params": {},
    }
    (study,) = read_report_requests(json.dumps(sample))
    assert (study.frontal_image, study.lateral_image, study.prior_image) == (PNG, OTHER, None)
    assert (study.indication, study.technique, study.comparison, study.prior_report) == (
        "Pneumonia",
        "One view chest",
        "None",
        None,
    )
    assert (study.mode, study.phrase, study.max_new_tokens, study.constrained) == ("grounded", None, None, False)


@pytest.mark.parametrize(
    ("data", "columns", "expected"),
    [
        ([[TWO_BY_TWO]], ["frontal_image"], {"frontal_image": PNG}),
        ([["Cough", TWO_BY_TWO]], ["indication", "frontal_image"], {"frontal_image": PNG, "indication": "Cough"}),
        ([{"frontal_image": TWO_BY_TWO}], ["indication", "frontal_image"], {"frontal_image": PNG}),
        (
            [[TWO_BY_TWO, None, "", "", "Clear."]],
            ["frontal_image", "lateral_image", "prior_image", "indication", "prior_report"],
            {"frontal_image": PNG, "prior_report": "Clear."},
        ),
        (
            [[TWO_BY_TWO, "", "", "None", OTHER_TEXT, "Clear."]],
            ["frontal_image", "indication", "technique", "comparison", "prior_image", "prior_report"],
            {"frontal_image": PNG, "comparison": "None", "prior_image": OTHER, "prior_report": "Clear."},
        ),
        ([["data:image/png;base64," + TWO_BY_TWO]], ["frontal_image"], {"frontal_image": PNG}),
    ],
    ids=["frontal-alone", "orchestrator", "object", "null-and-empty", "toolkit", "data-uri"],
)
def test_row_as_real_clients_send_it_is_read(data, columns, expected):
    assert read_one(data, columns) == expected


@pytest.mark.parametrize("more", [{}, {"params": None}, {"params": {}}], ids=["absent", "null", "empty"])
def test_params_are_absent_null_or_empty(more):
    assert read_one([[TWO_BY_TWO]], ["frontal_image"], **more) == {"frontal_image": PNG}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            request([[TWO_BY_TWO, "a"], ["", "b"]], ["frontal_image", "indication"]),
            "row 1, column 'frontal_image': is missing; expected an image file as base64",
        ),
        (
            request([["a"]], ["indication"]),
            "row 0, column 'frontal_image': is missing; expected an image file as base64",
        ),
        (
            request([{}], ["frontal_image"]),
            "row 0, column 'frontal_image': is missing; expected an image file as base64",
        ),
        (
            request([[TWO_BY_TWO, "?"]], ["frontal_image", "prior_image"]),
            "row 0, column 'prior_image': is not valid base64; expected an image file as base64",
        ),
        (
            request([[TWO_BY_TWO, "http://host/a.png"]], ["frontal_image", "lateral_image"]),
            "row 0, column 'lateral_image': is a URL; nothing is downloaded, send the image file itself as base64",
        ),
        (
            request([[TWO_BY_TWO, 5]], ["frontal_image", "technique"]),
            "row 0, column 'technique': is a number; expected a string, or null if absent",
        ),
        (
            request([], ["frontal_image", "image"]),
            f"entry 1 of 'columns' is a string of 5 characters; expected one of {list(COLUMNS)}",
        ),
        (
            request([{"frontal_image": TWO_BY_TWO, "comparison": "a"}], ["frontal_image"]),
            "row 0: key 1 is 'comparison'; expected only those of 'columns', ['frontal_image']",
        ),
        (
            request([], ["frontal_image"], params={"max_new_tokens": 5}),
            "'params' has 'max_new_tokens'; expected none, for this model has no params",
        ),
        (
            request([], ["frontal_image"], params={f"Jane {n}": n for n in range(1000)}),
            "'params' has a string of 6 characters; expected none, for this model has no params",
        ),
        (request([], ["frontal_image"], params=[]), "'params' is an empty list; expected an object"),
    ],
)
def test_bad_request_is_refused_in_one_line(body, message):
    with pytest.raises(InvalidInput) as refused:
        read_report_requests(body)
    assert str(refused.value) == message


def test_study_shows_nothing_of_the_patient_in_its_repr():
    (study,) = read_report_requests(
        request([[TWO_BY_TWO, "Jane", "Jane", "Jane", "Jane"]], ["frontal_image", *COLUMNS[3:]])
    )
    assert "Jane" not in repr(study)
    assert "PNG" not in repr(study)


@pytest.mark.parametrize("column", COLUMNS)
def test_any_column_of_the_seven_makes_it_a_report_request(column):
    assert is_report_request(request([], ["text", column]))


@pytest.mark.parametrize(
    "body",
    [TEXT_ONLY, IMAGE_AND_TEXT, {}, {"input_data": []}, {"input_data": {"columns": "frontal_image"}}],
    ids=["text", "image-and-text", "empty", "list", "no-list-of-columns"],
)
def test_other_requests_are_not(body):
    assert not is_report_request(body)


def test_answer_is_the_recorded_form():
    output = '[["The heart size is normal.", null], ["The aorta is tortuous.", [[0.415, 0.225, 0.635, 0.755]]]]'
    answer = json.loads(json.dumps(render_reports([output, "[]"])))
    assert [list(row) for row in answer] == [["output"], ["output"]]
    assert json.loads(answer[0]["output"])[1] == ["The aorta is tortuous.", [[0.415, 0.225, 0.635, 0.755]]]
