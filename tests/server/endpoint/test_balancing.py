"""One transport over several Tritons in memory: who is asked, who is asked next, and who is given up."""

import asyncio
import logging
import socket
from contextlib import aclosing

import numpy as np
import pytest

from medimage_client.errors import (
    InvalidInput,
    ModelLost,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    ServerError,
    TransportError,
    Unavailable,
)
from medimage_client.wire import triton_workarounds
from medimage_client.wire.transport import Call
from medimage_client.wire.triton import Endpoint
from medimage_server.endpoint import balancing, metrics
from medimage_server.endpoint.balancing import SILENT_CHECKS, BalancedTransport
from medimage_server.heartbeat import FOLDER_VARIABLE
from medimage_server.triton_workarounds import PARAMETER, is_given_up
from tests.waiting import soon, until

TEXTS = Call("medimageinsight_text", {}, (), {})
REPORT = Call("cxrreportgen_stream", {}, (), {}, decoupled=True)
STREAM = Call("cxrreportgen_stream", {}, (), {})
BOTH = ("medimageinsight", "cxrreportgen")


class Triton:
    """A Transport that answers with its name, when `answers` is set. `failures` are raised first, one a call."""

    def __init__(self, name, *failures, url=None, ready=BOTH, responses=3, breaks=None, tells="2.51.0", gives="name"):
        self.name = name
        self.url = url or f"grpc://{name}:1"
        self.failures = list(failures)
        self.ready = ready  # deployments; an exception; None is silence
        self.responses = responses
        self.gives = gives  # the output of its responses
        self.breaks = breaks  # raised after the first response of a stream
        self.version = None  # as the transport knows it
        self.tells = tells  # its version; an exception is raised
        self.version_asked = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.ended_early = 0
        self.closed = 0

    def output(self):
        return {self.gives: np.array([self.name])}

    async def _begin(self):
        self.calls += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        await self.answers.wait()

    async def infer(self, call, *, timeout):
        self.parameters = call.parameters
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self._begin()
        except asyncio.CancelledError:
            self.ended_early += 1
            raise
        finally:
            self.in_flight -= 1
        return self.output()

    async def stream(self, call, *, timeout):
        try:
            await self._begin()
            for _ in range(self.responses):
                yield self.output()
                if self.breaks:
                    raise self.breaks
                await self.answers.wait()
        except (GeneratorExit, asyncio.CancelledError):
            self.ended_early += 1
            raise

    async def server_version(self):
        self.version_asked += 1
        self.version = ""
        if isinstance(self.tells, Exception):
            raise self.tells
        self.version = self.tells
        return self.version

    async def is_ready(self, models):
        await asyncio.sleep(0)
        if isinstance(self.ready, Exception):
            raise self.ready
        if self.ready is None:
            await asyncio.Event().wait()
        return models[0].partition("_")[0] in self.ready

    async def close(self):
        self.closed += 1


@pytest.fixture
async def balance(monkeypatch):
    """A balanced transport over these Tritons, which has asked them for their health once."""
    monkeypatch.setattr(balancing, "CHECK_LIMIT_S", 0.02)

    async def balance(*tritons, slots=4, deployments=BOTH, urls=None):
        by_address = {Endpoint.parse(triton.url).address: triton for triton in tritons}
        monkeypatch.setattr(
            "medimage_client.wire.triton.Endpoint.connect",
            lambda endpoint, *, shared_memory: by_address[endpoint.address],
        )
        transport = BalancedTransport(urls or [triton.url for triton in tritons], deployments, slots=slots)
        await transport.open()
        return transport

    return balance


async def ask(transport, call=TEXTS):
    """The name of the Triton that answers."""
    return (await transport.infer(call, timeout=9.0))["name"].item()


async def read(transport, call=STREAM):
    async with aclosing(transport.stream(call, timeout=9.0)) as responses:
        return [outputs["name"].item() async for outputs in responses]


async def test_calls_go_to_the_triton_with_the_least_to_do(balance):
    tritons = a, *_ = Triton("a"), Triton("b"), Triton("c")
    transport = await balance(*tritons, slots=9)
    for triton in tritons:
        triton.answers.clear()
    asked = []
    for _ in range(7):
        asked.append(asyncio.create_task(ask(transport)))
        await soon()
    assert [triton.in_flight for triton in tritons] == [3, 2, 2]
    a.answers.set()  # and is soon idle
    await soon()
    a.answers.clear()
    for _ in range(2):
        asked.append(asyncio.create_task(ask(transport)))
        await soon()
    assert [triton.in_flight for triton in tritons] == [2, 2, 2]
    for triton in tritons:
        triton.answers.set()
    assert sorted(await asyncio.gather(*asked)) == ["a"] * 5 + ["b"] * 2 + ["c"] * 2
    assert all(backend.in_flight == 0 for backend in transport.backends)


async def test_streams_count_as_load_until_they_end(balance):
    a, b = Triton("a"), Triton("b")
    transport = await balance(a, b)
    async with aclosing(transport.stream(STREAM, timeout=9.0)) as responses:
        assert (await anext(responses))["name"] == "a"
        assert {await ask(transport), await ask(transport)} == {"b"}
    assert await ask(transport) == "a"
    assert a.ended_early == 1


@pytest.mark.parametrize(
    "failure, stays_ready",
    [
        (TransportError("reset"), False),
        (NotReady("not loaded"), False),
        (NotFound("no such model"), False),
        (Unavailable("full"), True),
        (ModelLost("Stub process 'x' is not healthy"), False),  # Triton 2.51, when a process of a model is gone
    ],
)
async def test_what_another_may_answer_is_tried_there(balance, failure, stays_ready):
    a, b = Triton("a", failure), Triton("b")
    transport = await balance(a, b)
    assert await ask(transport) == "b"
    assert (a.calls, b.calls) == (1, 1)
    assert await ask(transport) == ("a" if stays_ready else "b")
    await transport.check()
    assert await ask(transport) == "a"


@pytest.mark.parametrize(
    "failure", [InvalidInput("x"), RequestTimeout("x"), ServerError("the model failed"), ResponseError("x", status=401)]
)
async def test_other_failures_are_the_answer(balance, failure):
    a, b = Triton("a", failure), Triton("b")
    transport = await balance(a, b)
    with pytest.raises(type(failure)) as error:
        await ask(transport)
    assert error.value is failure
    assert b.calls == 0
    assert await ask(transport) == "a"


@pytest.mark.parametrize("failure", [Unavailable, NotReady, NotFound])
async def test_failure_of_the_last_is_told_after_each_was_tried_once(balance, failure):
    tritons = [Triton(name, failure(name)) for name in "abc"]
    transport = await balance(*tritons)
    with pytest.raises(failure, match="c"):
        await ask(transport)
    assert [triton.calls for triton in tritons] == [1, 1, 1]


@pytest.mark.parametrize(
    "failure, told",
    [(TransportError("reset"), TransportError), (ModelLost("Stub process 'x' is not healthy"), ModelLost)],
)
@pytest.mark.parametrize("asked", [ask, read])
async def test_call_that_ends_a_triton_ends_no_more_than_two(balance, failure, told, asked):
    full, *others = tritons = [Triton("full", Unavailable("full")), *(Triton(name, failure) for name in "abc")]
    transport = await balance(*tritons)
    with pytest.raises(told):
        await asked(transport)
    assert [triton.calls for triton in tritons] == [1, 1, 1, 0]
    full.ready = ()
    await transport.check()
    others[2].failures.clear()
    for triton in others[:2]:
        transport.backends[tritons.index(triton)].mark("medimageinsight", ready=False)
        transport.backends[tritons.index(triton)].mark("cxrreportgen", ready=False)
    assert set(await asked(transport)) == {"c"}  # the others go on


async def test_call_that_comes_to_a_triton_just_given_up_is_given_up_too(balance):
    a, b = Triton("a", Unavailable("full")), Triton("b")
    transport = await balance(a, b)
    a.answers.clear()
    b.answers.clear()

    async def held(call, *, timeout):  # until b is silent
        await a.answers.wait()
        raise Unavailable("full")

    a.infer = held
    asked = asyncio.create_task(ask(transport))
    await soon()
    b.ready = None
    for _ in range(SILENT_CHECKS):
        await transport.check()
    a.answers.set()
    await soon()
    assert (b.in_flight, asked.done()) == (1, False)
    for _ in range(2):
        await transport.check()
    with pytest.raises(TransportError, match="does not answer any more"):
        await asyncio.wait_for(asked, 1.0)


async def test_call_that_is_slow_to_end_when_it_is_given_up_does_not_disturb_the_checks(balance):
    a, may_end = Triton("a"), asyncio.Event()
    transport = await balance(a)

    async def slow(call, *, timeout):
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    a.infer = slow
    asked = asyncio.create_task(ask(transport))
    await soon()
    a.ready = None
    for _ in range(SILENT_CHECKS + 2):
        await transport.check()
    may_end.set()
    with pytest.raises(TransportError, match="does not answer any more"):
        await asked


async def test_version_is_asked_for_when_a_triton_gets_ready_and_it_serves_also_without(balance, caplog):
    a = Triton("a")
    a.tells = ServerError("restricted")
    with caplog.at_level(logging.INFO):
        transport = await balance(a, deployments=("medimageinsight",))
        for _ in range(3):
            await transport.check()
            assert await ask(transport) == "a"
    assert caplog.messages == ["grpc://a:1: medimageinsight is ready"]
    (backend,) = transport.backends
    assert (backend.version, a.version_asked) == ("", 1)
    for version in ("2.51.0", "2.60.0"):
        a.ready = TransportError("refused")
        await transport.check()
        a.ready, a.tells = BOTH, version
        await transport.check()
        await transport.check()
        assert backend.version == version
    assert a.version_asked == 3


async def test_full_queues_everywhere_stay_unavailable(balance):
    transport = await balance(Triton("a", Unavailable("full")), Triton("b", Unavailable("full, too")))
    with pytest.raises(Unavailable, match="full, too") as error:
        await ask(transport)
    assert not isinstance(error.value, NotReady)
    assert await ask(transport) == "a"


async def test_triton_is_asked_only_for_what_it_is_ready_for(balance):
    a, b = Triton("a", ready=("cxrreportgen",)), Triton("b", ready=("medimageinsight",))
    transport = await balance(a, b)
    assert [await ask(transport), await ask(transport, REPORT)] == ["b", "a"]
    assert await read(transport) == ["a"] * 3
    assert await transport.is_ready(["medimageinsight_text", "cxrreportgen_stream"])
    b.ready = ()
    await transport.check()
    assert transport.is_serving("cxrreportgen")
    assert not transport.is_serving("medimageinsight")
    assert not await transport.is_ready(["medimageinsight_text", "cxrreportgen_stream"])
    with pytest.raises(NotReady):
        await ask(transport)


@pytest.mark.parametrize("ready", [(), TransportError("refused"), Unavailable("starting")])
async def test_none_ready_is_told_at_once_without_a_call(balance, ready):
    a = Triton("a", ready=ready)
    transport = await balance(a)
    with pytest.raises(NotReady):
        await ask(transport)
    with pytest.raises(NotReady):
        await read(transport)
    assert a.calls == 0
    a.ready = BOTH
    await transport.check()
    assert await ask(transport) == "a"


async def test_readiness_is_a_number_and_its_changes_are_logged(balance, caplog):
    a = Triton("a")
    with caplog.at_level(logging.INFO):
        transport = await balance(a, deployments=("medimageinsight",))
        await transport.check()
        labels = {"triton": "grpc://a:1", "deployment": "medimageinsight"}
        assert metrics.OWN.get_sample_value("medimage_endpoint_triton_ready", labels) == 1
        a.ready = TransportError("refused")
        await transport.check()
        await transport.check()
        assert metrics.OWN.get_sample_value("medimage_endpoint_triton_ready", labels) == 0
    assert caplog.messages == ["grpc://a:1: medimageinsight is ready", "grpc://a:1: medimageinsight is not ready"]


async def test_slots_bound_the_calls_in_flight_of_each_deployment(balance):
    a, b = Triton("a"), Triton("b")
    transport = await balance(a, b, slots=3)
    for triton in (a, b):
        triton.answers.clear()
    asked = [asyncio.create_task(ask(transport, call)) for call in [TEXTS] * 10 + [REPORT] * 10]
    await soon()
    assert a.in_flight + b.in_flight == 6
    for triton in (a, b):
        triton.answers.set()
    await asyncio.gather(*asked)
    assert a.most_in_flight + b.most_in_flight == 6
    assert a.calls + b.calls == 20


async def test_slot_is_free_again_after_failures(balance):
    a = Triton("a", *[InvalidInput("x")] * 3)
    transport = await balance(a, slots=1)
    for _ in range(3):
        with pytest.raises(InvalidInput):
            await ask(transport)
    assert await asyncio.wait_for(ask(transport), 1.0) == "a"


async def test_cancelled_call_is_left_alone_for_a_while_then_ended_and_keeps_its_slot_until_then(balance, monkeypatch):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.5)
    a = Triton("a")
    transport = await balance(a, slots=1)
    a.answers.clear()
    asked = asyncio.create_task(ask(transport))
    await soon()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    following = asyncio.create_task(ask(transport))
    await soon()
    assert (a.calls, a.in_flight, a.ended_early) == (1, 1, 0)
    async with asyncio.timeout(10):
        while a.calls < 2:
            await asyncio.sleep(0.01)
    assert (a.calls, a.in_flight, a.ended_early) == (2, 1, 1)
    a.answers.set()
    assert await asyncio.wait_for(following, 1.0) == "a"
    assert transport.backends[0].in_flight == 0


@pytest.mark.parametrize(
    ("versions", "is_cancelled"),
    [(["2.60.0"], True), (["2.60.0", "2.74.0"], True), (["2.60.0", "2.51.0"], False), ([ServerError("x")], False)],
)
async def test_call_is_cancelled_with_its_caller_where_no_triton_could_crash(
    balance, monkeypatch, versions, is_cancelled
):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 30.0)
    tritons = [Triton(f"t{n}", tells=version) for n, version in enumerate(versions)]
    transport = await balance(*tritons, slots=1)
    first = tritons[0]
    first.answers.clear()
    asked = asyncio.create_task(ask(transport))
    await soon()
    asked.cancel()
    await asyncio.wait([asked])
    assert (first.in_flight, first.ended_early) == ((0, 1) if is_cancelled else (1, 0))
    first.answers.set()
    assert await asyncio.wait_for(ask(transport), 1.0) == "t0"  # its slot is free


async def test_closing_waits_for_a_call_that_is_left_alone(balance):
    a = Triton("a")
    transport = await balance(a)
    a.answers.clear()
    asked = asyncio.create_task(ask(transport))
    await soon()
    asked.cancel()
    await asyncio.wait([asked])
    closing = asyncio.create_task(transport.close())
    await soon()
    assert not closing.done()
    a.answers.set()
    await asyncio.wait_for(closing, 1.0)
    assert (a.in_flight, a.ended_early) == (0, 0)


async def test_cancelled_call_for_images_is_told_to_the_models_behind_a_socket(balance, monkeypatch, tmp_path):
    (tmp_path / "grpc:1").touch()
    triton = Triton("a", url=f"unix:{tmp_path}/grpc:1")
    transport = await balance(triton)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    triton.answers.clear()
    asked = asyncio.create_task(transport.infer(Call("medimageinsight_image", {}, (), {"a": 1}), timeout=9.0))
    while not triton.calls:
        await asyncio.sleep(0)
    parameters = dict(triton.parameters)
    assert parameters.pop("a") == 1
    assert not is_given_up(parameters)
    asked.cancel()
    await asyncio.wait([asked])
    assert is_given_up(parameters)
    assert not is_given_up({PARAMETER: parameters[PARAMETER] + 1})
    assert not is_given_up({})
    triton.answers.set()


@pytest.mark.parametrize("call", [TEXTS, STREAM])
async def test_cancelled_callers_who_wait_for_a_slot_are_gone_at_once_and_never_asked_for(balance, monkeypatch, call):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.5)
    a = Triton("a")
    transport = await balance(a, slots=2)
    a.answers.clear()
    at_rest = len(asyncio.all_tasks())
    asked = [asyncio.create_task(ask(transport) if call is TEXTS else read(transport)) for _ in range(100)]
    await soon()
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    assert len(asyncio.all_tasks()) - at_rest == (2 if call is TEXTS else 0)  # those that Triton works on
    await until(lambda: len(asyncio.all_tasks()) == at_rest)
    assert a.calls == 2
    a.answers.set()
    asked = [asyncio.wait_for(ask(transport, TEXTS), 1.0) for _ in range(2)]
    assert await asyncio.gather(*asked) == ["a"] * 2  # both slots are free


async def test_cancelled_call_that_fails_or_ends_by_itself_disturbs_nobody(balance):
    a = Triton("a")
    transport = await balance(a, slots=1)
    for failures in ([], [InvalidInput("x")]):
        asked = asyncio.create_task(ask(transport))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        a.failures = failures
        asked.cancel()
        await asyncio.wait([asked])
        await soon()
        assert (a.in_flight, a.ended_early) == (0, 0)
    assert await asyncio.wait_for(ask(transport), 1.0) == "a"


async def test_busy_triton_that_misses_checks_keeps_its_calls(balance):
    a, b = Triton("a"), Triton("b", ready=())
    transport = await balance(a, b)
    a.answers.clear()
    asked = asyncio.create_task(ask(transport))
    await soon()
    for _ in range(2):
        a.ready = None
        for _ in range(SILENT_CHECKS - 1):
            await transport.check()
        assert transport.is_serving("medimageinsight")
        a.ready = BOTH
        await transport.check()  # one answer, and it counts from the beginning
    assert not asked.done()
    a.answers.set()
    assert await asked == "a"


@pytest.mark.parametrize("deployments", [("medimageinsight",), BOTH])
async def test_silent_triton_is_given_up_after_three_checks_and_its_calls_go_elsewhere(balance, deployments, caplog):
    a, b = Triton("a"), Triton("b")
    transport = await balance(a, b, deployments=deployments)
    a.answers.clear()
    b.answers.clear()
    asked = []
    for _ in range(3):
        asked.append(asyncio.create_task(ask(transport)))
        await soon()
    b.answers.set()
    a.ready = None
    start = asyncio.get_running_loop().time()
    for _ in range(SILENT_CHECKS - 1):
        await transport.check()
    assert asyncio.get_running_loop().time() - start < 1.5 * SILENT_CHECKS * balancing.CHECK_LIMIT_S
    assert a.in_flight == 2
    await transport.check()
    await soon()
    assert await asyncio.gather(*asked) == ["b"] * 3
    assert (a.in_flight, a.ended_early) == (0, 2)
    assert "grpc://a:1: silent, its 2 calls are given up" in caplog.messages
    assert await ask(transport) == "b"
    a.ready = deployments
    a.answers.set()
    await transport.check()
    assert await ask(transport) == "a"


async def test_call_to_the_only_triton_that_falls_silent_fails_as_a_lost_connection(balance):
    a = Triton("a")
    transport = await balance(a)
    a.answers.clear()
    asked = asyncio.create_task(ask(transport))
    await soon()
    a.ready = None
    for _ in range(SILENT_CHECKS):
        await transport.check()
    with pytest.raises(TransportError, match="does not answer any more"):
        await asked


async def test_stream_that_fails_before_its_first_response_is_tried_elsewhere(balance):
    a, b = Triton("a", TransportError("reset"), Unavailable("full")), Triton("b")
    transport = await balance(a, b)
    assert await read(transport) == ["b"] * 3
    assert (a.calls, b.calls) == (1, 1)


async def test_stream_that_has_begun_is_not_tried_elsewhere(balance):
    a, b = Triton("a", breaks=TransportError("reset")), Triton("b")
    transport = await balance(a, b)
    seen = []
    with pytest.raises(TransportError, match="reset"):
        async for outputs in transport.stream(STREAM, timeout=9.0):
            seen.append(outputs["name"].item())
    assert (seen, b.calls) == (["a"], 0)
    assert await read(transport) == ["b"] * 3  # the other lost its connection


async def test_stream_that_has_told_its_progress_alone_is_tried_elsewhere(balance):
    a, b = Triton("a", breaks=TransportError("reset"), gives="progress"), Triton("b")
    transport = await balance(a, b)
    told = [outputs async for outputs in transport.stream(STREAM, timeout=9.0)]
    assert [(name, value.item()) for outputs in told for name, value in outputs.items()] == [
        ("progress", "a"),
        *[("name", "b")] * 3,
    ]


async def test_stream_of_a_triton_that_falls_silent_ends(balance):
    a = Triton("a")
    transport = await balance(a)
    responses = transport.stream(STREAM, timeout=9.0)
    await anext(responses)
    a.answers.clear()
    following = asyncio.create_task(anext(responses))  # not the task that began it
    await soon()
    following.cancel()
    await asyncio.wait([following])
    assert (a.ended_early, transport.backends[0].in_flight) == (1, 0)

    async def read_all():
        return [outputs async for outputs in transport.stream(STREAM, timeout=9.0)]

    reading = asyncio.create_task(read_all())
    await soon()
    a.ready = None
    for _ in range(SILENT_CHECKS):
        await transport.check()
    with pytest.raises(TransportError, match="does not answer any more"):
        await reading


async def test_watch_goes_on_until_it_is_cancelled(balance, monkeypatch):
    monkeypatch.setattr(balancing, "CHECK_EVERY_S", 0.01)
    a = Triton("a", ready=())
    transport = await balance(a)
    watching = asyncio.create_task(transport.watch())
    async with asyncio.timeout(5.0):
        for ready in (BOTH, TransportError("refused"), BOTH):
            a.ready = ready
            while transport.is_serving("medimageinsight") is (ready is not BOTH):
                await asyncio.sleep(0.005)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    await transport.close()
    assert a.closed == 1


@pytest.fixture
def addresses(monkeypatch):
    """Of the name `tritons`, to be changed; an exception is raised."""
    found = ["10.0.0.1"]

    def getaddrinfo(host, port, *options):
        assert (host, port) == ("tritons", 8001)
        if isinstance(found[0], Exception):
            raise found[0]
        # each address comes once for every protocol, as libc may have it
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found * 2]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return found


def n_ready(given):
    labels = {"triton": given, "deployment": "medimageinsight"}
    return metrics.OWN.get_sample_value("medimage_endpoint_triton_ready", labels)


async def test_tritons_of_a_name_come_and_go_with_its_addresses(balance, addresses, monkeypatch):
    monkeypatch.setattr(balancing, "LOOK_UP_EVERY_S", 0.01)
    tritons = {f"10.0.0.{n}": Triton(str(n), url=f"grpc://10.0.0.{n}:8001") for n in (1, 2, 3)}
    first, second, third = tritons.values()
    transport = await balance(*tritons.values(), urls=["dns+grpc://tritons"])
    assert [backend.url for backend in transport.backends] == [first.url]
    watching = asyncio.create_task(transport.watch())
    addresses.append("10.0.0.2")
    await until(lambda: n_ready("dns+grpc://tritons") == 2)  # also the number that all of them share
    first.answers.clear()
    slow = asyncio.create_task(ask(transport))
    await soon()
    assert await ask(transport) == "2"

    addresses[:] = ["10.0.0.2", "10.0.0.3"]  # a rolling update: the first is about to end
    await until(lambda: [backend.url for backend in transport.backends] == [second.url, third.url])
    await until(lambda: n_ready("dns+grpc://tritons") == 2)
    assert {await ask(transport) for _ in range(4)} <= {"2", "3"}
    await transport.find()
    assert not first.closed  # it still has a call
    first.answers.set()
    assert await slow == "1"
    await until(lambda: first.closed == 1)

    watching.cancel()
    await transport.close()
    assert [first.closed, second.closed, third.closed] == [1, 1, 1]


@pytest.mark.parametrize("failure", [socket.gaierror(socket.EAI_NONAME, "unknown"), TimeoutError()], ids=type)
async def test_name_that_cannot_be_looked_up_leaves_the_tritons_as_they_are(balance, addresses, failure):
    a, fixed = Triton("a", url="grpc://10.0.0.1:8001"), Triton("fixed")
    transport = await balance(a, fixed, urls=["dns+grpc://tritons", fixed.url])
    addresses[:] = [failure]
    await transport.find()
    assert sorted([await ask(transport), *await asyncio.gather(ask(transport), ask(transport))]) != ["fixed"] * 3
    assert {backend.url for backend in transport.backends} == {a.url, fixed.url}


async def test_name_without_any_triton_is_not_ready_and_finds_the_first_that_comes(balance, addresses):
    addresses[:] = [socket.gaierror(socket.EAI_NONAME, "unknown")]
    a = Triton("a", url="grpc://10.0.0.1:8001")
    transport = await balance(a, urls=["dns+grpc://tritons:8001"])
    with pytest.raises(NotReady, match="no Triton is ready"):
        await ask(transport)
    addresses[:] = ["10.0.0.1"]
    await transport.find()
    assert await ask(transport) == "a"


@pytest.mark.parametrize("url", ["dns+grpcs://tritons:8001", "dns+unix:/tritons", "dns+tritons", "dns+ftp://tritons"])
async def test_name_with_tls_or_without_a_scheme_is_refused(url):
    with pytest.raises(InvalidInput):
        BalancedTransport([url], BOTH, slots=1)


async def test_url_that_is_none_is_told_before_anything_is_connected():
    with pytest.raises(InvalidInput):
        BalancedTransport(["grpc://a:1", "ftp://b"], BOTH, slots=1)
