"""What calls between models make of errors whose code Triton loses, and of answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from medimage_server import bls
from medimage_server.errors import Cancelled, InferenceFailed, InvalidInput, Unavailable, public_error, refusal
from tests.python_backend_stand_in import InferenceResponse, Tensor


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ("row 1: image is empty", InvalidInput, "row 1: image is empty"),
        ("[request id: x] Exceeds maximum queue size", Unavailable, "encoder is busy; try again later"),
        ("Request timeout expired", Unavailable, "encoder is busy; try again later"),
        ("its process was ended; try again later", Unavailable, "encoder: its process was ended; try again later"),
        ("internal error", InferenceFailed, "internal error: encoder: internal error"),
    ],
    ids=["row", "queue", "timeout", "ended", "other"],
)
def test_error_of_a_called_model_is_told_by_its_text(message, kind, text):
    error = bls.error_of("encoder", message)
    assert (type(error), str(error)) == (kind, text)


def test_image_at_fault_is_read_out_of_the_text_of_the_preprocessing():
    error = bls.error_of("preprocessing", "row 12: image is empty; expected row 1: a file")
    assert (error.row, error.reason) == (12, "image is empty; expected row 1: a file")


@pytest.mark.parametrize("kind", [InvalidInput, InferenceFailed, Unavailable, Cancelled])
def test_error_keeps_its_kind_through_its_name(kind):
    back = bls.by_name(str(bls.with_name(kind("lateral_image: no: image"))))
    assert (type(back), str(back)) == (kind, "lateral_image: no: image")


def test_error_without_a_name_is_a_failure():
    error = bls.by_name("Request timeout expired")
    assert (type(error), str(error)) == (InferenceFailed, "internal error: Request timeout expired")


def fake_triton(outputs, seen):
    answer = SimpleNamespace(has_error=lambda: False, outputs=outputs)

    def request(**arguments):
        seen.update(arguments)
        return SimpleNamespace(exec=lambda: answer)

    return SimpleNamespace(
        InferenceRequest=request,
        Tensor=Tensor,
        PreferredMemory=lambda kind: kind,
        TRITONSERVER_MEMORY_CPU="CPU",
        get_output_tensor_by_name=lambda response, name: Tensor(name, response.outputs[name]),
    )


def test_called_model_gets_its_inputs_and_its_output_is_copied():
    pixels, seen = np.ones((2, 3)), {}
    pb_utils = fake_triton({"image_tokens": pixels}, seen)
    output = bls.infer(pb_utils, "cxr_image_encoder", {"pixels": pixels}, "image_tokens")
    assert (seen["model_name"], seen["requested_output_names"]) == ("cxr_image_encoder", ["image_tokens"])
    assert seen["preferred_memory"] == "CPU"
    assert [(tensor.name(), tensor.as_numpy().tolist()) for tensor in seen["inputs"]] == [("pixels", pixels.tolist())]
    np.testing.assert_array_equal(output, pixels)
    assert not np.shares_memory(output, pixels)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("x"), "INVALID_ARG"),
        (InferenceFailed("x"), "INTERNAL"),
        (Unavailable("x"), "UNAVAILABLE"),
        (Cancelled("x"), "CANCELLED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_error_has_its_code(error, code):
    class TritonError:
        INVALID_ARG, INTERNAL, UNAVAILABLE, CANCELLED = "INVALID_ARG", "INTERNAL", "UNAVAILABLE", "CANCELLED"

        def __init__(self, message, code):
            self.message, self.code = message, code

    pb_utils = SimpleNamespace(TritonError=TritonError, InferenceResponse=InferenceResponse)
    response = refusal(pb_utils, public_error(pb_utils, error, "7"))
    assert (response.error.message, response.error.code) == ("x", code)
