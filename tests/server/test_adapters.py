"""The model.py adapters of the two preprocessing models, against a stand-in for Triton's Python API."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary
from tests.paths import REPOSITORY
from tests.python_backend_stand_in import Request, TritonError, TritonModelException, install, load_adapter
from tests.triton.processes import is_running

LIMITS = {"max_encoded_bytes": "1000000", "max_pixels": "1000000"}


@pytest.fixture
def log(monkeypatch):
    """What an adapter logs; installs the stand-in for triton_python_backend_utils."""
    return install(monkeypatch)


def load(name, version_folder, parameters=None):
    model = load_adapter(REPOSITORY / name / "1" / "model.py")
    config = {"parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()}}
    model.initialize(
        {
            "model_name": name,
            "model_config": json.dumps(config),
            "model_repository": str(version_folder.parent),
            "model_version": version_folder.name,
        }
    )
    return model


def rows(*values):
    return np.array(values, dtype=object).reshape(-1, 1)  # BYTES [n, 1]


def image_request(*files, **parameters):
    return Request({"image": rows(*files)}, parameters)


def text_request(*texts):
    return Request({"text": rows(*texts)})


def png(shade):
    file = BytesIO()
    Image.new("L", (20, 10), shade).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def version_folder(tmp_path):
    folder = tmp_path / "1"
    folder.mkdir()
    return folder


@pytest.fixture
def image_model(log, version_folder):
    settings = {"image_size": [480, 480], "interpolation": "bicubic"}
    (version_folder / "preprocessing.json").write_text(json.dumps(settings), encoding="utf-8")
    model = load("image_preprocessing", version_folder, {"profile": "azure", **LIMITS})
    yield model
    model.finalize()


@pytest.fixture
def text_model(log, version_folder):
    write_byte_vocabulary(version_folder, 514)
    build_tokenizer(version_folder, 77).save(str(version_folder / "tokenizer.json"))
    return load("text_tokenizer", version_folder)


def test_image_requests_of_a_batch_are_answered_in_order(image_model):
    responses = image_model.execute([image_request(png(10)), image_request(png(200), png(90))])
    assert [response.outputs["pixels"].shape for response in responses] == [(1, 480, 480, 3), (2, 480, 480, 3)]
    shades = [int(image[0, 0, 0]) for response in responses for image in response.outputs["pixels"]]
    assert shades == [10, 200, 90]


def test_bad_image_fails_its_own_request_and_no_neighbour(image_model):
    good, bad, last = image_model.execute([image_request(png(10)), image_request(png(1), b""), image_request(png(200))])
    assert bad.error.code == TritonError.INVALID_ARG
    assert bad.error.message.startswith("row 1: image is empty; expected")
    assert good.error is None
    assert last.outputs["pixels"][0, 0, 0].tolist() == [200, 200, 200]


def test_cancelled_image_request_is_answered_so_and_its_neighbour_with_pixels(image_model):
    cancelled, good = image_request(png(10)), image_request(png(200))
    cancelled.cancelled = True
    refused, answered = image_model.execute([cancelled, good])
    assert (refused.error.code, refused.error.message) == (TritonError.CANCELLED, "the request was cancelled")
    assert answered.outputs["pixels"][0, 0, 0].tolist() == [200, 200, 200]


def test_finalized_image_model_leaves_no_process(image_model):
    child = image_model.process.pid
    image_model.finalize()
    assert not is_running(child)


def test_image_parameters_count_for_their_own_request_only(image_model):
    refused, answered = image_model.execute(
        [image_request(png(10), image_standardization_image_size=9999), image_request(png(10))]
    )
    assert refused.error.code == TritonError.INVALID_ARG
    assert "image_standardization_image_size must be an integer from 1 to 2048" in refused.error.message
    assert answered.error is None


def test_text_requests_of_a_batch_are_answered_in_order(text_model):
    responses = text_model.execute([text_request(b"a"), text_request(b"b", b"")])
    ids = [row[:4].tolist() for response in responses for row in response.outputs["input_ids"]]
    start, end = 512, 513
    assert ids == [[start, 64 + 256, end, end], [start, 65 + 256, end, end], [start, end, end, end]]
    assert responses[1].outputs["attention_mask"].sum(axis=1).tolist() == [3, 2]


def test_bad_text_fails_its_own_request_and_no_neighbour(text_model):
    bad, good = text_model.execute([text_request(b"ok", b"\xff"), text_request(b"ok")])
    assert (bad.error.code, bad.error.message) == (
        TritonError.INVALID_ARG,
        "row 1: text is not valid UTF-8 (byte offset 0)",
    )
    assert good.error is None


@pytest.mark.parametrize(
    ("fixture", "step", "sent"),
    [("image_model", "preprocess", image_request(b"Jane Doe")), ("text_model", "tokenize", text_request(b"Jane Doe"))],
    ids=["image", "text"],
)
def test_unexpected_error_tells_the_caller_nothing_and_the_log_no_content(request, log, fixture, step, sent):
    def fail(inputs, *_):
        raise RuntimeError(f"cannot work on {inputs[0]!r}")

    model = request.getfixturevalue(fixture)
    setattr(model, step, fail)
    [response] = model.execute([sent])
    assert (response.error.code, response.error.message) == (TritonError.INTERNAL, "internal error")
    [line] = log
    assert line.startswith("request request-7: RuntimeError\n")
    assert "in fail" in line
    assert "Jane Doe" not in line


@pytest.mark.parametrize(
    ("name", "file"), [("image_preprocessing", "preprocessing.json"), ("text_tokenizer", "tokenizer.json")]
)
def test_model_that_was_not_exported_stops_the_load_with_one_line(log, version_folder, name, file):
    with pytest.raises(TritonModelException) as caught:
        load(name, version_folder, {"profile": "azure", **LIMITS})
    expected = f"{name}: {version_folder / file}: not found; run `medimage export medimageinsight` to write it"
    assert str(caught.value) == expected


def test_bad_model_parameter_stops_the_load_by_name(image_model, version_folder):
    with pytest.raises(TritonModelException, match=r"^image_preprocessing: parameter profile is 'fast'"):
        load("image_preprocessing", version_folder, {"profile": "fast", **LIMITS})
