"""The plan of a run: which image goes into which row of which shard, written before the first is embedded.

It lies beside the table `T`, in `T.run/plan`, as one Parquet file for each shard; beside it lies what failed, in
`T.run/failures.parquet`, a folder of Parquet files as well. A shard is done when its file is in the table.
"""

import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from medimage_analysis.planned import Row
from medimage_analysis.table import (
    SHARD,
    Model,
    check_unique,
    first_line,
    folder_of_run,
    reading,
    shard_name,
    shards_of,
    write_parquet,
)
from medimage_client.errors import InvalidInput

SETTINGS = "settings.json"
GROUP_BYTES = 16 * 2**20  # of base64
FAILURES = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Attributes:
        table: the folder of the shards.
        settings: of the run, by the name of the option; a second start must have the same.
        shard_size: rows of each shard but the last.
    """

    table: Path
    model: Model
    settings: Mapping[str, Any]
    n_rows: int
    shard_size: int

    @property
    def n_shards(self) -> int:
        return -(-self.n_rows // self.shard_size)

    def n_rows_of(self, shard: int) -> int:
        return min(self.shard_size, self.n_rows - shard * self.shard_size)

    @classmethod
    def open(cls, table: Path) -> Self | None:
        """None where none was made yet.

        Raises:
            InvalidInput: it is damaged.
        """
        path = folder_of_run(table) / "plan" / SETTINGS
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(table, Model(**values["model"]), values["settings"], values["n_rows"], values["shard_size"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise InvalidInput(
                f"{path}: is no plan of a run; choose another --to, or remove {path.parents[1]} and {table} to begin "
                "anew"
            ) from None

    @classmethod
    def make(
        cls,
        table: Path,
        rows: Iterable[Row],
        schema: pa.Schema,
        *,
        shard_size: int,
        model: Model,
        settings: Mapping[str, Any],
    ) -> Self:
        """Write a plan, whole or not at all. Where another process is first, its plan is taken.

        Raises:
            InvalidInput: two rows have one id, or a value does not fit its column.
            OSError: the system refuses.
        """
        if shards_of(table):
            raise InvalidInput(
                f"{table} has shards, and {folder_of_run(table)} has no plan that says how they were made; choose "
                "another --to"
            )
        folder = folder_of_run(table)
        folder.mkdir(parents=True, exist_ok=True)
        unnamed = folder / f".plan-{secrets.token_hex(8)}"
        unnamed.mkdir()
        try:
            ids: list[pa.Array] = []
            iterator = iter(rows)
            n_shards = 0
            while (first := next(iterator, None)) is not None:
                part = chain([first], islice(iterator, shard_size - 1))
                with (
                    synced(unnamed / shard_name(n_shards)) as file,
                    pq.ParquetWriter(file, schema, compression="zstd") as writer,
                ):
                    for group in groups(part):
                        writer.write_table(as_table(group, schema))
                        ids.append(pa.array([row["id"] for row in group], pa.string()))
                n_shards += 1
            all_ids = pa.chunked_array(ids, pa.string())
            check_unique(all_ids, "the sources", "give each source once, or the rows of a table a column `id`")
            plan = cls(table, model, settings, len(all_ids), shard_size)
            values = {"model": model.to_json(), "settings": settings, "n_rows": plan.n_rows, "shard_size": shard_size}
            with synced(unnamed / SETTINGS) as file:
                file.write(json.dumps(values, indent=2).encode() + b"\n")
            try:
                unnamed.rename(folder / "plan")
            except OSError:
                if (other := cls.open(table)) is None:
                    raise
                other.check_settings(settings, model)
                return other
            return plan
        finally:
            shutil.rmtree(unnamed, ignore_errors=True)

    def check_settings(self, settings: Mapping[str, Any], model: Model) -> None:
        """Raise InvalidInput unless a second start is the same run."""
        for name, value in settings.items():
            if self.settings.get(name) != value:
                raise InvalidInput(
                    f"{self.table} was begun with {name} {self.settings.get(name)}, not {value}; give the same, or "
                    "another --to"
                )
        if model != self.model:
            raise InvalidInput(
                f"{self.table} was begun with {self.model}; the server has {model}: serve that one again, or choose "
                "another --to"
            )

    @contextmanager
    def part(self, shard: int) -> Iterator[pq.ParquetFile]:
        """The planned rows of a shard, in row groups that fit into memory.

        Raises:
            InvalidInput: it is gone or damaged.
        """
        path = folder_of_run(self.table) / "plan" / shard_name(shard)
        with reading(path, "the run cannot go on; choose another --to"), pq.ParquetFile(path) as file:
            yield file

    def done(self) -> set[int]:
        """The shards that are complete."""
        return {int(match[1]) for name in names_in(self.table) if (match := SHARD.fullmatch(name))}

    def clear(self) -> None:
        """Once all shards are complete, remove what killed runs have left half written beside the table."""
        if len(self.done()) == self.n_shards:
            for partial in (
                *self.table.parent.glob(f".{glob.escape(self.table.name)}-part-*.partial"),
                *folder_of_run(self.table).glob(".part-*.partial"),
            ):
                partial.unlink(missing_ok=True)
            for unnamed in folder_of_run(self.table).glob(".plan-*"):
                shutil.rmtree(unnamed, ignore_errors=True)

    def failed(self) -> set[int]:
        """The shards some of whose images failed."""
        names = names_in(folder_of_run(self.table) / "failures.parquet")
        return {int(match[1]) for name in names if (match := SHARD.fullmatch(name))}

    def failures(self, shard: int) -> list[Row]:
        """What failed of a shard.

        Raises:
            InvalidInput: the list is damaged.
        """
        path = self._failures_of(shard)
        if not path.exists():
            return []
        of_table = self.table / shard_name(shard)
        with reading(path, f"remove it and {of_table}, and give the same command again, which makes both anew"):
            return list(pq.read_table(path).to_pylist())

    def write_failures(self, shard: int, failures: list[Row]) -> None:
        """In place of those that the shard had; whole or not at all."""
        path = self._failures_of(shard)
        if not failures:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(exist_ok=True)
        write_parquet(path, pa.Table.from_pylist(failures, FAILURES), path.parents[1] / f".{path.stem}")

    def _failures_of(self, shard: int) -> Path:
        return folder_of_run(self.table) / "failures.parquet" / shard_name(shard)


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file, which is on disk at the end."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that are held in memory at once: images in base64 may be large."""
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.get("plan.base64") or "")
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def as_table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{os.fsencode(error.object)!r}: is a name that is not UTF-8; rename it") from None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"the sources have a value that does not fit its column: {first_line(error)[:200]}"
        ) from None


def names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
