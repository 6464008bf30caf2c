"""Rows of JSONL, JSON, parquet, CSV and TSV files (.gz too), streamed; what is damaged goes to the quarantine.

Memory holds one row, one parquet batch or one member of a JSON file at a time, none of them above MAX_ROW_BYTES, so
a 50 MB line costs its own row and nothing else. A parquet file without its footer is quarantined whole: the footer
says where its rows are. Of one with a damaged row group, the rows of that group are lost, by number.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from osim_core.corpus.sources.quarantine import BadRow, Quarantine, Where

MAX_ROW_BYTES = 16 * 2**20
BLOCK = 2**16
LITERAL = 16  # characters; more than the longest thing that fails as a whole when it is cut, such as -Infinity
BATCH_ROWS = 64  # rows of a parquet batch: few, since rows may be large
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")

Record = tuple[Where, dict[str, Any]]


def find_records(paths: Sequence[str | Path]) -> list[Path]:
    """The data files among `paths`; a folder stands for all in it and below, sorted. Raises ValueError if none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES)
        elif not path.is_file():
            raise ValueError(f"{path}: no such file")
        elif _suffix(path) not in SUFFIXES:
            raise ValueError(f"{path}: expected one of {', '.join(SUFFIXES)} (or one of them with .gz)")
        else:
            found.append(path)
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no {', '.join(SUFFIXES)} file here")
    return found


def read_records(
    paths: Sequence[Path], columns: Sequence[str], quarantine: Quarantine, quoted: bool = True
) -> Iterator[Record]:
    """Rows that have all `columns`, as dictionaries, in file order.

    `quarantine.rows` counts every row seen, good or bad. Tables whose quotes are just characters are not `quoted`.
    """
    for path in paths:
        readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
        table = _csv if quoted else _plain_csv
        rows = readers.get(_suffix(path), table)(path, quarantine)
        for where, row in rows:
            quarantine.rows += 1
            if not isinstance(row, dict):
                quarantine.add(where, BadRow("wrong type", f"expected an object, got {kind_of(row)}"))
            elif missing := [name for name in columns if name not in row]:
                found = ", ".join(list(row)[:12]) or "nothing"
                quarantine.add(where, BadRow("wrong column", f"no column {missing[0]!r}; the row has {found}"))
            else:
                yield where, row


def lines(path: Path, quarantine: Quarantine) -> Iterator[tuple[Where, str]]:
    """Lines of a UTF-8 file that are not blank; a line that is too long or not UTF-8 is quarantined."""
    with open_bytes(path) as file:
        number = 0
        try:
            while raw := file.readline(MAX_ROW_BYTES):
                number += 1
                where = Where(path, number)
                if len(raw) == MAX_ROW_BYTES and not raw.endswith(b"\n"):
                    size = len(raw) + _skip_line(file)
                    quarantine.rows += 1
                    quarantine.add(where, BadRow("too large", f"{size} bytes in one row; at most {MAX_ROW_BYTES}"))
                elif raw.strip():
                    try:
                        yield where, raw.decode("utf-8")
                    except UnicodeDecodeError as error:
                        quarantine.rows += 1
                        quarantine.add(where, BadRow("not UTF-8", f"not valid UTF-8 (byte {error.start})"))
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            quarantine.add(Where(path, number + 1), BadRow("unreadable file", f"stops here: {error}"))


def members(path: Path) -> Iterator[tuple[str | int, Any]]:
    """(key, value) of a JSON object, or (index, value) of an array, one at a time, never the whole file.

    Raises BadRow at the first byte that is not JSON or not UTF-8, or at a member above MAX_ROW_BYTES.
    """
    decoder = json.JSONDecoder()
    with open_bytes(path) as file:
        text = _Window(path, file)
        opening = text.skip_space()
        if opening not in ("{", "["):
            raise BadRow("not JSON", f"expected an object or a list, got {opening!r}")
        closing = "}" if opening == "{" else "]"
        text.advance(1)
        index = 0
        while (character := text.skip_space()) != closing:
            if index and character == ",":
                text.advance(1)
                text.skip_space()
            elif index:
                raise BadRow("not JSON", f"expected ',' or {closing!r} after member {index - 1}, got {character!r}")
            key: str | int = index
            if opening == "{":
                key = text.decode(decoder, index)
                if not isinstance(key, str) or text.skip_space() != ":":
                    raise BadRow("not JSON", f"expected a name and ':' at member {index}")
                text.advance(1)
                text.skip_space()
            yield key, text.decode(decoder, index)
            index += 1


class _Window:
    """The part of a text file that the JSON decoder looks at; grows by doubling, so reading stays linear."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file, self.text, self.at, self.ended = path, file, "", 0, False
        self.rest = b""

    def grow(self, size: int) -> None:
        try:
            raw = self.rest + self.file.read(size)
        except (EOFError, OSError) as error:
            raise BadRow("unreadable file", f"stops in the middle: {error}") from error
        self.ended = len(raw) < size + len(self.rest)
        try:
            text, self.rest = raw.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            if self.ended or len(raw) - error.start > 3:  # not just a character cut by the block's end
                raise BadRow("not UTF-8", "not valid UTF-8") from error
            text, self.rest = raw[: error.start].decode("utf-8"), raw[error.start :]
        self.text, self.at = self.text[self.at :] + text, 0

    def advance(self, count: int) -> None:
        self.at += count

    def skip_space(self) -> str:
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                raise BadRow("not JSON", "the file ends in the middle of its value")
            self.grow(BLOCK)

    def decode(self, decoder: json.JSONDecoder, index: int) -> Any:
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                held = len(self.text) - self.at
                # What is only cut off fails at its end, or is a string that began earlier.
                broken = error.pos < len(self.text) - LITERAL and not error.msg.startswith("Unterminated string")
                if self.ended or broken:
                    raise BadRow("not JSON", f"member {index} is not valid JSON ({error.msg})") from error
                if held > MAX_ROW_BYTES:
                    raise BadRow("too large", f"member {index} is above {MAX_ROW_BYTES} bytes") from error
                self.grow(max(BLOCK, held))
                continue
            if end > len(self.text) - LITERAL and not self.ended:  # "1.5e3" cut after "1.5e" decodes as 1.5
                self.grow(BLOCK)
                continue
            self.at = end
            return value


def _jsonl(path: Path, quarantine: Quarantine) -> Iterator[tuple[Where, Any]]:
    for where, line in lines(path, quarantine):
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            quarantine.rows += 1
            quarantine.add(where, BadRow("not JSON", f"not valid JSON ({error.msg} at column {error.colno})"))


def _json(path: Path, quarantine: Quarantine) -> Iterator[tuple[Where, Any]]:
    """A list of rows; an object is one row, as a CoSER book is, with each member within MAX_ROW_BYTES."""
    with open_bytes(path) as file:
        first = file.read(BLOCK).lstrip()[:1]
    row: int | str | None = None
    try:
        if first == b"[":
            for row, value in members(path):
                yield Where(path, row), value
        else:
            yield Where(path), dict(members(path))
    except BadRow as error:
        lost = BadRow(error.kind, f"{error}; the rest of the file is not read")
        quarantine.add(Where(path, None if row is None else int(row) + 1), lost)


def _parquet(path: Path, quarantine: Quarantine) -> Iterator[tuple[Where, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                end = number + file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
                        for row in _batch(batch):
                            where = Where(path, number)
                            number += 1
                            if isinstance(row, BadRow):
                                quarantine.rows += 1
                                quarantine.add(where, row)
                            else:
                                yield where, row
                except (pa.ArrowException, OSError) as error:
                    quarantine.rows += end - number
                    reason = f"damaged row group ({str(error).splitlines()[0]})"
                    quarantine.add(
                        Where(path, f"{number} to {end - 1}"), BadRow("unreadable rows", reason), end - number
                    )
                    number = end
    except (pa.ArrowException, OSError) as error:
        reason = f"not a readable parquet file ({str(error).splitlines()[0]})"
        quarantine.add(Where(path), BadRow("unreadable file", reason))


def _batch(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    """Its rows; one by one where the whole batch cannot be taken, so that only the bad row is lost."""
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:  # nothing was given yet: the list is made at once
            pass
    for index in range(len(batch)):
        row = batch.slice(index, 1)
        if row.nbytes > MAX_ROW_BYTES:
            yield BadRow("too large", f"{row.nbytes} bytes in one row; at most {MAX_ROW_BYTES}")
            continue
        try:
            yield row.to_pylist()[0]
        except UnicodeDecodeError as error:
            yield BadRow("not UTF-8", f"not valid UTF-8 (byte {error.start})")


def _plain_csv(path: Path, quarantine: Quarantine) -> Iterator[tuple[Where, Any]]:
    return _csv(path, quarantine, csv.QUOTE_NONE)


def _csv(path: Path, quarantine: Quarantine, quoting: int = csv.QUOTE_MINIMAL) -> Iterator[tuple[Where, Any]]:
    """Rows under the header line. A quoted field may hold line breaks; the row's name is its last line."""
    csv.field_size_limit(MAX_ROW_BYTES)
    last = Where(path, 0)

    def text() -> Iterator[str]:
        nonlocal last
        for where, line in lines(path, quarantine):
            last = where
            yield line

    delimiter = "\t" if _suffix(path) == ".tsv" else ","
    reader = csv.DictReader(text(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            quarantine.rows += 1
            quarantine.add(last, BadRow("not CSV", str(error)))
            continue
        if row is None:
            return
        if None in row:
            quarantine.rows += 1
            quarantine.add(last, BadRow("not CSV", f"{len(row[None])} fields more than the header has"))
        else:
            yield last, row


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def kind_of(value: object) -> str:
    """What a value is called in messages."""
    return "null" if value is None else type(value).__name__


def text_of(value: object, what: str) -> str:
    """`value` if it is Unicode text. Raises BadRow for null, other types and halves of surrogate pairs."""
    if value is None:
        raise BadRow("null message", f"{what} is null")
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{what} must be text, got {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("not Unicode", f"{what} holds half of a surrogate pair at character {error.start}") from error
    return value


def list_of(value: object, what: str) -> list[Any]:
    """`value` if it is a list with something in it. Raises BadRow otherwise."""
    if not isinstance(value, list):
        raise BadRow("null message" if value is None else "wrong type", f"{what} must be a list, got {kind_of(value)}")
    if not value:
        raise BadRow("empty", f"{what} is empty")
    return value


def object_of(value: object, what: str) -> dict[str, Any]:
    """`value` if it is an object. Raises BadRow otherwise."""
    if not isinstance(value, dict):
        kind = "null message" if value is None else "wrong type"
        raise BadRow(kind, f"{what} must be an object, got {kind_of(value)}")
    return value


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while raw := file.readline(BLOCK):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped


def _suffix(path: Path) -> str:
    return path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
