"""`POST /score`: the way of a request, from its head to its answer."""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar, get_args

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from medimage_client.errors import MedImageError
from medimage_client.schema.embeddings import Layout
from medimage_server.endpoint import metrics
from medimage_server.endpoint.acceptor import mark_authenticated
from medimage_server.endpoint.access_log import LogEntry
from medimage_server.endpoint.admission import Gate, Memory, Share
from medimage_server.endpoint.balancing import BalancedTransport
from medimage_server.endpoint.body import Body, send_parts
from medimage_server.endpoint.headers import listed, only
from medimage_server.endpoint.keys import Keyring, authorize
from medimage_server.endpoint.metrics import Stages
from medimage_server.endpoint.middleware import entry_of
from medimage_server.endpoint.report_events import MEDIA_TYPE, event
from medimage_server.endpoint.responses import (
    RUN_FAILED,
    ClientGone,
    JSONResponse,
    Refusal,
    ending,
    error_values,
    refusal_of,
)
from medimage_server.endpoint.scoring import Question, answer_to, events_of, read_question
from medimage_server.endpoint.settings import MODELS, REPORTS, EndpointSettings

T = TypeVar("T")

LARGE_BODY_BYTES = 2**20  # whose images take milliseconds; 64 MB of hostile JSON hold the GIL for a second even so
UNKNOWN = "unknown"  # the deployment of a request that is refused before it is known, in log and numbers
DEPLOYMENT_HEADER = "azureml-model-deployment"
LAYOUT_HEADER = "medimage-layout"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    entry: LogEntry  # of the log
    stages: Stages
    body: Body
    share: Share  # of the memory, for body and answer


class ScoreRoute:
    """An ASGI application, because what a request holds it holds until the last byte of its answer has gone."""

    def __init__(self, settings: EndpointSettings, keys: Keyring, transport: BalancedTransport) -> None:
        self._settings = settings
        self._keys = keys
        self._transport = transport
        self._memory = Memory(settings.worker_max_in_flight_bytes)
        self._arriving = Gate(settings.worker_max_requests, "requests")
        self._at_work = {
            name: Gate(settings.worker_max_requests, f"requests for {name}") for name in settings.deployments
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        entry = entry_of(scope)
        entry.deployment = UNKNOWN
        stages = Stages()
        with metrics.IN_FLIGHT.track_inprogress(), self._memory.share() as share:
            body = Body(headers, receive, max_bytes=self._settings.max_body_bytes, share=share)
            try:
                await self._answer(Exchange(scope, receive, send, headers, entry, stages, body, share))
            except MedImageError as error:
                raise refusal_of(error) from error
            except ClientGone as gone:
                entry.reason = str(gone) or "the client has gone"
                if not entry.status:  # else there is a part of an answer, and no other can be given
                    raise
            except asyncio.CancelledError:  # of uvicorn: this request has outlasted the drain limit
                if not entry.status:  # else `_stream` has told it
                    raise ending() from None
            except Refusal:
                await body.discard()
                raise
            finally:
                entry.received_bytes = body.n_bytes
                entry.stages_ms = {stage: round(seconds * 1000, 2) for stage, seconds in stages.seconds.items()}

    async def _answer(self, exchange: Exchange) -> None:
        headers, entry, stages = exchange.headers, exchange.entry, exchange.stages
        authorize(headers, self._keys)
        mark_authenticated(exchange.scope)
        deployment = self._named_deployment(exchange.scope, headers)
        entry.deployment = deployment or UNKNOWN
        layout = self._layout(headers)
        with ExitStack() as held:
            with self._arriving.entered():
                with stages.timed("receive"):
                    content = await exchange.body.read()
                with stages.timed("parse"):
                    question = await read(content, deployment, self._settings.deployments)
                del content  # as JSON; the images in the question are what is needed
                entry.deployment, entry.rows = question.deployment, question.n_rows
                held.enter_context(self._at_work[question.deployment].entered())
            work = (
                self._stream(exchange, question)
                if question.deployment == REPORTS and MEDIA_TYPE in listed(headers, "accept")
                else self._reply(exchange, question, layout)
            )
            await cancelled_by_disconnect(exchange.receive, work)

    async def _reply(self, exchange: Exchange, question: Question, layout: Layout) -> None:
        send, stages = exchange.send, exchange.stages
        limit_s = self._settings.time_limit_s(question.deployment)
        with stages.timed("model"):
            try:
                async with asyncio.timeout(limit_s):
                    answer = await answer_to(question, self._transport, layout=layout, timeout=limit_s)
            except TimeoutError:
                raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {limit_s:g} s") from None
        with stages.timed("send"):
            ran = {"x-ms-run-fn-exec-ms": f"{stages.seconds['model'] * 1000:.3f}", RUN_FAILED: "False"}
            response = JSONResponse(answer, headers={DEPLOYMENT_HEADER: question.deployment} | ran)
            del answer  # as numbers of Python, several times the size
            exchange.share.take(len(response.body))
            await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
            await send_parts(send, bytes(response.body))

    async def _stream(self, exchange: Exchange, question: Question) -> None:
        """Send events. What fails before the first is told by a status, what fails later by an event."""
        send = exchange.send
        limit_s = self._settings.time_limit_s(question.deployment)
        has_begun = False
        with exchange.stages.timed("model"):
            try:
                events_in_time = events_of(question, self._transport, timeout=limit_s)
                async with asyncio.timeout(limit_s), aclosing(events_in_time) as events:
                    async for part in events:
                        if not has_begun:
                            has_begun = True
                            await send(stream_start(question.deployment))
                        await send({"type": "http.response.body", "body": part, "more_body": True})
            except (TimeoutError, MedImageError, asyncio.CancelledError) as error:
                match error:
                    case MedImageError():
                        refusal = refusal_of(error)
                    case TimeoutError():
                        refusal = Refusal(HTTPStatus.GATEWAY_TIMEOUT, f"no end within {limit_s:g} s")
                    case _:  # the caller has gone, and reads nothing of this, or the worker ends
                        refusal = ending()
                if not has_begun:
                    raise refusal from None
                told = error_values(
                    refusal.status,
                    refusal.message,
                    exchange.entry.request_id,
                    row=refusal.row,
                    column=refusal.column,
                )
                part = event("error", **told)
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _named_deployment(self, scope: Scope, headers: Headers) -> str | None:
        """The deployment in the path or the header; None if neither names one."""
        in_path: str | None = scope["path_params"].get("deployment")
        in_header = only(headers, DEPLOYMENT_HEADER)
        named = {self._known(name) for name in (in_path, in_header) if name is not None}
        if len(named) > 1:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                f"the path and {DEPLOYMENT_HEADER} name {' and '.join(sorted(named))}; expected one of them",
            )
        return named.pop() if named else None

    def _known(self, name: str) -> str:
        """The deployment of that name; Azure's are named after their model, with a suffix, as `medimageinsight-v1`."""
        for known in self._settings.deployments:
            if name == known or name.startswith(f"{known}-"):
                return known
        raise self._unknown(name)

    def _unknown(self, name: str) -> Refusal:
        what = f"deployment {name!r}" if name in MODELS else "this deployment"
        served = " and ".join(self._settings.deployments)
        return Refusal(HTTPStatus.NOT_FOUND, f"{what} is not served here; there is {served}")

    def _layout(self, headers: Headers) -> Layout:
        header = only(headers, LAYOUT_HEADER)
        layout = self._settings.layout if header is None else header
        for known in get_args(Layout):
            if layout == known:
                return known  # type: ignore[no-any-return]  # of get_args
        raise Refusal(HTTPStatus.BAD_REQUEST, f"{LAYOUT_HEADER} is none of {', '.join(get_args(Layout))}")


async def read(content: bytes, deployment: str | None, deployments: Sequence[str]) -> Question:
    """`read_question`, beside the event loop where it takes long: a thread costs more than a small body."""
    if len(content) < LARGE_BODY_BYTES:
        return read_question(content, deployment, deployments)
    return await asyncio.to_thread(read_question, content, deployment, deployments)


async def cancelled_by_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the caller hangs up.

    Args:
        receive: of a request whose body has been read: it has nothing more to tell but the end of the connection.

    Raises:
        ClientGone: it has ended.
    """
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(receive())
    try:
        await asyncio.wait([working, hanging_up], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for future in (working, hanging_up):
            future.cancel()
        await asyncio.wait([working, hanging_up])


def stream_start(deployment: str) -> Message:
    headers = {
        "content-type": f"{MEDIA_TYPE}; charset=utf-8",
        "x-accel-buffering": "no",  # nginx would hold the events back
        DEPLOYMENT_HEADER: deployment,
    }
    return {"type": "http.response.start", "status": HTTPStatus.OK, "headers": Headers(headers).raw}
