"""One transport over several Tritons: each call goes to the ready one with the fewest calls in flight."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from medimage_client.embeddings import IMAGE_ENCODER
from medimage_client.errors import MedImageError, ModelLost, NotFound, NotReady, TransportError, Unavailable
from medimage_client.schema.reports import PROGRESS
from medimage_client.wire.transport import Call, Outputs
from medimage_client.wire.triton import SOCKET, Endpoint, GrpcTransport, HttpTransport
from medimage_client.wire.triton_workarounds import CANCELLED_CALL, DeferredCancellation
from medimage_server.endpoint.discovery import DNS, TritonName
from medimage_server.endpoint.metrics import TRITONS_READY
from medimage_server.endpoint.settings import is_head, models_of
from medimage_server.triton_workarounds import PARAMETER, file_of, new_number

CHECK_EVERY_S = 1.0
CHECK_LIMIT_S = 2.0
LOOK_UP_EVERY_S = 5.0  # of names; as long as Kubernetes' name server has its answers kept
BETTER_ELSEWHERE = (TransportError, Unavailable, NotFound, ModelLost)  # failures that another Triton may not have
MAX_LOST = 2  # Tritons that one call may lose: what it carries may be what ends them, and it shall not end them all
GIVEN_UP_S = 120.0  # for which Triton's models are told so of a call: none waits longer in their queues
SILENT_CHECKS = 3  # in a row: eight to nine seconds, for a busy Triton may answer one late

logger = logging.getLogger(__name__)


class Backend:
    """One Triton, and what is known of it.

    Args:
        given: the URL as the operator gave it, which may be a name of several.
    """

    def __init__(
        self, url: str, transport: GrpcTransport | HttpTransport, deployments: Sequence[str], *, given: str
    ) -> None:
        self.url = url
        self.given = given
        self.transport = transport
        self.ready = dict.fromkeys(deployments, False)  # when last asked
        self.in_flight = 0
        self.has_left = False
        self._socket = Path(url.removeprefix(SOCKET)) if url.startswith(SOCKET) else None
        self._calls: set[asyncio.Timeout] = set()
        self._silent_checks = 0

    @property
    def version(self) -> str:
        """Of the server; "" if it is not known."""
        return self.transport.version or ""

    def is_serving(self, deployment: str) -> bool:
        """Whether it was ready when last asked and, if it listens on a socket, has not ended since.

        The socket of one that was seen dead is removed, until its successor listens.
        """
        return self.ready[deployment] and (self._socket is None or self._socket.exists())

    async def check(self) -> None:
        """Ask it what it can serve. One that is silent for long is given up, and the calls to it."""
        was_ready = any(self.ready.values())
        is_silent = False
        for deployment in self.ready:
            try:
                async with asyncio.timeout(CHECK_LIMIT_S):
                    self.mark(deployment, ready=await self.transport.is_ready(models_of(deployment)))
            except TimeoutError:
                is_silent = True
                break  # silent for one, silent for all
            except MedImageError:
                self.mark(deployment, ready=False)
        self._silent_checks = self._silent_checks + 1 if is_silent else 0
        if self._silent_checks >= SILENT_CHECKS:
            for deployment in self.ready:
                self.mark(deployment, ready=False)
            self._give_up_calls()
        if any(self.ready.values()) and (not was_ready or self.transport.version is None):
            await self._ask_version()

    async def _ask_version(self) -> None:
        """Anew whenever it gets ready, for it may be another. One that does not tell (`metadata` can be restricted)
        serves as well."""
        with suppress(TimeoutError, MedImageError):
            async with asyncio.timeout(CHECK_LIMIT_S):
                await self.transport.server_version()

    def mark(self, deployment: str, *, ready: bool) -> None:
        ready = ready and not self.has_left
        if self.ready[deployment] != ready:
            level = logging.INFO if ready else logging.WARNING
            logger.log(level, "%s: %s is %s", self.url, deployment, "ready" if ready else "not ready")
            TRITONS_READY.labels(self.given, deployment).inc(1 if ready else -1)
        self.ready[deployment] = ready

    def leave(self) -> None:
        """It is not there any more: no call goes to it, and those in flight go on."""
        self.has_left = True
        for deployment in self.ready:
            self.mark(deployment, ready=False)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Counts a call, and ends it as a failed connection when the Triton falls silent."""
        limit = asyncio.timeout(None)
        self.in_flight += 1
        self._calls.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise TransportError(f"{self.url} does not answer any more") from None
            raise
        finally:
            self._calls.discard(limit)
            self.in_flight -= 1

    def give_up(self, number: int) -> None:
        """Tell the models of a Triton on a socket, in whose folder they look, that nobody waits for a call."""
        if self._socket is not None:
            file = file_of(self._socket.parent, number)
            with suppress(OSError):  # of a Triton elsewhere, or a full /dev/shm: its models work on for nothing
                file.touch()
                asyncio.get_running_loop().call_later(GIVEN_UP_S, partial(file.unlink, missing_ok=True))

    def note(self, deployment: str, error: MedImageError) -> None:
        """A call has failed in a way that says something of this Triton."""
        if isinstance(error, TransportError | NotReady | NotFound | ModelLost):  # a full queue does not
            self.mark(deployment, ready=False)

    def _give_up_calls(self) -> None:
        if self._calls:
            logger.warning("%s: silent, its %d calls are given up", self.url, len(self._calls))
        now = asyncio.get_running_loop().time()
        for limit in self._calls:
            limit.reschedule(now)
        self._calls.clear()  # a limit that has passed cannot be set again


class BalancedTransport:
    """A transport for the clients of `medimage_client`, over all Tritons.

    A call that one Triton is too busy or not ready for is tried with the next; one whose Triton or model process is
    lost is tried once more. It belongs to one event loop.

    Args:
        urls: of the Tritons, as the clients take them; or names of several, see `discovery.py`.
        deployments: what they may serve; a Triton is asked for a deployment only while it is ready for it.
        slots: calls in flight of each deployment, so that Triton's own queues never overflow by us alone.
    """

    def __init__(self, urls: Sequence[str], deployments: Sequence[str], *, slots: int) -> None:
        self.backends: list[Backend] = []
        self._names = {url: TritonName.parse(url) for url in urls if url.startswith(DNS)}
        self._endpoints = {url: Endpoint.parse(url) for url in urls if url not in self._names}
        self._leaving: list[Backend] = []
        self._deployment = {model: name for name in deployments for model in models_of(name)}
        self._slots = {name: asyncio.Semaphore(slots) for name in deployments}
        self._cancellation = DeferredCancellation()

    async def open(self) -> None:
        """Connect to every Triton, and ask each for its health."""
        for given in (*self._endpoints, *self._names):
            for deployment in self._slots:
                TRITONS_READY.labels(given, deployment).set(0)  # a worker before us may have ended with others
        self.backends = [self._backend(url, endpoint, given=url) for url, endpoint in self._endpoints.items()]
        await asyncio.gather(self.check(), self.find())

    def _backend(self, url: str, endpoint: Endpoint, *, given: str) -> Backend:
        return Backend(url, endpoint.connect(shared_memory=False), list(self._slots), given=given)

    def is_serving(self, deployment: str) -> bool:
        """Whether at least one Triton was ready for it when last asked."""
        return any(backend.is_serving(deployment) for backend in self.backends)

    async def watch(self) -> None:
        """Ask every Triton for its health, and names for their Tritons, again and again; never returns."""
        await asyncio.gather(
            repeat(self.check, "the check of the Tritons", every_s=CHECK_EVERY_S),
            repeat(self.find, "the search for Tritons", every_s=LOOK_UP_EVERY_S),
        )

    async def check(self) -> None:
        await asyncio.gather(*(backend.check() for backend in self.backends))

    async def find(self) -> None:
        """Connect to the Tritons that have come to the names, and send nothing more to those that have gone.

        A name without any address changes nothing: it may be the name server that fails, and Tritons that are gone are
        seen not to be ready.
        """
        for backend in [backend for backend in self._leaving if backend.in_flight == 0]:
            self._leaving.remove(backend)
            await backend.transport.close()
        for given, name in self._names.items():
            if not (urls := await name.look_up()):
                continue
            gone = [backend for backend in self.backends if backend.given == given and backend.url not in urls]
            known = {backend.url for backend in self.backends if backend.given == given}
            new = [self._backend(url, Endpoint.parse(url), given=given) for url in urls if url not in known]
            for backend in gone:
                logger.info("%s: has left %s", backend.url, given)
                backend.leave()
            self.backends = [backend for backend in self.backends if backend not in gone] + new
            self._leaving += gone
            await asyncio.gather(*(backend.check() for backend in new))

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        """As of any transport; a call that is cancelled may go on for a while and keep its slot, see `CANCELLED_CALL`.

        One that still waits for its slot is gone at once.
        """
        deployment = self._deployment[call.model]
        slots = self._slots[deployment]
        await slots.acquire()
        number = new_number()
        # their steps take long, and Triton would not tell them
        is_told = call.model == IMAGE_ENCODER.model or is_head(deployment)
        if is_told:
            call = replace(call, parameters={**call.parameters, PARAMETER: number})

        async def with_slot() -> Outputs:
            try:
                return await self._infer(call, timeout)
            finally:
                slots.release()

        try:
            if any(CANCELLED_CALL.is_in(backend.version) for backend in self._connected()):
                return await self._cancellation.result_of(with_slot())
            return await with_slot()
        except asyncio.CancelledError:
            for backend in self._connected() if is_told else ():
                backend.give_up(number)
            raise

    async def _infer(self, call: Call, timeout: float) -> Outputs:
        deployment = self._deployment[call.model]
        failures: list[MedImageError] = [NotReady("no Triton is ready")]
        for backend in self._by_load(deployment):
            if backend.has_left:  # while another was tried
                continue
            try:
                async with backend.call():
                    return await backend.transport.infer(call, timeout=timeout)
            except BETTER_ELSEWHERE as error:
                backend.note(deployment, error)
                failures.append(error)
                if has_lost_enough(failures):
                    break
        raise failures[-1]

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        deployment = self._deployment[call.model]
        failures: list[MedImageError] = [NotReady("no Triton is ready")]
        async with self._slots[deployment]:
            for backend in self._by_load(deployment):
                if backend.has_left:
                    continue
                has_begun = False
                try:
                    async with backend.call(), aclosing(backend.transport.stream(call, timeout=timeout)) as responses:
                        async for outputs in responses:
                            has_begun |= PROGRESS not in outputs  # which is told anew by the next
                            yield outputs
                    return
                except BETTER_ELSEWHERE as error:
                    backend.note(deployment, error)
                    failures.append(error)
                    if has_begun or has_lost_enough(failures):  # what the caller has seen cannot be taken back
                        break
        raise failures[-1]

    async def is_ready(self, models: Sequence[str]) -> bool:
        return all(self.is_serving(deployment) for deployment in {self._deployment[model] for model in models})

    async def close(self) -> None:
        try:
            await self._cancellation.finish()
        finally:
            await asyncio.gather(*(backend.transport.close() for backend in self._connected()))

    def _connected(self) -> list[Backend]:
        """Also those that have left, and finish what they were asked."""
        return [*self.backends, *self._leaving]

    def _by_load(self, deployment: str) -> list[Backend]:
        ready = [backend for backend in self.backends if backend.is_serving(deployment)]
        return sorted(ready, key=lambda backend: backend.in_flight)


def has_lost_enough(failures: Sequence[MedImageError]) -> bool:
    """Whether a call that has failed so is not to be tried any more."""
    return sum(isinstance(failure, TransportError | ModelLost) for failure in failures) == MAX_LOST


async def repeat(step: Callable[[], Awaitable[object]], what: str, *, every_s: float) -> None:
    """Take a step again and again; never returns."""
    while True:
        try:
            await step()
        except Exception as error:  # of a library below; one step more or less does not matter, their end would
            logger.error("%s failed: %s", what, type(error).__name__)
        await asyncio.sleep(every_s)
