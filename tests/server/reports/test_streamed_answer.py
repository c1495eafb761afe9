"""The responses of the stream model, to its callers and to calls of the model that collects them."""

import pytest

from medimage_server.errors import InferenceFailed, InvalidInput
from medimage_server.reports.generator import Report
from medimage_server.reports.streamed_answer import StreamedAnswer
from tests.python_backend_stand_in import Request
from tests.server.reports.fake_triton import fake_triton

CALL = "0123456789abcdef" * 2
REPORT = Report(output="[]", status="complete")


def streamed(calls=None, call_id=None):
    """An answer, and the sender that it goes to."""
    request = Request({})
    return StreamedAnswer(fake_triton(), request, {} if calls is None else calls, call_id), request.sender


def texts(response):
    return {name: array[0].decode() for name, array in response.outputs.items()}


def test_caller_gets_each_delta_and_the_findings_at_the_end():
    answer, sender = streamed()
    answer.text("Clear ")
    answer.end("lungs.", REPORT)
    assert [texts(response) for response in sender.sent] == [
        {"text_output": "Clear "},
        {"text_output": "lungs.", "output": "[]", "status": "complete"},
    ]
    assert sender.answered.is_set()


def test_call_gets_the_end_alone_and_its_errors_named():
    calls = {}
    answer, sender = streamed(calls, CALL)
    answer.text("Clear ")
    assert (sender.sent, calls) == ([], {CALL: answer})
    answer.fail(InvalidInput("frontal_image is missing"))
    (response,) = sender.sent
    assert response.error.message == "InvalidInput: frontal_image is missing"
    assert calls == {}


@pytest.mark.parametrize("strange", ["x", "", 7, 0.5, True, CALL + "\n"])
def test_parameter_that_is_no_id_makes_no_call_and_cancels_nothing(strange):
    calls = {}
    answer, sender = streamed(calls, strange)
    assert calls == {}
    with pytest.raises(InvalidInput, match=r"^parameter medimage_internal_cancel is not for callers of this server$"):
        answer.cancel(strange)
    assert not sender.answered.is_set()
    answer.text("Clear")
    assert [texts(response) for response in sender.sent] == [{"text_output": "Clear"}]


def test_cancel_before_its_call_is_answered_and_told_again_takes_effect():
    calls = {}
    for is_first in (True, False):
        cancel, sender = streamed(calls)
        cancel.cancel(CALL)
        assert (sender.answered.is_set(), sender.sent) == (True, [])
        if is_first:
            call, _ = streamed(calls, CALL)
            assert not call.is_cancelled()
    assert call.is_cancelled()


def test_answered_caller_is_not_asked_any_more():
    answer, sender = streamed()
    sender.cancelled = True
    assert answer.is_cancelled()
    answer.end("", REPORT)
    assert not answer.is_cancelled()  # the sender would refuse the question


def test_sender_that_fails_at_the_end_is_logged_without_its_text(caplog):
    answer, sender = streamed()
    sender.fail = RuntimeError("secret")
    answer.fail(InferenceFailed("internal error"))
    assert caplog.messages == ["an answer could not be sent: RuntimeError"]
