"""Decontamination: which rows of a corpus hold which benchmark items, by longest shared runs of words.

    python -m osim_core.corpus.decontaminate IN.jsonl --against ITEMS.jsonl --out OUT.parquet

A row is {"text": ...} or {"messages": [{"content": ...}, ...]}; an item is the same with an "id" and, if it likes, a
"benchmark". Roles and chat markup are no part of either, turns are searched end to end, and case, punctuation and
spacing do not count, so a re-cased item or one wrapped in other roles is still found. OUT has a line per row and item
that share a run of 8 words (of the whole item, where it is shorter and fills a turn). The matcher is
csrc/native/decontaminate; 13-word runs are the rule of GPT-3 (arXiv 2005.14165, appendix C), 8 words with coverage
that of PaLM (arXiv 2204.02311, section 8).
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osim_core import _decontaminate

LONG_RUN = 13  # a shared run of this many words flags the row by itself
COVERAGE = 0.5  # so do shorter runs that hold this share of an item's words,
SHORT_RUN = 5  # but not shorter ones than this: everybody says "how are you" (such items are counted as too short)
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


@dataclass(frozen=True)
class Item:
    """One benchmark item: an id, its benchmark's name and its texts (turns or fields), at least one."""

    id: str
    benchmark: str
    texts: tuple[str, ...]


class Matches(NamedTuple):
    """Row and item pairs that share a run, by row and then item; arrays of one length.

    row       int64, index into the rows searched
    item      int32, index into the items
    longest   int32, words of the longest shared run
    coverage  float32, share of the item's words in shared runs of at least 8 words
    flagged   bool, longest >= LONG_RUN, or coverage >= COVERAGE with longest >= SHORT_RUN
    """

    row: np.ndarray
    item: np.ndarray
    longest: np.ndarray
    coverage: np.ndarray
    flagged: np.ndarray


class Decontaminator:
    """An index of benchmark items that rows are searched against; threads may share it."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Raises ValueError for no items, two of one id, or an item without words (it could never be found)."""
        if not items:
            raise ValueError("decontamination needs at least one benchmark item")
        twice = [id for id, count in Counter(item.id for item in items).items() if count > 1]
        if twice:
            raise ValueError(f"item {twice[0]!r} is there twice; ids must be unique")
        self.items = list(items)
        texts = [text for item in items for text in item.texts]
        owners = np.repeat(np.arange(len(items), dtype=np.int32), [len(item.texts) for item in items])
        self._index = _decontaminate.Index(*_buffer(texts), owners, len(items))
        silent = np.flatnonzero(self._index.lengths == 0)
        if len(silent):
            raise ValueError(f"item {items[silent[0]].id!r} holds no words")

    def search(self, rows: Sequence[Sequence[str]], threads: int = 1) -> Matches:
        """Matches of rows, each the contents of its turns. The same for any number of threads."""
        data, offsets = _buffer([text for turns in rows for text in turns])
        row_offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        row, item, longest, covered = self._index.search(data, offsets, row_offsets, threads)
        coverage = (covered / self._index.lengths[item]).astype(np.float32)
        flagged = (longest >= LONG_RUN) | ((coverage >= COVERAGE) & (longest >= SHORT_RUN))
        return Matches(row, item, longest, coverage, flagged)

    def too_short(self, item: int) -> bool:
        """Whether an item has too few words for any row to be flagged for it."""
        return bool(self._index.lengths[item] < SHORT_RUN)


def _buffer(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of all texts end to end, uint8, and their borders, int64 [n + 1]."""
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """(row, contents of its turns) of each line. Raises ValueError naming file and row for one that holds no text."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
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
            yield row, tuple(texts)


def _text(row: Any) -> Any:
    return row.get("text") if isinstance(row, dict) else None


def _is_messages(messages: Any) -> bool:
    return isinstance(messages, list) and all(isinstance(message, dict) for message in messages)


def read_items(path: Path) -> list[Item]:
    """Benchmark items of a JSONL file. Raises ValueError naming file and row for one without a string id."""
    items = []
    for number, (row, texts) in enumerate(read_rows(path), 1):
        if not isinstance(row.get("id"), str | int):
            raise ValueError(f'{path}, row {number}: an item needs an "id"')
        items.append(Item(str(row["id"]), str(row.get("benchmark", path.stem)), texts))
    return items


def decontaminate(source: Path, against: Path, out: Path, threads: int = 1) -> dict[str, Any]:
    """Search a file of rows and write the matches; returns the counts that the command line prints.

    `out` appears complete or not at all. Raises ValueError for a bad row or item.
    """
    started = time.perf_counter(), time.process_time()
    index = Decontaminator(read_items(against))
    found: set[int] = set()
    num_rows = num_matches = flagged_rows = 0
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for chunk in batched(read_rows(source), ROWS_AT_A_TIME):
                matches = index.search([texts for _, texts in chunk], threads)
                items = [index.items[item] for item in matches.item]
                columns = [matches.row + num_rows, [i.id for i in items], [i.benchmark for i in items], *matches[2:]]
                writer.write_table(pa.table([pa.array(column) for column in columns], schema=SCHEMA))
                found.update(matches.item[matches.flagged].tolist())
                flagged_rows += len(np.unique(matches.row[matches.flagged]))
                num_matches += len(items)
                num_rows += len(chunk)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    benchmarks: dict[str, dict[str, int]] = {}
    for number, item in enumerate(index.items):
        counts = benchmarks.setdefault(item.benchmark, {"items": 0, "items_found": 0, "items_too_short": 0})
        counts["items"] += 1
        counts["items_found"] += number in found
        counts["items_too_short"] += index.too_short(number)
    return {
        "rows": num_rows,
        "matches": num_matches,
        "rows_flagged": flagged_rows,
        "benchmarks": benchmarks,
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m osim_core.corpus.decontaminate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", type=Path, metavar="IN.jsonl")
    parser.add_argument("--against", type=Path, required=True, metavar="ITEMS.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        counts = decontaminate(arguments.input, arguments.against, arguments.out, arguments.threads)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
