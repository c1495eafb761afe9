"""Some shards of a plan in one process: what the local run and each actor of a Ray pipeline do."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medimage_analysis.bulk import BulkRun, How, Server
from medimage_analysis.plan import Plan
from medimage_analysis.reading import Reader
from medimage_analysis.served import served_model
from medimage_analysis.throttle import MOST
from medimage_client.archive.sources import Sources
from medimage_client.async_client import AsyncMedImageInsight


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where a process finds its models."""

    urls: Sequence[str]
    timeout: float  # seconds for one request
    shared_memory: bool
    repository: Path | None = None  # of a model in the process itself, in the place of `urls`
    threads: int = 0  # of that model; 0 for one a core

    def made(self, how: How) -> list[Server]:
        if self.repository is not None:
            from medimage_analysis.in_process import in_process

            return [in_process(self.repository, how.dicom_window, threads=self.threads)]
        return [
            Server(
                name=url,
                client=AsyncMedImageInsight(
                    url, timeout=self.timeout, retries=0, concurrency=MOST, shared_memory=self.shared_memory
                ),
                model=partial(served_model, url, how.dicom_window),
            )
            for url in self.urls
        ]


async def embed_shards(
    plan: Plan,
    shards: Iterable[int],
    servers: Servers,
    archives: Sources,
    how: How,
    *,
    report: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> None:
    """See `BulkRun`."""
    reader = Reader(archives, how.dicom_window, as_planned=not how.retry)
    async with AsyncExitStack() as stack:
        made = servers.made(how)
        for server in made:
            await stack.enter_async_context(server.client)
        await BulkRun(plan, made, reader, how, report=report, tell=tell).run(shards)
