"""Reports as server-sent events, read by a parser of its own, over reports in memory."""

import asyncio
import json
import re
from contextlib import aclosing
from dataclasses import replace

import pytest

from medimage_client.errors import InvalidInput, MedImageError, ResponseError, ServerError
from medimage_client.schema.reports import ReportRequest
from medimage_server.endpoint import report_events as module
from medimage_server.endpoint.report_events import event, report_events, with_comments
from medimage_server.endpoint.scoring import connection_over
from tests.client.fake_reports import MODEL, OUTPUT, PIECES, PROGRESS_TOLD, TEXT, TIMING, FakeReports, sent
from tests.client.fake_triton import grey
from tests.garbage import new_garbage
from tests.waiting import soon, until

CONCURRENCY = 4


def study(indication="cough"):
    return ReportRequest(
        frontal_image=grey(7),
        lateral_image=None,
        prior_image=None,
        indication=indication,
        technique=None,
        comparison=None,
        prior_report=None,
    )


def parsed(events):
    """After WHATWG HTML, 9.2.6, as far as these events go; comments left out."""
    text = b"".join(events).decode()
    assert text.endswith("\n\n")
    for block in text.removesuffix("\n\n").split("\n\n"):
        if not block.startswith(":"):
            name, data = re.fullmatch(r"event: (\w+)\ndata: (.*)", block).groups()
            yield name, json.loads(data)


def events_of(reports, *requests):
    return report_events(connection_over(reports, 20.0), requests, concurrency=CONCURRENCY)


async def collected(events):
    """What came, and the failure of a row that it ended with."""
    parts = []
    try:
        async for part in events:
            parts.append(part)
    except MedImageError as failed:
        return [*parsed(parts)] if parts else [], failed
    return [*parsed(parts)], None


def test_event_is_one_line_of_data_whatever_its_text():
    text = "a\nb\r\nc\rd \u2028 \x00 “é” data: x\n\nevent: end"
    part = event("text", row=0, text=text)
    assert re.findall(rb"[\r\n]+", part) == [b"\n", b"\n\n"]
    assert [*parsed([part])] == [("text", {"row": 0, "text": text})]


async def test_pieces_of_a_row_come_in_order_then_its_report_then_the_end():
    told, error = await collected(events_of(FakeReports(), study()))
    assert error is None
    assert told == [
        *(("text", {"row": 0, "text": piece}) for piece in PIECES),
        ("row", {"row": 0, "output": OUTPUT, "status": "complete"}),
        ("end", {}),
    ]


@pytest.mark.parametrize("status", ["truncated", "malformed"])
async def test_status_is_that_of_the_report(status):
    told, _ = await collected(events_of(FakeReports(status=status), study()))
    assert told[-2] == ("row", {"row": 0, "output": OUTPUT, "status": status})


async def test_model_is_told_where_triton_tells_it():
    told, _ = await collected(events_of(FakeReports(model=MODEL), study()))
    assert told[-2] == ("row", {"row": 0, "output": OUTPUT, "status": "complete", "model": MODEL.to_json()})


async def test_transport_is_there_for_the_next_request():
    reports = FakeReports()
    for _ in range(2):
        with new_garbage() as collect:
            told, _ = await collected(events_of(reports, study()))
            assert told[-1] == ("end", {})
            collect()  # the connection of the request
        await soon()
    assert reports.closed == 0


async def test_no_rows_are_an_end():
    assert await collected(events_of(FakeReports())) == ([("end", {})], None)


async def test_empty_piece_is_no_event():
    told, _ = await collected(events_of(FakeReports(pieces=("", "a", "", "b", "")), study()))
    assert [data["text"] for name, data in told if name == "text"] == ["a", "b"]
    assert [name for name, _ in told][-2:] == ["row", "end"]


class Slow(FakeReports):
    """Lets the others run before each response."""

    async def stream(self, call, *, timeout):
        async with aclosing(super().stream(call, timeout=timeout)) as responses:
            async for outputs in responses:
                for _ in range(5):
                    await asyncio.sleep(0)
                yield outputs


async def test_rows_are_written_at_once_each_in_its_own_order():
    indications = [f"indication {n}" for n in range(5)]
    reports = Slow(output=None)
    told, error = await collected(events_of(reports, *map(study, indications)))
    assert error is None
    assert len(reports.calls) == 5
    for row, indication in enumerate(indications):
        of_row = [(name, data) for name, data in told if data.get("row") == row]
        assert "".join(data["text"] for name, data in of_row if name == "text") == TEXT
        assert [name for name, _ in of_row] == ["text"] * 4 + ["row"]
        assert json.loads(of_row[-1][1]["output"]) == [[indication, None]]
    rows = [data["row"] for name, data in told if name == "text"]
    assert rows != sorted(rows)  # they are mixed
    assert told[-1] == ("end", {})
    assert [name for name, _ in told].count("end") == 1


async def test_so_many_rows_are_written_at_once_and_no_more():
    at_once = most = 0
    full = asyncio.Event()

    class Counting(Slow):
        async def stream(self, call, *, timeout):
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            if at_once == CONCURRENCY:
                full.set()
            async with asyncio.timeout(10):
                await full.wait()
            async with aclosing(super().stream(call, timeout=timeout)) as responses:
                async for outputs in responses:
                    yield outputs
            at_once -= 1

    told, error = await collected(events_of(Counting(), *[study()] * 10))
    assert error is None
    assert [name for name, _ in told].count("row") == 10
    assert most == CONCURRENCY


async def test_failure_of_a_row_ends_the_others():
    begun = []

    def refuse(call):
        begun.append(call)
        if sent(call)["indication"] == "bad":
            raise ServerError("the model failed")

    reports = FakeReports(hang=True, refuse=refuse)
    told, error = await collected(events_of(reports, study(), study("bad"), study()))
    assert (error.row, type(error)) == (1, ServerError)
    assert not {"row", "end"} & {name for name, _ in told}
    assert reports.closed_early == len(begun) - 1


async def test_failure_after_the_first_pieces_comes_after_them():
    told, error = await collected(events_of(FakeReports(broken=ServerError("stopped")), study()))
    assert [data["text"] for _, data in told] == [*PIECES[:-1]]
    assert str(error) == "stopped"


async def test_wrong_input_is_named_by_row_and_column():
    def refuse(call):
        if "lateral_image" in sent(call):
            raise InvalidInput("is no image", column="lateral_image")

    bad = replace(study(), lateral_image=grey(8))
    _, error = await collected(events_of(FakeReports(refuse=refuse), study(), bad))
    assert (error.row, type(error)) == (1, InvalidInput)
    assert str(error) == "row 1, column 'lateral_image': is no image"
    assert error.column == "lateral_image"


async def test_stream_that_ends_without_its_report_is_a_failure():
    told, error = await collected(events_of(FakeReports(status=None), study()))
    assert (error.row, type(error)) == (0, ResponseError)
    assert str(error) == "the stream ended before its report"
    assert "end" not in [name for name, _ in told]


async def test_closing_early_ends_what_is_being_written():
    reports = FakeReports(hang=True)
    events = events_of(reports, study(), study(), study())
    for _ in range(3 * len(PIECES[:-1])):
        await anext(events)
    await events.aclose()
    assert reports.closed_early == 3


@pytest.mark.parametrize("read_before", [1, 10])
async def test_closing_early_ends_a_caller_who_read_slower_than_it_was_written(read_before):
    reports = FakeReports(pieces=["x"] * 1000)
    events = events_of(reports, study(), study())
    for _ in range(read_before):
        await anext(events)
    await until(lambda: len(reports.calls) == 2)  # their images are encoded in threads
    await soon()  # all that may wait, waits
    async with asyncio.timeout(2.0):
        await events.aclose()
    assert reports.closed_early == 2


async def test_rows_wait_for_a_slow_reader(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING_EVENTS", 8)
    written = 0

    class Counting(FakeReports):
        async def stream(self, call, *, timeout):
            nonlocal written
            async with aclosing(super().stream(call, timeout=timeout)) as responses:
                async for outputs in responses:
                    written += 1
                    yield outputs

    events = events_of(Counting(pieces=["x"] * 100), study())
    await anext(events)
    await soon()
    assert written <= 1 + 8 + 1
    assert len([part async for part in events]) == 99 + 2  # with row and end
    assert written == 100


async def test_quiet_stream_has_comments_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.02)

    async def quiet():
        for n in range(3):
            await asyncio.sleep(0.07)
            yield event("text", row=0, text=str(n))

    parts = [part async for part in with_comments(quiet())]
    comments = [part for part in parts if part.startswith(b":")]
    assert set(comments) == {b": waiting\n\n"}
    assert 6 <= len(comments) <= 9
    assert [data["text"] for _, data in parsed(parts)] == ["0", "1", "2"]
    assert parts[0].startswith(b":")


async def test_lively_stream_has_no_comments():
    parts = [part async for part in with_comments(events_of(FakeReports(), study()))]
    assert not any(part.startswith(b":") for part in parts)
    assert len(parts) == len(PIECES) + 2


async def test_closing_a_quiet_stream_ends_what_is_being_written(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    reports = FakeReports(hang=True)
    events = with_comments(events_of(reports, study()))
    for start in (b"event: text", b":"):  # the first comments may come before the image is encoded
        while not (await anext(events)).startswith(start):
            pass
    await events.aclose()
    assert reports.closed_early == 1


async def test_error_comes_through_the_comments(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    _, error = await collected(with_comments(events_of(FakeReports(broken=ServerError("stopped")), study())))
    assert isinstance(error, ServerError)


async def test_times_and_progress_are_told_where_triton_tells_them():
    """Progress from when the prompt is read, so that a bad image is still told by the status of the answer."""
    told, error = await collected(events_of(FakeReports(timing=TIMING, progress=PROGRESS_TOLD), study()))
    assert error is None
    assert told == [
        *(("progress", {"row": 0, "progress": progress.to_json()}) for progress in PROGRESS_TOLD[1:]),
        *(("text", {"row": 0, "text": piece}) for piece in PIECES),
        ("row", {"row": 0, "output": OUTPUT, "status": "complete", "timing": TIMING.to_json()}),
        ("end", {}),
    ]
