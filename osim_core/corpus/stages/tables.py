"""The audit table: a row for every side that was read, saying where it ended and why; parquet, written in batches.

Stages write what they know: `filter` the rows that end there, `clean` all others in SIDES, which adds what the split
needs; `tokenise` completes them. publish.py collects the files in the corpus's folder `audit/`:

    pq.read_table("data/corpus/<key>/audit").filter(pc.field("source") == "chitchat")
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osim_core.corpus.durable import sync_folder
from osim_core.corpus.stages.inputs import facts
from osim_core.corpus.stages.record import Record, Side

ROWS_AT_A_TIME = 4096

AUDIT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("axis", pa.string(), nullable=False),
        pa.field("ended", pa.string(), nullable=False),  # read, filter, dedup, decontaminate, split; "" in a shard
        pa.field("reason", pa.string(), nullable=False),
        pa.field("context", pa.string(), nullable=False),  # stated, written, missing
        pa.field("labels", pa.string(), nullable=False),  # of the filters, JSON
        pa.field("row", pa.int64()),  # of the record, in the deduplication; null where it did not come so far
        pa.field("cluster", pa.int64()),  # the row that its cluster keeps
        pa.field("jaccard", pa.float32()),  # exact index with that row
        pa.field("split", pa.string(), nullable=False),
        pa.field("tokens", pa.int32()),
        pa.field("document", pa.string(), nullable=False),  # SHA-256 of its messages, hex
    ]
)
SIDES = pa.schema(
    [
        *AUDIT,
        pa.field("group", pa.uint64(), nullable=False),  # split.py's rank of the person
        pa.field("others", pa.list_(pa.uint64()), nullable=False),
        pa.field("masked", pa.list_(pa.int32()), nullable=False),  # turns that carry no loss
    ]
)


class TableWriter:
    """Adds dictionaries to a parquet file that appears when it is published; use as a context manager."""

    def __init__(self, path: Path, schema: pa.Schema = AUDIT) -> None:
        self.path, self.schema = path, schema
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_AT_A_TIME:
            self._flush()

    def publish(self) -> None:
        """Make the file durable and visible."""
        self._flush()
        self._writer.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.rename(self.path)
        sync_folder(self.path.parent)

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema))
        self._rows = []

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.close()
        self._partial.unlink(missing_ok=True)


def audit_row(record: Record, side: Side, ended: str = "", reason: str = "") -> dict[str, Any]:
    """What is known of a side before the deduplication."""
    return {
        "id": side.conversation.id,
        "source": record.source,
        "axis": facts(record.source)["axis"],
        "ended": ended,
        "reason": reason,
        "context": side.context,
        "labels": json.dumps(dict(side.labels), sort_keys=True),
        "row": None,
        "cluster": None,
        "jaccard": None,
        "split": "",
        "tokens": None,
        "document": "",
    }
