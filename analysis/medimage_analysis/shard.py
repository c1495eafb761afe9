"""A shard while it is embedded: what is planned of it, and what came of each row so far."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medimage_analysis.plan import Plan
from medimage_analysis.planned import PLACE, Row
from medimage_analysis.table import Vectors, arranged, rows_of_shard, shard_name, to_column, to_column_with_nulls, write
from medimage_client.constants import EMBEDDING_SIZE, IMAGES_PER_REQUEST


class OpenShard:
    """
    Attributes:
        number: of the shard.
        n_left: rows of which nothing came yet.
    """

    def __init__(self, plan: Plan, number: int, *, retry: bool) -> None:
        self.plan = plan
        self.number = number
        with plan.part(number) as part:
            told = [name for name in part.schema_arrow.names if name not in PLACE.names]
            self._told: pa.Table = part.read(columns=told)
        self._again = {row["id"] for row in plan.failures(number)} if retry else None
        self._old = rows_of_shard(plan.table / shard_name(number)) if retry else None
        if self._old is not None and self._again is not None:  # a run that ended in between has embedded some
            self._again -= set(self._old["id"].to_pylist())
        self._features = np.empty((len(self._told), EMBEDDING_SIZE), np.float32)
        self._texts: dict[int, Vectors] = {}  # by row
        self._uids: dict[int, dict[str, str]] = {}
        self._is_embedded = np.zeros(len(self._told), bool)
        self._failures: dict[int, Row] = {}
        self.n_left = len(self._told) if self._again is None else len(self._again)

    def batches(self) -> Iterator["Batch"]:
        """What is to be embedded, in the images of one request."""
        start = 0
        with self.plan.part(self.number) as part:
            for group in range(part.num_row_groups):  # each fits into memory
                rows = list(enumerate(part.read_row_group(group).to_pylist(), start))
                start += len(rows)
                wanted = [row for row in rows if self._again is None or row[1]["id"] in self._again]
                for first in range(0, len(wanted), IMAGES_PER_REQUEST):
                    yield Batch(self, wanted[first : first + IMAGES_PER_REQUEST])

    def put(self, index: int, features: Vectors, text_features: Vectors | None, uids: dict[str, str]) -> None:
        self._features[index] = features
        self._is_embedded[index] = True
        if text_features is not None:
            self._texts[index] = text_features
        if uids:
            self._uids[index] = uids
        self.n_left -= 1

    def fail(self, index: int, row: Row, reason: str) -> None:
        self._failures[index] = {"id": row["id"], "source": row["source"], "reason": reason}
        self.n_left -= 1

    def close(self) -> None:
        """Write the shard, and before it its failures: who sees the one sees the other."""
        rows = self._rows()
        if self._old is None:
            self.plan.write_failures(self.number, self._failed())
            write(self.plan.table, rows, self.plan.model, shard=self.number)
            return
        whole = pa.concat_tables([self._old, arranged(rows, self.plan.model)])
        order = pc.index_in(whole["id"], self._told["id"].combine_chunks())
        write(self.plan.table, whole.take(pc.sort_indices(order)), self.plan.model, shard=self.number)
        self.plan.write_failures(self.number, self._failed())

    def _failed(self) -> list[Row]:
        return [self._failures[index] for index in sorted(self._failures)]

    def _rows(self) -> pa.Table:
        """Those that are embedded, in all columns of the table."""
        at = np.flatnonzero(self._is_embedded)
        told = self._told.take(pa.array(at))
        for name in ("study_uid", "series_uid", "sop_uid"):
            values = told[name].to_pylist()
            values = [self._uids.get(int(i), {}).get(name, value) for i, value in zip(at, values, strict=True)]
            told = told.set_column(told.column_names.index(name), name, pa.array(values, pa.string()))
        texts = [(place, self._texts[int(i)]) for place, i in enumerate(at) if int(i) in self._texts]
        vectors = np.array([vector for _, vector in texts], np.float32).reshape(-1, EMBEDDING_SIZE)
        told = told.append_column("image_features", to_column(self._features[at]))
        return told.append_column(
            "text_features", to_column_with_nulls(vectors, [place for place, _ in texts], len(at))
        )


@dataclass(slots=True)
class Batch:
    """Rows that are embedded together, with their places in the shard."""

    shard: OpenShard
    rows: Sequence[tuple[int, Row]]
    failures: int = field(default=0)  # of the server, on just these

    def alone(self) -> list["Batch"]:
        return [Batch(self.shard, [row]) for row in self.rows]
