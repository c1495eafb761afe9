"""The report clients over a Triton in memory: what is sent, what comes back, and how a stream is left."""

import asyncio
import base64
import inspect
import json
import signal
import threading
from dataclasses import asdict
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medimage_client import (
    AsyncCXRReportGen,
    AsyncReportStream,
    CXRReportGen,
    InvalidInput,
    MedImageError,
    ReportStream,
    RequestTimeout,
    ResponseError,
    ServerError,
    TransportError,
    Unavailable,
)
from medimage_client.constants import DEFAULT_REPORT_TIMEOUT_S
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import RAMP, dicom, file_of
from tests.client.fake_reports import OUTPUT, PIECES, PROGRESS_TOLD, TEXT, TIMING, FakeReports, sent, texts


@pytest.fixture
def reports():
    return FakeReports()


@pytest.fixture
def client(reports):
    with CXRReportGen("grpc://unused", transport=reports) as client:
        yield client


@pytest.fixture
def async_client(reports):
    return AsyncCXRReportGen("grpc://unused", transport=reports)


@pytest.fixture
def film(grey):
    return grey(7)


def test_report_sends_the_study_and_reads_the_answer(client, reports, grey):
    report = client.report(
        grey(1), lateral=grey(2), prior=grey(3), indication="Cough é", technique="One view", comparison="None",
        prior_report="Clear.", max_new_tokens=99, constrained=True,
    )  # fmt: skip
    assert [finding.text for finding in report.findings] == ["Heart is normal.", "Opacity."]
    assert (report.text, report.status) == ("Heart is normal. Opacity.", "complete")
    (call,) = reports.calls
    assert (call.model, call.parameters) == ("cxrreportgen_stream", {"constrained": True})
    assert sent(call) == {
        "frontal_image": encode_image(grey(1)),
        "lateral_image": encode_image(grey(2)),
        "prior_image": encode_image(grey(3)),
        "indication": "Cough é",
        "technique": "One view",
        "comparison": "None",
        "prior_report": "Clear.",
        "mode": "grounded",
        "max_new_tokens": 99,
    }
    assert call.inputs["max_new_tokens"].dtype == np.int32
    assert DEFAULT_REPORT_TIMEOUT_S - 1 < reports.timeouts[0] <= DEFAULT_REPORT_TIMEOUT_S == 600


def test_empty_sections_and_absent_images_are_not_sent(client, reports, film):
    client.report(film, indication=None, technique="")
    assert sent(reports.calls[0]).keys() == {"frontal_image", "mode"}
    assert reports.calls[0].parameters == {}


def test_phrase_is_sent_in_its_mode(client, reports, film):
    client.report(film, mode="phrase", phrase="Opacity.")
    assert {name: sent(reports.calls[0])[name] for name in ("mode", "phrase")} == {
        "mode": "phrase",
        "phrase": "Opacity.",
    }


MODES = "expected one of ['grounded', 'findings', 'phrase']"


@pytest.mark.parametrize("method", ["report", "stream"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "Cough"}, f"mode is a string of 5 characters; {MODES}"),
        ({"mode": ["Cough"]}, f"mode is a list; {MODES}"),
        ({"mode": None}, f"mode is missing or null; {MODES}"),
        ({"mode": "phrase"}, "phrase is empty; mode 'phrase' needs the finding to locate"),
        ({"mode": "phrase", "phrase": " "}, "phrase is empty; mode 'phrase' needs the finding to locate"),
        ({"phrase": "Jane"}, "phrase is given and mode is 'grounded'; expected mode 'phrase', or no phrase"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number above 0, or None"),
        ({"max_new_tokens": True}, "max_new_tokens is True; expected a whole number above 0, or None"),
        (
            {"max_new_tokens": "Cough"},
            "max_new_tokens is a string of 5 characters; expected a whole number above 0, or None",
        ),
        ({"max_new_tokens": ["Cough"]}, "max_new_tokens is a list; expected a whole number above 0, or None"),
        ({"max_new_tokens": 2**31}, "max_new_tokens is 2147483648; expected a whole number above 0, or None"),
        ({"indication": 5}, "indication: is of type int; expected str"),
        ({"prior_report": "\ud800"}, "prior_report: is not valid Unicode; expected no lone surrogates"),
    ],
)
def test_wrong_option_is_refused_at_once(client, reports, film, method, options, message):
    with pytest.raises(InvalidInput) as refused:
        getattr(client, method)(film, **options)
    assert str(refused.value) == message
    assert reports.calls == []


@pytest.mark.parametrize("method", ["report", "stream"])
@pytest.mark.parametrize("prior_report", ["Clear.", " "])
def test_prior_report_without_its_image_is_refused_and_not_dropped(client, reports, film, method, prior_report):
    with pytest.raises(InvalidInput, match=r"^prior_report: is given without prior") as refused:
        getattr(client, method)(film, prior_report=prior_report)
    assert refused.value.column == "prior_report"
    assert reports.calls == []


def test_dicom_window_is_that_of_every_image_and_of_the_picture(client, reports):
    ds = dicom(RAMP, BitsStored=12, WindowCenter=100, WindowWidth=100)
    for window in ("file", "percentile", (500, 1500)):
        report = client.report(file_of(ds), lateral=file_of(ds), dicom_window=window)
        images = [sent(reports.calls[-1])[name] for name in ("frontal_image", "lateral_image")]
        assert images == [encode_image(file_of(ds), dicom_window=window)] * 2
        drawn = np.asarray(report.draw(file_of(ds), dicom_window=window).convert("L"))
        film = Image.open(BytesIO(images[0])).resize((480, 480))
        assert np.array_equal(drawn[5:100, 300:], np.asarray(film)[5:100, 300:])  # beside boxes and below


def test_unreadable_image_is_named(client, reports, film):
    with pytest.raises(InvalidInput, match=r"^lateral_image: is an array of float64; scale it to uint8 first"):
        client.report(film, lateral=np.zeros((2, 2)))
    with pytest.raises(InvalidInput, match=r"^frontal_image: is of type int; expected a path"):
        list(client.stream(7))
    with pytest.raises(InvalidInput, match=r"^frontal_image is None; expected an image"):
        client.stream(None)
    assert reports.calls == []


def test_report_is_tried_again_when_the_server_is_overloaded(client, reports, film, no_delay):
    reports.failures = [Unavailable("queue is full"), TransportError("refused")]
    assert client.report(film).status == "complete"
    assert len(reports.calls) == 3


@pytest.mark.parametrize("status", ["truncated", "malformed"])
def test_report_tells_that_it_is_not_complete(client, reports, film, status):
    reports.status = status
    assert client.report(film).status == status
    stream = client.stream(film)
    assert "".join(stream) == TEXT
    assert stream.report.status == status


def test_answer_that_is_no_report_is_refused(client, reports, film):
    reports.output = "Jane"
    with pytest.raises(ResponseError, match="the output is not the JSON of findings"):
        client.report(film)


# ---- streams


def test_stream_gives_the_pieces_then_the_report(client, reports, film):
    stream = client.stream(film, indication="Cough", mode="findings", max_new_tokens=7)
    assert reports.calls == []  # nothing is sent before the first piece is asked for
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if len(pieces) < len(PIECES):
            with pytest.raises(MedImageError, match="there is no report before the stream is read to its end"):
                _ = stream.report
    assert pieces == list(PIECES)
    assert stream.report == client.report(film)
    assert list(stream) == []
    call = reports.calls[0]
    assert call.model == "cxrreportgen_stream"
    assert sent(call).keys() == {"frontal_image", "indication", "mode", "max_new_tokens"}
    assert reports.closed_early == 0


def test_empty_pieces_are_left_out(client, reports, film):
    reports.pieces = ["", "a", "", "b", ""]
    assert list(client.stream(film)) == ["a", "b"]


def test_stream_is_tried_again_before_its_first_piece_only(client, reports, film, no_delay):
    reports.failures = [Unavailable("queue is full"), TransportError("refused")]
    assert "".join(client.stream(film)) == TEXT
    assert len(reports.calls) == 3

    reports.broken = Unavailable("shutting down")
    stream = client.stream(film)
    assert [next(stream) for _ in PIECES[:-1]] == list(PIECES[:-1])
    with pytest.raises(Unavailable, match="shutting down"):
        next(stream)
    assert len(reports.calls) == 4
    with pytest.raises(MedImageError, match="there is no report"):
        _ = stream.report


def test_stream_that_ends_without_its_report_is_an_error(client, reports, film):
    reports.status = None
    with pytest.raises(ResponseError, match="the stream ended before its report"):
        list(client.stream(film))


def test_stream_without_end_is_a_timeout_and_is_closed(client, reports, film):
    reports.hang = True
    stream = client.stream(film, timeout=0.2)
    with pytest.raises(RequestTimeout, match=r"no end within 0\.2 s"):
        list(stream)
    assert reports.closed_early == 1


def test_stream_without_beginning_is_a_timeout(client, reports, film):
    reports.hang, reports.pieces = True, [""]
    with pytest.raises(RequestTimeout, match=r"no answer within 0\.2 s"):
        next(client.stream(film, timeout=0.2))
    assert reports.closed_early == 1


def run_loop_once(client):
    client.is_ready()  # which waits for its turn on the background loop


def test_stream_left_by_break_is_closed(collect, client, reports, film):
    for _ in client.stream(film):
        break
    collect()
    run_loop_once(client)
    run_loop_once(client)
    assert reports.closed_early == 1


def test_stream_is_closed_at_the_end_of_its_block(client, reports, film):
    with client.stream(film) as stream:
        assert next(stream) == PIECES[0]
    assert reports.closed_early == 1
    with pytest.raises(ResponseError, match="the stream ended before its report"):
        next(stream)


def test_block_of_a_stream_that_never_began_sends_nothing(client, reports, film):
    with client.stream(film):
        pass
    assert reports.calls == []


def test_ctrl_c_while_a_stream_waits_closes_it(client, reports, film):
    reports.hang = True
    main = threading.main_thread().ident
    with pytest.raises(KeyboardInterrupt), client.stream(film) as stream:
        for piece in stream:
            if piece == PIECES[-2]:  # the next one never comes
                threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    assert reports.closed_early == 1


async def test_async_stream_gives_the_same_and_is_closed_in_every_way(collect, async_client, reports, film):
    stream = async_client.stream(film)
    assert [piece async for piece in stream] == list(PIECES)
    assert stream.report == await async_client.report(film)

    async with async_client.stream(film) as stream:
        async for _ in stream:
            break
    assert reports.closed_early == 1

    async for _ in async_client.stream(film):
        break
    collect()
    for _ in range(5):
        await asyncio.sleep(0)
    assert reports.closed_early == 2

    reports.hang = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            async for _ in async_client.stream(film):
                pass
    assert reports.closed_early == 3


async def test_async_stream_is_closed_while_it_is_being_cancelled(async_client, reports, film):
    reports.hang, reports.pieces = True, [""]
    stream = async_client.stream(film)
    reading = asyncio.create_task(stream.__anext__())
    while not reports.calls:
        await asyncio.sleep(0.001)
    reading.cancel()
    await stream.aclose()
    assert reports.closed_early == 1
    with pytest.raises(asyncio.CancelledError):
        await reading


# ---- Azure's JSON


def row_of(image, **cells):
    return {"frontal_image": base64.encodebytes(encode_image(image)).decode(), **cells}


def request_of(*rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return {"input_data": {"columns": columns, "data": list(rows)}}


def test_score_answers_row_by_row_in_order_and_at_once(client, reports, film):
    reports.output, reports.wait_for_in_flight = None, 4
    request = request_of(*(row_of(film, indication=f"row {n}") for n in range(9)))
    assert client.score(request) == [{"output": f'[["row {n}", null]]'} for n in range(9)]
    assert reports.most_in_flight == 4


def test_score_passes_on_what_a_row_has(client, reports, grey):
    row = row_of(
        grey(1), lateral_image=row_of(grey(2))["frontal_image"], indication="", technique=None, comparison="None"
    )
    assert client.score(json.dumps(request_of(row))) == [{"output": OUTPUT}]
    assert sent(reports.calls[0]) == {
        "frontal_image": encode_image(grey(1)),
        "lateral_image": encode_image(grey(2)),
        "comparison": "None",
        "mode": "grounded",
    }


@pytest.mark.parametrize(
    ("reason", "column", "expected"),
    [
        ("not an image", "lateral_image", "row 1, column 'lateral_image': not an image"),
        (
            "the prompt has 7000 tokens; expected at most 6000",
            None,
            "row 1: the prompt has 7000 tokens; expected at most 6000",
        ),
        ("prompt: too long", None, "row 1: prompt: too long"),
    ],
)
def test_score_names_the_row_that_the_server_refuses(client, reports, film, reason, column, expected):
    def refuse(call):
        if sent(call)["indication"] == "bad":
            raise InvalidInput(reason, column=column)

    reports.refuse = refuse
    with pytest.raises(InvalidInput) as refused:
        client.score(request_of(row_of(film, indication="good"), row_of(film, indication="bad")))
    assert str(refused.value) == expected
    assert (refused.value.reason, refused.value.row, refused.value.column) == (reason, 1, column)


def test_score_of_a_failing_server_is_the_servers_error(client, reports, film):
    reports.failures = [ServerError("internal error")]
    with pytest.raises(ServerError, match="internal error"):
        client.score(request_of(row_of(film)))


# ---- the clients


def test_ready_asks_for_both_models(client):
    assert client.is_ready()


def test_forgotten_client_is_closed(collect, reports, film):
    client = CXRReportGen("grpc://unused", transport=reports)
    client.report(film)
    del client
    collect()
    with CXRReportGen("grpc://unused", transport=FakeReports()) as other:
        run_loop_once(other)
    assert reports.closed == 1


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"concurrency": 0}])
def test_wrong_bounds_are_refused(options):
    with pytest.raises(InvalidInput, match="expected timeout > 0, retries >= 0 and concurrency >= 1"):
        CXRReportGen("grpc://unused", **options)


@pytest.mark.parametrize(
    ("synchronous", "asynchronous"), [(CXRReportGen, AsyncCXRReportGen), (ReportStream, AsyncReportStream)]
)
def test_both_clients_have_the_same_methods_and_options(synchronous, asynchronous):
    def methods(cls):
        return {
            name.removeprefix("a"): inspect.signature(method).parameters
            for name, method in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(synchronous) == methods(asynchronous)


def test_report_and_stream_take_the_same_options():
    def options(method):
        return inspect.signature(method).parameters

    stream = dict(options(CXRReportGen.stream))
    assert stream.pop("on_progress").default is None  # a report that is not streamed tells nothing before its end
    assert dict(options(CXRReportGen.report)) == stream


def test_report_has_the_servers_times_where_it_tells_them(client, reports, film):
    of_an_older_server = client.report(film)
    assert of_an_older_server.timing is None
    reports.timing = TIMING
    assert client.report(film).timing == TIMING
    stream = client.stream(film)
    assert "".join(stream) == TEXT
    assert stream.report.timing == TIMING
    assert stream.report == of_an_older_server  # whatever it took


async def test_async_report_has_the_servers_times(async_client, reports, film):
    reports.timing = TIMING
    assert (await async_client.report(film)).timing == TIMING


def test_progress_is_told_whoever_asks_for_it_and_changes_no_piece(client, reports, film):
    reports.progress = PROGRESS_TOLD
    told = []
    with client.stream(film, on_progress=told.append) as stream:
        assert next(stream) == PIECES[0]
        assert told == [*PROGRESS_TOLD]
        assert list(stream) == list(PIECES[1:])
    assert list(client.stream(film)) == list(PIECES)
    assert [call.parameters for call in reports.calls] == [{"progress": True}, {}]


def test_older_server_tells_no_progress(client, film):
    told = []
    assert list(client.stream(film, on_progress=told.append)) == list(PIECES)
    assert told == []


async def test_async_stream_tells_progress(async_client, reports, film):
    reports.progress = PROGRESS_TOLD
    told = []
    assert [piece async for piece in async_client.stream(film, on_progress=told.append)] == list(PIECES)
    assert told == [*PROGRESS_TOLD]


@pytest.mark.parametrize("text", ["", "7", "[]", '{"queue_s": 1}', '{"queue_s": "Jane", "prompt_s": 1, "decode_s": 1}'])
def test_times_that_are_none_are_refused_without_being_shown(client, reports, film, text):
    reports._report = lambda call: texts(output=OUTPUT, status="complete", timing=text)
    with pytest.raises(ResponseError, match=r"^the output timing is not the JSON of an object of seconds$"):
        client.report(film)


@pytest.mark.parametrize(
    "change", [{"state": "Jane"}, {"tokens": 1.5}, {"tokens_read": None}, {"first_words_s": "Jane"}]
)
def test_progress_that_is_none_is_refused_without_being_shown(client, reports, film, change):
    text = json.dumps(asdict(PROGRESS_TOLD[0]) | change)
    reports.progress = [SimpleNamespace(to_json=lambda: text)]
    with pytest.raises(ResponseError, match=r"^the output progress is not the JSON of how far a report is$"):
        list(client.stream(film, on_progress=lambda progress: None))
