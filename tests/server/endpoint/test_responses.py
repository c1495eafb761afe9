"""Failures of the client in the statuses of Azure's endpoints."""

import inspect

import pytest

from medimage_client import errors
from medimage_server.endpoint.responses import Refusal, ending, not_ready, refusal_of, too_many

CONTENT = "grpc://triton-7.ward:8001 patient's words"  # nothing of this sort goes to the caller

FAULT_OF_THE_CALLER = {errors.InvalidInput}
STATUS = {  # of every class there is
    errors.MedImageError: 424,
    errors.InvalidInput: 400,
    errors.MissingExtra: 424,
    errors.SharedMemoryError: 424,
    errors.TransportError: 503,
    errors.RequestTimeout: 504,
    errors.ResponseError: 424,
    errors.NotFound: 503,  # which the operator has to load; a deployment that nobody has is found out before
    errors.Unavailable: 429,
    errors.NotReady: 503,
    errors.NoSharedMemory: 503,
    errors.ServerError: 424,
    errors.ModelLost: 503,
}


def error_of(error_type):
    match error_type:
        case errors.MissingExtra:
            return errors.MissingExtra(CONTENT, "x", "y")
        case errors.NoSharedMemory:
            return errors.NoSharedMemory()
    return error_type(CONTENT)


def test_table_has_every_class_of_the_client():
    classes = {value for _, value in inspect.getmembers(errors, inspect.isclass)}
    assert classes == set(STATUS)


@pytest.mark.parametrize("error_type", STATUS, ids=lambda error_type: error_type.__name__)
def test_every_class_has_its_status(error_type):
    refusal = refusal_of(error_of(error_type))
    assert refusal.status == STATUS[error_type]
    assert "\n" not in refusal.message
    if error_type in FAULT_OF_THE_CALLER:
        assert refusal.message == CONTENT
    elif error_type is not errors.RequestTimeout:
        assert CONTENT not in refusal.message


def test_place_of_the_input_at_fault_is_told_apart_from_the_message():
    refusal = refusal_of(errors.InvalidInput("is no image", row=2, column="image"))
    assert (refusal.message, refusal.row, refusal.column) == ("row 2, column 'image': is no image", 2, "image")


@pytest.mark.parametrize("error_type", FAULT_OF_THE_CALLER)
def test_nothing_that_is_the_callers_fault_is_repeated_by_clients(error_type):
    """Microsoft's clients repeat 5xx, 429 and 408."""
    for kind in [error_type, *error_type.__subclasses__()]:
        assert 400 <= refusal_of(kind("x")).status < 408


def test_failed_model_is_not_repeated_by_clients_and_marked_as_azure_does():
    refusal = refusal_of(errors.ServerError("CUDA out of memory", status=500))
    assert (refusal.status, refusal.headers) == (424, {"x-ms-run-function-failed": "True"})


@pytest.mark.parametrize("status", [401, 403])
def test_triton_that_refuses_us_is_not_told_as_the_callers_key(status):
    refusal = refusal_of(errors.ResponseError(CONTENT, status=status))
    assert refusal.status == 424
    assert "configuration" in refusal.message


@pytest.mark.parametrize("status", [200, 302, 405, 413, 418, 499])
def test_other_answers_of_triton_are_a_failed_model(status):
    assert refusal_of(errors.ResponseError(CONTENT, status=status)).status == 424


@pytest.mark.parametrize("error_type", STATUS, ids=lambda error_type: error_type.__name__)
def test_only_what_may_be_asked_again_says_when(error_type):
    refusal = refusal_of(error_of(error_type))
    seconds = refusal.headers.get("retry-after")
    assert (seconds is not None) == (refusal.status in (429, 503))
    assert seconds is None or 1 <= int(seconds) <= 30


def test_refusal_is_its_status_and_one_line():
    for refusal, status in ((not_ready("none"), 503), (too_many("full", seconds=7), 429), (Refusal(418, "tea"), 418)):
        assert type(refusal.status) is int
        assert (refusal.status, str(refusal)) == (status, refusal.message)
    assert too_many("full", seconds=7).headers == {"retry-after": "7"}
    assert Refusal(418, "tea").headers == {}


def test_each_request_that_the_end_refuses_has_an_exception_of_its_own():
    """One for all would keep every request's frames, and images, in its traceback."""
    refusals = []
    for _ in range(3):
        with pytest.raises(Refusal) as raised:
            raise ending()
        refusals.append(raised.value)
    assert [(refusal.status, refusal.headers) for refusal in refusals] == [(503, {"retry-after": "5"})] * 3
    assert all(refusal.__traceback__.tb_next is None for refusal in refusals)
