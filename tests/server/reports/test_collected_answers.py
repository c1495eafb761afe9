"""Whole reports collected from a stream that the test plays."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from medimage_server.reports.collected_answers import CollectedAnswers
from medimage_server.triton_workarounds import FOLDER_VARIABLE, PARAMETER, is_given_up
from tests.python_backend_stand_in import Request
from tests.server.reports.fake_triton import fake_triton, response
from tests.waiting import wait_until

WAIT_S = 10.0


def whole(inputs):
    """The two responses of a stream whose findings are the image's bytes."""
    outputs = {"output": inputs["frontal_image"], "status": np.array([b"complete"], dtype=object)}
    return [response({**outputs}), response()]


@contextmanager
def collecting(answer_call, max_requests=4):
    answers = CollectedAnswers(fake_triton(answer_call), max_requests)
    try:
        yield answers
    finally:
        answers.close()


def add(answers, image=b"image", **parameters):
    """Have a request answered; its sender."""
    request = Request({"frontal_image": np.array([image], dtype=object)}, parameters)
    answers.add(request, parameters)
    return request.sender


def only_response(sender):
    assert sender.answered.wait(WAIT_S)
    (only,) = sender.sent
    return only


def refusal_of(sender):
    error = only_response(sender).error
    return error.code, error.message


def test_each_request_gets_its_own_answer():
    with collecting(lambda parameters, inputs: whole(inputs)) as answers:
        senders = [add(answers, bytes([number])) for number in range(4)]
        assert [only_response(sender).outputs["output"][0] for sender in senders] == [bytes([n]) for n in range(4)]


def test_request_beyond_the_bound_is_refused_at_once_and_others_are_answered():
    hold = threading.Event()
    with collecting(lambda parameters, inputs: hold.wait(WAIT_S) and whole(inputs), max_requests=2) as answers:
        taken = [add(answers) for _ in range(2)]
        assert refusal_of(add(answers)) == ("UNAVAILABLE", "2 requests are waiting already; try again later")
        hold.set()
        assert [only_response(sender).error for sender in taken] == [None, None]
        assert only_response(add(answers)).error is None


def test_stream_that_ends_without_an_answer_is_an_internal_error():
    with collecting(lambda parameters, inputs: [response()]) as answers:
        assert refusal_of(add(answers)) == ("INTERNAL", "internal error: cxrreportgen_stream ended without an answer")


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        ("InvalidInput: frontal_image is missing", ("INVALID_ARG", "frontal_image is missing")),
        ("Unavailable: the server is shutting down", ("UNAVAILABLE", "the server is shutting down")),
        ("stub died", ("INTERNAL", "internal error: stub died")),
    ],
)
def test_error_of_the_stream_is_the_callers(error, refusal):
    with collecting(lambda parameters, inputs: [response(error=error)]) as answers:
        assert refusal_of(add(answers)) == refusal


def test_only_the_parameters_of_a_report_are_passed_on():
    seen = []

    def answer_call(parameters, inputs):
        seen.append(parameters)
        return whole(inputs)

    with collecting(answer_call) as answers:
        only_response(add(answers, constrained=True, temperature=0.7, cancel="x", **{PARAMETER: 7}))
    (parameters,) = seen
    assert parameters.keys() == {"constrained", PARAMETER}
    assert parameters["constrained"] is True
    assert parameters[PARAMETER] != 7


@pytest.fixture(params=["run", "temporary"])
def folder(request, monkeypatch, tmp_path):
    """Where the models tell each other: the run's folder, or that of temporary files where there is no run of ours."""
    if request.param == "run":
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    else:
        monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_cancellation_reaches_the_call_and_leaves_no_file(folder):
    others = threading.Event()

    def answer_call(parameters, inputs):
        if inputs["frontal_image"][0] == b"other":
            assert others.wait(WAIT_S)
            assert not is_given_up(parameters)
            return whole(inputs)
        wait_until(lambda: is_given_up(parameters))
        return [response(error="Cancelled: the request was cancelled")]

    with collecting(answer_call) as answers:
        other, sender = add(answers, b"other"), add(answers)
        sender.cancelled = True
        assert refusal_of(sender) == ("CANCELLED", "the request was cancelled")
        others.set()
        assert only_response(other).error is None
    assert [*folder.iterdir()] == []


def test_cancellation_that_cannot_be_told_at_first_is_told_again(monkeypatch, tmp_path, caplog):
    folder = tmp_path / "later"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))

    def answer_call(parameters, inputs):
        wait_until(lambda: caplog.messages)
        folder.mkdir()
        wait_until(lambda: is_given_up(parameters))
        return [response(error="Cancelled: the request was cancelled")]

    with collecting(answer_call) as answers:
        sender = add(answers)
        sender.cancelled = True
        assert refusal_of(sender) == ("CANCELLED", "the request was cancelled")
    assert caplog.messages[0] == "a cancellation could not be told: FileNotFoundError"


def test_sender_that_fails_loses_no_other_answer():
    hold = threading.Event()
    with collecting(lambda parameters, inputs: hold.wait(WAIT_S) and whole(inputs), max_requests=2) as answers:
        bad, good, refused = add(answers), add(answers), Request({})
        bad.fail = refused.sender.fail = RuntimeError("gone")
        answers.add(refused, {})
        hold.set()
        assert only_response(good).error is None
        assert bad.answered.wait(WAIT_S)
        assert [only_response(sender).error for sender in (add(answers), add(answers))] == [None, None]
