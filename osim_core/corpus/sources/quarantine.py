"""Rows that cannot be read: each is named (file, row, reason), counted and, if asked, kept in a JSONL file.

Readers raise `BadRow` for one row; whoever drives them calls `Quarantine.add` and goes on with the next. Nothing is
left out without a count: every row of a file ends as a dialogue, in `counts`, or in `notes`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = 20  # held in memory for the report; the file, if there is one, has them all


class BadRow(ValueError):
    """One row is not usable. `kind` groups reasons in the report; the message says what is wrong with this row."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Where:
    """A row of a file: lines of text count from 1, as editors do, rows of tables from 0, as pyarrow does."""

    file: Path
    row: int | str | None = None  # None: the whole file

    def __str__(self) -> str:
        return str(self.file) if self.row is None else f"{self.file}, row {self.row}"


class Quarantine:
    """Collects bad rows of one source.

    counts    {kind: rows}
    rows      how many rows were looked at, good and bad
    notes     {what was left out by a stated rule, or repaired: how many}; these rows are not bad
    examples  the first EXAMPLES bad rows, as {"file", "row", "kind", "reason"}
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.rows = 0
        self.examples: list[dict[str, object]] = []
        self._path = None if path is None else Path(path)

    def add(self, where: Where, error: BadRow, rows: int = 1) -> None:
        """Count a bad row (or `rows` that lie together) and remember where it is."""
        self.counts[error.kind] += rows
        entry = {"file": str(where.file), "row": where.row, "kind": error.kind, "reason": str(error)}
        if len(self.examples) < EXAMPLES:
            self.examples.append(entry)
        if self._path:  # opened for each row: bad ones are rare, and nothing is lost when the process is killed
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    @contextmanager
    def catch(self, where: Where, rows: int = 1) -> Iterator[None]:
        """A `BadRow` inside is quarantined, with `rows` that depend on it, instead of raised."""
        try:
            yield
        except BadRow as error:
            self.add(where, error, rows)

    @property
    def quarantined(self) -> int:
        """Bad rows and bad files so far."""
        return self.counts.total()
