"""The bulk run: what a plan has, through one or several servers, into the shards of a table.

Rows flow as one stream over the borders of shards, so that a server has work while a shard is written. In memory are
the images of the requests under way and the vectors of the shards that these belong to.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from medimage_analysis.batches import Batches
from medimage_analysis.plan import Plan
from medimage_analysis.reading import Found, Reader
from medimage_analysis.shard import Batch, OpenShard
from medimage_analysis.table import Model, Vectors, check_same_model
from medimage_analysis.throttle import MOST, Throttle
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    MissingExtra,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    ServerError,
    TransportError,
    Unavailable,
)
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow
from medimage_client.wire.connection import gather
from medimage_client.wire.retries import delay_after, delay_s

TRIES = 3  # of a request that fails in the server, before its images are tried one by one, and of each of these
FAILURES_IN_A_ROW = 16  # of images in the server, after which it is the server that fails

AWAY = (TransportError, Unavailable, RequestTimeout)  # who asks again may have an answer


@dataclass(slots=True, kw_only=True)
class Server:
    """Where vectors come from.

    Attributes:
        client: with `concurrency=MOST` and no retries of its own.
        model: asks which model it has.
        is_known: whether it has been asked since it last went away; one that comes back may have another.
    """

    name: str
    client: AsyncMedImageInsight
    model: Callable[[], Awaitable[Model]]
    throttle: Throttle = field(default_factory=Throttle)
    is_known: bool = False
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How images are embedded."""

    dicom_window: DicomWindow = "file"
    resize: Resize = "server"
    wait_s: float = 600.0  # for servers of which none answers
    strict: bool = False  # the first image that fails ends the run
    retry: bool = False  # what failed before, of shards that are done


class Failed(MedImageError):
    """An image failed, of a run that is strict."""


class BulkRun:
    """Embeds shards of a plan; for one event loop.

    Args:
        report: takes the numbers of rows, embedded and failed, as they come.
        tell: takes a line for the user.
    """

    def __init__(
        self,
        plan: Plan,
        servers: Sequence[Server],
        reader: Reader,
        how: How,
        *,
        report: Callable[[int, int], None],
        tell: Callable[[str], None],
    ) -> None:
        self._plan, self._servers, self._reader, self._how = plan, servers, reader, how
        self._report, self._tell = report, tell
        self._batches = Batches()
        self._heard_at = 0.0  # from a server or an archive, or the start
        self._is_waiting = False
        self._failures_in_a_row = 0

    async def run(self, shards: Iterable[int]) -> None:
        """
        Raises:
            OtherModel: a server has another model than the plan.
            Failed: an image failed, and the run is strict.
            MedImageError: no server answered for as long as the run waits, or all requests fail.
            OSError: a shard cannot be written.
        """
        self._heard()
        await gather([self._produce(shards), *(self._work(server) for server in self._servers for _ in range(MOST))])

    async def _produce(self, shards: Iterable[int]) -> None:
        for number in shards:
            shard = await asyncio.to_thread(OpenShard, self._plan, number, retry=self._how.retry)
            if shard.n_left == 0:
                await self._close(shard)
                continue
            batches = shard.batches()
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                await self._batches.put(batch)
        await self._batches.done()

    async def _work(self, server: Server) -> None:
        while not self._batches.is_over:
            async with server.throttle:
                try:
                    await self._ask_model(server)
                except AWAY as error:
                    await self._wait(server, error)
                    continue
                batch = await self._batches.take()
                if batch is None:
                    return
                await self._embed(server, batch)

    async def _ask_model(self, server: Server) -> None:
        async with server.asking:
            if not server.is_known:
                model = await server.model()
                check_same_model({str(self._plan.table): self._plan.model, server.name: model})
                server.is_known = True
                self._heard()

    async def _embed(self, server: Server, batch: Batch) -> None:
        """Embed a batch, or put back what is still to be embedded, by any server."""
        begun = asyncio.get_running_loop().time()
        try:
            await self._embed_batch(server, batch)
        except AWAY as error:
            server.throttle.refused()
            server.is_known = False
            await self._batches.put_back(batch)
            await self._wait(server, error)
            return
        except ServerError as error:
            self._heard()
            await self._failed_in_server(batch, error)
            return
        server.throttle.answered(asyncio.get_running_loop().time() - begun)
        self._heard()
        self._failures_in_a_row = 0
        await self._batches.done()

    async def _embed_batch(self, server: Server, batch: Batch) -> None:
        """Each row that can be embedded or never will be is done after it."""
        shard = batch.shard
        found = await asyncio.to_thread(self._read, batch)
        await self._fail_unread(batch, found)
        while batch.rows:
            try:
                images = [found[index].image for index, _ in batch.rows]  # type: ignore[union-attr]  # the others failed
                features = await server.client.embed_images(
                    images, dicom_window=self._how.dicom_window, resize=self._how.resize
                )
            except InvalidInput as error:
                if error.row is None:  # the request as a whole, not one image
                    raise
                await self._fail(batch, error.row, error.reason)
                continue
            try:
                texts = [(place, row["text"]) for place, (_, row) in enumerate(batch.rows) if row["text"] is not None]
                vectors = await server.client.embed_texts([text for _, text in texts])
            except InvalidInput as error:
                if error.row is None:
                    raise
                await self._fail(batch, texts[error.row][0], f"text: {error.reason}")
                continue
            of_text: dict[int, Vectors] = {place: vectors[i] for i, (place, _) in enumerate(texts)}
            rows, batch.rows = batch.rows, []
            for place, (index, _) in enumerate(rows):
                shard.put(index, features[place], of_text.get(place), found[index].uids)  # type: ignore[union-attr]
            self._report(len(rows), 0)
            await self._close_if_done(shard)

    def _read(self, batch: Batch) -> dict[int, Found | MedImageError]:
        """Of each row the image, or why there is none and never will be."""
        found: dict[int, Found | MedImageError] = {}
        for index, row in batch.rows:
            try:
                found[index] = self._reader.read(row)
            except MissingExtra:
                raise
            except (InvalidInput, NotFound) as error:
                found[index] = error
            except ResponseError as error:
                if error.status != 200:
                    raise
                found[index] = error
        return found

    async def _fail_unread(self, batch: Batch, found: dict[int, Found | MedImageError]) -> None:
        for place in reversed(range(len(batch.rows))):
            error = found[batch.rows[place][0]]
            if isinstance(error, MedImageError):
                await self._fail(batch, place, error.reason)

    async def _fail(self, batch: Batch, place: int, reason: str) -> None:
        index, row = batch.rows[place]
        if self._how.strict:
            raise Failed(f"{row['id']}: {reason}")
        batch.rows = [*batch.rows[:place], *batch.rows[place + 1 :]]
        batch.shard.fail(index, row, reason)
        self._report(0, 1)
        await self._close_if_done(batch.shard)

    async def _failed_in_server(self, batch: Batch, error: ServerError) -> None:
        batch.failures += 1
        if batch.failures < TRIES:
            await asyncio.sleep(delay_s(batch.failures))
            await self._batches.put_back(batch)
            return
        if len(batch.rows) > 1:
            first, *others = batch.alone()
            await self._batches.put_back(first)
            for other in others:
                await self._batches.put_back(other, is_part=True)
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise error
        await self._fail(batch, 0, f"the server failed on it {TRIES} times: {error.reason}")
        await self._batches.done()

    async def _wait(self, server: Server, error: MedImageError) -> None:
        """Before the next attempt, unless the wait is over."""
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        if silent_s >= self._how.wait_s:
            place = f"{server.name}: " if server.name not in error.reason else ""
            raise MedImageError(f"{place}{error.reason}; nothing came for {silent_s:.0f} s (--wait)") from error
        if not self._is_waiting and (isinstance(error, NotReady) or not isinstance(error, Unavailable)):
            self._is_waiting = True
            self._tell(f"{server.name}: {error.reason}; waiting for up to {self._how.wait_s:g} s")
        failures = min(int(silent_s), 4)  # the longer nothing came, the longer the delay, up to its bound
        delay = delay_after(error, failures) if isinstance(error, TransportError | Unavailable) else delay_s(failures)
        await asyncio.sleep(min(delay, max(0.1, self._how.wait_s - silent_s)))

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._is_waiting = False

    async def _close_if_done(self, shard: OpenShard) -> None:
        if shard.n_left == 0:
            await self._close(shard)

    async def _close(self, shard: OpenShard) -> None:
        """Write a shard; before it the servers are asked once more which model they have."""
        for server in self._servers:
            server.is_known = False
            with suppress(*AWAY):  # what it sent before was of the model that it had when it was asked
                await self._ask_model(server)
        await asyncio.to_thread(shard.close)
