"""JSON Lines in chunks: where the texts of a file are, and which rows are bad. First step of run.py and turns.py.

A chunk is some 64 MiB that end at a line's end, and its texts are places in it, so nothing is copied or decoded here
and memory does not grow with the file. Rows are the non-blank lines, counted from 0. Legend: L rows and T texts of a
chunk (one a row, or one a message), F fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from osim_core import _dedup
from osim_core.corpus.dedup.settings import Settings

CHUNK_BYTES = 64 << 20
TOO_LONG = 7
REASONS = (
    "",
    "not valid UTF-8",
    "not valid JSON",
    "not a JSON object",
    "no field {field!r}",
    "{field!r} is null",
    "{field!r} is not a string",
    "the row is longer than {longest} bytes",
    "'messages' is missing or empty",
    "a message has no string 'content'",
)


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be read; `line` counts from 1."""

    row: int
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What a chunk holds.

    numbers  int64 [L]   line of each row, from 0
    lines    int         blank ones included
    errors   {row of the chunk: reason}
    rows     int64 [T]   row of the chunk that each text belongs to, ascending
    begins   int64 [T]   of the text's JSON string in the chunk, behind its quote
    lengths  uint32 [T]
    extra    {name: array [T]} that is kept with the texts
    names    values that extra["names"], if it is there, numbers
    """

    numbers: np.ndarray
    lines: int
    errors: dict[int, str]
    rows: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    names: tuple[str, ...] = ()


Scanner = Callable[[np.ndarray], Scan]  # of a chunk, uint8


def row_texts(settings: Settings) -> Scanner:
    """One text a row: its text field; with the value of the priority field, if there is one."""

    def scan(chunk: np.ndarray) -> Scan:
        fields = [name.encode() for name in settings.fields]
        numbers, begins_FL, lengths_FL, errors_FL, lines = _dedup.scan(
            chunk, fields, settings.longest_row, settings.threads
        )
        errors = {
            row: REASONS[errors_FL[f, row]].format(field=settings.fields[f], longest=settings.longest_row)
            for f, row in np.argwhere(errors_FL).tolist()[::-1]  # of two bad fields the first is named
        }
        rows = np.flatnonzero((errors_FL == 0).all(axis=0))
        extra, names = {}, ()
        if settings.priority_field is not None:
            codes, names = _dedup.categories(chunk, begins_FL[1][rows], lengths_FL[1][rows])
            listed = np.array([settings.priority(name) is not None for name in names], bool)[codes]
            for row, code in zip(rows[~listed].tolist(), codes[~listed].tolist(), strict=True):
                errors[row] = f"{settings.priority_field!r} is {names[code]!r}, which has no priority"
            rows, extra["names"] = rows[listed], codes[listed]
        return Scan(numbers, lines, errors, rows, begins_FL[0][rows], lengths_FL[0][rows], extra, tuple(names))

    return scan


@dataclass
class Reader:
    """Iterates over the chunks of a file that hold texts; `rows`, `lines` and `bad` say how far it came.

    Raises ValueError naming file, row and line for a bad row, unless these are quarantined.
    """

    path: Path
    scan: Scanner
    settings: Settings
    rows: int = 0
    lines: int = 0
    bad: list[Bad] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, Scan]]:
        """Yields (offset in the file, first row, chunk uint8, what it holds)."""
        size = self.path.stat().st_size
        for offset, chunk, skipped in chunks(self.path, self.settings.longest_row):
            found = self.scan(chunk) if not skipped else _overlong(self.settings)
            for row, reason in sorted(found.errors.items()):
                self._refuse(Bad(self.rows + row, self.lines + int(found.numbers[row]) + 1, reason))
            if chunk.size:
                yield offset, self.rows, chunk, found
            self.rows += found.numbers.size
            self.lines += found.lines
        if self.path.stat().st_size != size:
            raise ValueError(f"{self.path}: changed while it was read; run again")

    def _refuse(self, bad: Bad) -> None:
        if self.settings.bad_rows == "stop":
            raise ValueError(
                f"{self.path}, row {bad.row} (line {bad.line}): {bad.reason}; correct it, or go on without such rows "
                "by --bad-rows quarantine"
            )
        self.bad.append(bad)


def chunks(path: Path, longest: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """(offset in the file, bytes uint8 that end at a line's end, bytes of an overlong line cut out behind them)."""
    with path.open("rb") as file:
        offset, carried = 0, b""
        while block := file.read(CHUNK_BYTES):
            carried += block
            end = carried.rfind(b"\n") + 1
            if end:
                yield offset, np.frombuffer(carried, np.uint8)[:end], 0
                offset, carried = offset + end, carried[end:]
            if len(carried) > longest:
                skipped = len(carried)
                while (line_end := (block := file.read(CHUNK_BYTES)).find(b"\n")) < 0 and block:
                    skipped += len(block)
                kept = block[line_end + 1 :] if block else b""
                skipped += len(block) - len(kept)
                yield offset, np.zeros(0, np.uint8), skipped
                offset, carried = offset + skipped, kept
        if carried:
            yield offset, np.frombuffer(carried, np.uint8), 0


def _overlong(settings: Settings) -> Scan:
    """Stands for a line that was cut out."""
    none = np.zeros(0, np.int64)
    reason = REASONS[TOO_LONG].format(longest=settings.longest_row)
    return Scan(np.zeros(1, np.int64), 1, {0: reason}, none, none, none.astype(np.uint32))
