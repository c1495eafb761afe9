"""A request's body: within its size, in time, and none of its memory forgotten."""

import asyncio
from contextlib import contextmanager, nullcontext
from time import perf_counter

import pytest
from starlette.datastructures import Headers

from medimage_server.endpoint import body as body_module
from medimage_server.endpoint.admission import Memory
from medimage_server.endpoint.body import Body
from medimage_server.endpoint.responses import ClientGone, Refusal
from tests.waiting import soon

JSON = {"content-type": "application/json"}


class Sender:
    """A caller that sends parts, each after a delay in seconds, and counts those that were taken."""

    def __init__(self, *parts, delay_s=0.0, then="end"):
        self.parts = list(parts)
        self.delay_s = delay_s
        self.then = then  # end | stall | gone
        self.n_taken = 0

    async def __call__(self):
        await asyncio.sleep(self.delay_s)
        if self.n_taken == len(self.parts):
            if self.then == "stall":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        self.n_taken += 1
        more = self.then != "end" or self.n_taken < len(self.parts)
        return {"type": "http.request", "body": self.parts[self.n_taken - 1], "more_body": more}


@pytest.fixture
def memory():
    return Memory(1000)


@pytest.fixture
def body(memory):
    @contextmanager
    def body(sender, max_bytes=100, **headers):
        with memory.share() as share:
            yield Body(Headers(JSON | headers), sender, max_bytes=max_bytes, share=share)

    return body


def stating(n_bytes):
    return {"content-length": str(n_bytes)}


async def refusal(body):
    with body as one, pytest.raises(Refusal) as error:
        await one.read()
    return error.value


@pytest.mark.parametrize("parts", [[b"{}"], [b"", b"{", b"", b"}"], [b"x" * 50] * 2, [b""]])
@pytest.mark.parametrize("states_its_size", [True, False])
async def test_parts_become_the_body(body, memory, parts, states_its_size):
    whole = b"".join(parts)
    with body(Sender(*parts), **stating(len(whole)) if states_its_size else {}) as one:
        assert await one.read() == whole
        assert one.n_bytes == memory.held_bytes == len(whole)
    assert memory.held_bytes == 0


async def test_stated_size_is_counted_before_the_body_comes(body, memory):
    with body(Sender(b"x" * 10, then="stall"), **stating(90)) as one:
        reading = asyncio.create_task(one.read())
        await soon()
        assert memory.held_bytes == 90
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert memory.held_bytes == 0


@pytest.mark.parametrize("size", [*map(str, [101, 10**18, 10**30]), "-1", "1e2", "ten", ""])
async def test_stated_size_that_is_too_large_or_no_number_is_refused_before_a_byte_is_read(body, memory, size):
    sender = Sender(b"x" * 101)
    error = await refusal(body(sender, **{"content-length": size}))
    assert (error.status, sender.n_taken, memory.held_bytes) == (413, 0, 0)
    assert "larger than 100 bytes, which is the limit" in error.message


async def test_body_without_a_size_is_refused_as_soon_as_it_is_too_large(body, memory):
    sender = Sender(*[b"x" * 60] * 50)
    held = []
    count = memory.count
    memory.count = lambda n_bytes: (count(n_bytes), held.append(memory.held_bytes))
    assert (await refusal(body(sender))).status == 413
    assert sender.n_taken == 2
    assert max(held) == 60
    assert memory.held_bytes == 0


async def test_what_is_not_wanted_is_read_without_being_counted(body, memory):
    sender = Sender(*[b"x" * 60] * 50)
    with body(sender) as one:
        with pytest.raises(Refusal):
            await one.read()
        counted = memory.held_bytes
        await one.discard()
        assert memory.held_bytes == counted <= 100
    assert sender.n_taken == 50


async def test_more_than_was_stated_is_counted_too(body, memory):
    with body(Sender(b"x" * 40, b"x" * 40), **stating(50)) as one:
        assert len(await one.read()) == 80
        assert memory.held_bytes == 80
    assert memory.held_bytes == 0
    assert (await refusal(body(Sender(b"x" * 101), **stating(50)))).status == 413
    assert memory.held_bytes == 0


@pytest.mark.parametrize("sent, what", [((), "nothing at all"), ((b"x" * 7,), "seven bytes")])
async def test_stall_is_a_408(body, memory, monkeypatch, sent, what):
    monkeypatch.setattr(body_module, "STALL_LIMIT_S", 0.05)
    start = perf_counter()
    error = await refusal(body(Sender(*sent, then="stall"), **stating(90)))
    assert 0.05 <= perf_counter() - start < 1.0
    assert error.status == 408
    assert f": {7 * len(sent)} bytes, then nothing" in error.message
    assert memory.held_bytes == 0


@pytest.mark.parametrize(
    ("limit", "rate"), [("GRACE_S", 1e9), ("TOTAL_LIMIT_S", 1e-9)], ids=["under-the-rate", "longer-than-all"]
)
async def test_trickle_is_a_408(body, memory, monkeypatch, limit, rate):
    monkeypatch.setattr(body_module, "STALL_LIMIT_S", 0.1)
    monkeypatch.setattr(body_module, "MIN_BYTES_S", rate)
    monkeypatch.setattr(body_module, limit, 0.2)
    sender = Sender(*[b"x"] * 100, delay_s=0.02)
    start = perf_counter()
    assert (await refusal(body(sender))).status == 408
    assert 0.2 <= perf_counter() - start < 1.0
    assert 1 < sender.n_taken < 20
    assert memory.held_bytes == 0


async def test_slow_body_that_never_stalls_is_taken(body, monkeypatch):
    monkeypatch.setattr(body_module, "STALL_LIMIT_S", 0.5)
    with body(Sender(*[b"x"] * 12, delay_s=0.05)) as one:  # longer than that, all in all
        assert await one.read() == b"x" * 12


async def test_caller_that_goes_is_noticed_and_its_memory_given_back(body, memory):
    with body(Sender(b"x" * 30, then="gone"), **stating(90)) as one, pytest.raises(ClientGone):
        await one.read()
    assert memory.held_bytes == 0
    assert one.n_bytes == 30


async def test_discarding_ends_with_the_body_the_caller_or_its_time(body, monkeypatch):
    monkeypatch.setattr(body_module, "DISCARD_LIMIT_S", 0.05)
    for then in ("end", "gone", "stall"):
        sender = Sender(b"x" * 200, b"x" * 200, then=then)
        with body(sender, **stating(400)) as one:
            with pytest.raises(Refusal, match="the limit"):
                await one.read()
            start = perf_counter()
            await one.discard()
            assert perf_counter() - start < 1.0
        assert sender.n_taken == 2


async def test_discarding_a_body_that_was_read_waits_for_nothing(body):
    with body(Sender(b"{}", then="end")) as one:
        await one.read()
        async with asyncio.timeout(0.05):
            await one.discard()


async def test_memory_that_others_hold_refuses_a_stated_size_at_once_and_parts_when_they_come(body, memory):
    memory.count(950)
    stated, parts = Sender(b"x" * 60), Sender(*[b"x" * 30] * 3)
    error = await refusal(body(stated, **stating(60)))
    assert (error.status, error.headers["retry-after"], stated.n_taken) == (429, "1", 0)
    assert (await refusal(body(parts))).status == 429
    assert parts.n_taken == 2
    assert memory.held_bytes == 950


async def test_body_alone_may_be_larger_than_the_memory_for_all(body, memory):
    for headers in ({}, stating(1200)):
        with body(Sender(*[b"x" * 300] * 4), max_bytes=1500, **headers) as one:
            assert len(await one.read()) == 1200
        assert memory.held_bytes == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/json5"},
        {"content-type": "multipart/form-data; boundary=application/json"},
        {"content-encoding": "gzip"},
        {"content-encoding": "identity, gzip"},
    ],
)
async def test_what_is_not_plain_json_is_a_415_before_a_byte_is_read(body, headers):
    sender = Sender(b"{}")
    assert (await refusal(body(sender, **headers))).status == 415
    assert sender.n_taken == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json\xa0"},
        {"content-type": "application/json\x1f; charset=utf-8"},
        {"content-type": "application/json; charset=utf-8; charset=utf-16"},
        {"content-type": "application/json; charset=\xa0utf-8"},
        {"content-encoding": "\xa0identity"},
    ],
)
async def test_only_space_and_tab_are_white_space_and_every_charset_counts(body, headers):
    assert (await refusal(body(Sender(b"{}"), **headers))).status == 415


@pytest.mark.parametrize("name, status", [("content-type", 400), ("content-encoding", 415)])
async def test_header_that_is_given_twice_is_refused(memory, name, status):
    once = {"content-type": "application/json", "content-encoding": "identity"}
    headers = Headers(raw=[(key.encode(), value.encode()) for key, value in [*once.items(), (name, once[name])]])
    with memory.share() as share:
        one = Body(headers, Sender(b"{}"), max_bytes=100, share=share)
        assert (await refusal(nullcontext(one))).status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": 'application/json;\tcharset="UTF-8" ; xcharset=utf-16'},
        {"content-type": "Application/JSON"},
        {"content-encoding": "identity"},
        {"content-encoding": " Identity "},
    ],
)
async def test_json_by_its_other_names_is_taken(body, headers):
    with body(Sender(b"{}"), **headers) as one:
        assert await one.read() == b"{}"
