"""Decontamination of a JSON Lines file, a chunk of rows at a time."""

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import batched
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osim_core.corpus.decontaminate.index import Decontaminator, Item
from osim_core.corpus.decontaminate.policy import account, by_benchmark, judge, merge
from osim_core.corpus.durable import write_durably

ROWS_AT_A_TIME = 20_000

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("longest", pa.int32(), nullable=False),  # words of the longest shared run
        pa.field("coverage", pa.float32(), nullable=False),  # share of the item's words that lie in shared runs
        pa.field("flagged", pa.bool_(), nullable=False),
    ]
)


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], tuple[str, ...], int]]:
    """(row, contents of its turns, bytes read so far) of each line.

    Raises ValueError naming file and row for one that holds no text.
    """
    read = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            read += len(line)
            try:
                row = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(f"{path}, row {number}: {error}") from error
            messages = row.get("messages") if isinstance(row, dict) else None
            texts = [m.get("content") for m in messages] if _is_messages(messages) else [_text(row)]
            if not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError(f'{path}, row {number}: needs "text" or "messages" with a "content" each')
            try:
                "".join(texts).encode()
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
                raise ValueError(f"{path}, row {number}: {error}") from error
            yield row, tuple(texts), read


def _text(row: Any) -> Any:
    return row.get("text") if isinstance(row, dict) else None


def _is_messages(messages: Any) -> bool:
    return isinstance(messages, list) and all(isinstance(message, dict) for message in messages)


def read_items(path: Path) -> list[Item]:
    """Benchmark items of a JSONL file. Raises ValueError naming file and row for one without a string id."""
    items = []
    for number, (row, texts, _) in enumerate(read_rows(path), 1):
        if not isinstance(row.get("id"), str | int):
            raise ValueError(f'{path}, row {number}: an item needs an "id"')
        items.append(Item(str(row["id"]), str(row.get("benchmark", path.stem)), texts))
    return items


def decontaminate(
    source: Path,
    against: Path,
    out: Path,
    threads: int = 1,
    source_field: str = "data_source",
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Search a file of rows and write the matches (SCHEMA); returns the counts that the command line prints.

    OUT.report.json gets what policy.account says per item and per source, `source_field` naming the source of a row
    (the file, where it has none). Both files appear complete or not at all. `report` is called as (stage, bytes done,
    bytes). Raises ValueError for a bad row or item.
    """
    started = time.perf_counter(), time.process_time()
    index = Decontaminator(read_items(against))
    size = source.stat().st_size
    total: dict[str, Any] = {"sources": {}, "items": {}}
    rows = matches = 0
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for chunk in batched(read_rows(source), ROWS_AT_A_TIME):
                verdict = judge(index, [texts for _, texts, _ in chunk], "flag", threads)
                found = verdict.matches
                items = [index.items[item] for item in found.item]
                columns = [found.row + rows, [i.id for i in items], [i.benchmark for i in items], *found[2:]]
                writer.write_table(pa.table([pa.array(column) for column in columns], schema=SCHEMA))
                names = [str(row.get(source_field, source.name)) for row, _, _ in chunk]
                total = merge([total, account(index, verdict, names)])
                rows, matches = rows + len(chunk), matches + len(items)
                report("search", chunk[-1][2], size)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        write_durably(out.with_name(f"{out.name}.report.json"), json.dumps(total, indent=1).encode())
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return {
        "rows": rows,
        "matches": matches,
        "rows_flagged": sum(counts["flagged"] for counts in total["sources"].values()),
        "sources": total["sources"],
        "benchmarks": by_benchmark(index, total),
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }
