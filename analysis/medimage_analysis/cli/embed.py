"""The bulk run of `medimage embed --to`, whose options are in `medimage_client.cli.bulk`."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click

from medimage_analysis.bulk import AWAY, How
from medimage_analysis.engine import Servers, embed_shards
from medimage_analysis.plan import Plan
from medimage_analysis.planned import Wanted, rows_of, schema_of
from medimage_analysis.progress import Progress
from medimage_analysis.served import served_model
from medimage_analysis.table import Model, check_same_model, check_shards, folder_of_run
from medimage_client.cli.bulk import BulkOptions, Embedding
from medimage_client.errors import InvalidInput
from medimage_client.wire.retries import delay_s


def embed_to_table(table: Path, embedding: Embedding, bulk: BulkOptions) -> None:
    """See `medimage embed`.

    Raises:
        MedImageError: the run ended before its end; what is finished of it stays.
    """
    if bulk.in_process is not None and bulk.engine != "ray":
        raise click.UsageError("--in-process is for --engine ray")
    if bulk.ray_address is not None and bulk.engine != "ray":
        raise click.UsageError("--ray-address is for --engine ray")
    how = How(
        dicom_window=embedding.dicom_window,
        resize=embedding.resize,
        wait_s=bulk.wait,
        strict=bulk.strict,
        retry=bulk.retry_failed,
    )
    servers = Servers(
        urls=embedding.urls,
        timeout=embedding.timeout,
        shared_memory=embedding.shared_memory,
        repository=bulk.in_process,
    )
    table = table if table.name else table.resolve()  # `.`, which has none
    try:
        plan = plan_of(table, embedding, bulk, model_of(servers, how))
        done = plan.done()
        part = [number for number in range(plan.n_shards) if number % bulk.shard[1] == bulk.shard[0] - 1]
        if bulk.retry_failed:
            shards = [number for number in part if number in done & plan.failed()]
            progress = Progress(sum(len(plan.failures(number)) for number in shards), 0)
        else:
            shards = [number for number in part if number not in done]
            n_rows = sum(map(plan.n_rows_of, part))
            progress = Progress(n_rows, n_rows - sum(map(plan.n_rows_of, shards)))
        try:
            if bulk.engine == "ray":
                from medimage_analysis.ray_engine import embed_on_ray

                embed_on_ray(plan, shards, servers, how, address=bulk.ray_address, report=progress.add)
            else:
                asyncio.run(
                    embed_shards(plan, shards, servers, embedding.sources, how, report=progress.add, tell=progress.tell)
                )
        finally:
            progress.end()
        plan.clear()
    except OSError as error:
        raise InvalidInput(
            f"{error.filename or table}: {error.strerror or error}; the finished shards stay, and the same command "
            "goes on from there"
        ) from error
    tell_failures(plan)


def plan_of(table: Path, embedding: Embedding, bulk: BulkOptions, model: Model) -> Plan:
    """The plan that is there, if it is of the same run; else a new one."""
    settings: dict[str, Any] = {
        "PATHS": [str(path) for path in embedding.paths],
        "--slices": None if embedding.slices is None else str(embedding.slices),
        "--image-column": bulk.image_column,
        "--shard-size": bulk.shard_size,
    }
    plan = Plan.open(table)
    if plan is not None:
        plan.check_settings(settings, model)
        check_shards(table, model)
        return plan
    wanted = Wanted(embedding.slices, bulk.image_column)
    rows = rows_of(embedding.paths, embedding.sources, wanted, lambda line: click.echo(line, err=True))
    return Plan.make(
        table, rows, schema_of(embedding.paths, wanted), shard_size=bulk.shard_size, model=model, settings=settings
    )


def model_of(servers: Servers, how: How) -> Model:
    """That of all the servers; those that do not answer are waited for."""
    if servers.repository is not None:
        from medimage_analysis.in_process import model_in

        return model_in(servers.repository, how.dicom_window)
    models = {url: waited_for(partial(served_model, url, how.dicom_window), how.wait_s) for url in servers.urls}
    check_same_model(models)
    return next(iter(models.values()))


def waited_for(ask: Callable[[], Any], wait_s: float) -> Model:
    begun, failures = monotonic(), 0
    while True:
        try:
            model: Model = asyncio.run(ask())
            return model
        except AWAY as error:
            if monotonic() - begun >= wait_s:
                raise
            if failures == 0:
                click.echo(f"{error}; waiting for up to {wait_s:g} s", err=True)
        sleep(min(delay_s(min(failures, 4)), wait_s))
        failures += 1


def tell_failures(plan: Plan) -> None:
    n = sum(len(plan.failures(number)) for number in plan.failed())
    if n:
        place = folder_of_run(plan.table) / "failures.parquet"
        click.echo(f"{n} images could not be embedded; {place} says why, --retry-failed tries again", err=True)
