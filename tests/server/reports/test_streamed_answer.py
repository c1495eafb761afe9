"""The responses of the stream model, to its callers and to calls of the model that collects them."""

import json

import pytest

from medimage_client.schema.reports import ReportProgress, ReportTiming, read_timing
from medimage_server.errors import InferenceFailed, InvalidInput
from medimage_server.heartbeat import FOLDER_VARIABLE
from medimage_server.reports.generator import FinishedReport
from medimage_server.reports.streamed_answer import StreamedAnswer
from medimage_server.triton_workarounds import PARAMETER, file_of
from tests.python_backend_stand_in import Request
from tests.server.reports.fake_triton import fake_triton

CALL = {PARAMETER: 7}
REPORT = FinishedReport(output="[]", status="complete")


def streamed(parameters=None):
    """An answer, and the sender that it goes to."""
    request = Request({})
    return StreamedAnswer(fake_triton(), request, parameters or {}), request.sender


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


def test_model_is_told_with_the_findings():
    request = Request({})
    answer = StreamedAnswer(fake_triton(), request, {}, model="{}")
    answer.text("Clear ")
    answer.end("lungs.", REPORT)
    assert [texts(response) for response in request.sender.sent] == [
        {"text_output": "Clear "},
        {"text_output": "lungs.", "output": "[]", "status": "complete", "model": "{}"},
    ]


def test_call_gets_the_end_alone_and_its_errors_named():
    answer, sender = streamed(CALL)
    answer.text("Clear ")
    assert sender.sent == []
    answer.fail(InvalidInput("frontal_image is missing"))
    (response,) = sender.sent
    assert response.error.message == "InvalidInput: frontal_image is missing"


@pytest.mark.parametrize("strange", ["x", "", "7", 0.5, True, -7, None])
def test_parameter_that_is_no_number_makes_no_call(strange):
    answer, sender = streamed({PARAMETER: strange})
    answer.text("Clear")
    assert [texts(response) for response in sender.sent] == [{"text_output": "Clear"}]
    assert not answer.is_cancelled()


def test_call_is_cancelled_by_the_file_of_its_number_alone(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    answer, _ = streamed(CALL)
    file_of(tmp_path, 8).touch()
    assert not answer.is_cancelled()
    file_of(tmp_path, 7).touch()
    assert answer.is_cancelled()


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


PROGRESS = ReportProgress(state="reading", tokens_read=512, tokens=1520, first_words_s=7.123)


def test_progress_and_timing_are_json_texts():
    answer, sender = streamed()
    answer.progress(PROGRESS)
    timing = ReportTiming(queue_s=0.5, prompt_s=12.25, decode_s=3.0)
    answer.end("Clear.", FinishedReport(output="[]", status="complete", timing=timing))
    told, last = map(texts, sender.sent)
    assert told.keys() == {"progress"}
    assert json.loads(told["progress"]) == {
        "state": "reading",
        "tokens_read": 512,
        "tokens": 1520,
        "first_words_s": 7.12,
    }
    assert json.loads(last.pop("timing")) == {"queue_s": 0.5, "prompt_s": 12.25, "decode_s": 3.0}
    assert last == {"text_output": "Clear.", "output": "[]", "status": "complete"}
    assert read_timing(timing.to_json()) == timing


def test_call_gets_no_progress():
    answer, sender = streamed(CALL)
    answer.progress(PROGRESS)
    assert sender.sent == []
