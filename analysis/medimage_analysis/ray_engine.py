"""The plan of a bulk run as a Ray Data pipeline: each actor takes shard after shard, and writes it as a local run does.

Sources, table and `TABLE.run` are to be on a file system that all nodes of the cluster have.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

from medimage_analysis.bulk import How
from medimage_analysis.engine import Servers, embed_shards
from medimage_analysis.plan import Plan
from medimage_client.archive.sources import Sources
from medimage_client.errors import MedImageError

Block = dict[str, NDArray[Any]]  # column -> values of some rows

CPUS_PER_MODEL = 4
ATTEMPTS = 4  # to start an actor again whose process ends, and its shard, before the run ends


@dataclass(frozen=True, slots=True)
class Work:
    """What an actor is told."""

    plan: Plan
    servers: Servers
    how: How
    folder: str  # to which relative paths belong


class ShardEmbedder:
    """An actor of the pipeline."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, block: Block) -> Block:
        """Shards by their numbers -> rows embedded and failed, of each, and why a shard could not be made."""
        counts = [self._embed(int(shard)) for shard in block["shard"]]
        embedded, failed, reasons = zip(*counts, strict=True)
        return {
            "shard": block["shard"],
            "embedded": np.array(embedded),
            "failed": np.array(failed),
            "reason": np.array(reasons, dtype=str),
        }

    def _embed(self, shard: int) -> tuple[int, int, str]:
        embedded = failed = 0

        def report(n_embedded: int, n_failed: int) -> None:
            nonlocal embedded, failed
            embedded, failed = embedded + n_embedded, failed + n_failed

        work = self._work
        try:
            os.chdir(work.folder)
            with Sources() as archives:
                asyncio.run(
                    embed_shards(
                        work.plan, [shard], work.servers, archives, work.how, report=report, tell=lambda line: None
                    )
                )
        except (MedImageError, OSError) as error:  # not for Ray to try again
            return embedded, failed, str(error) or type(error).__name__
        return embedded, failed, ""


def actors(servers: Servers, cluster: dict[str, float]) -> tuple[int, dict[str, Any], int]:
    """How many, what each takes of the cluster, and threads of a model in one of them.

    Who asks a Triton takes a core. A model takes a GPU, or where there is none a few cores, and 2 GB of memory.
    """
    cpus, gpus = max(1, int(cluster.get("CPU", 1))), int(cluster.get("GPU", 0))
    if servers.repository is None:
        return cpus, {"num_cpus": 1}, 0
    if gpus:
        return gpus, {"num_gpus": 1}, 0
    each = min(CPUS_PER_MODEL, cpus)
    return cpus // each, {"num_cpus": each}, each


def embed_on_ray(
    plan: Plan,
    shards: Sequence[int],
    servers: Servers,
    how: How,
    *,
    address: str | None,
    report: Callable[[int, int], None],
) -> None:
    """
    Args:
        address: of a cluster, see `ray.init`; None starts one on this machine.

    Raises:
        MedImageError: a shard could not be made.
    """
    if not shards:
        return
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        size, resources, threads = actors(servers, dict(ray.cluster_resources()))  # type: ignore[no-untyped-call]
        work = Work(plan, replace(servers, threads=threads), how, os.getcwd())
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        made = rows.map_batches(
            ShardEmbedder,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(size, len(shards))),
            **resources,
            max_restarts=ATTEMPTS,
            max_task_retries=ATTEMPTS,
        )
        for row in made.iter_rows():
            report(int(row["embedded"]), int(row["failed"]))
            if row["reason"]:
                raise MedImageError(str(row["reason"]))
    finally:
        if is_ours:
            with suppress(Exception):
                ray.shutdown()
