"""The user's own conversations: parquet or JSONL with `messages` and `data_source`, as in the OdysSim corpus.

A row is {"messages": [{"role", "content"}, ...], "data_source": name}; `extra_info.messages` is read where
`messages` is missing, and an optional `group` (a participant, a thread) keeps rows on one side of the split.
Files are streamed, never held whole. The first bad row ends the run with one line that names it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.registry import refuse
from osim_core.corpus.roles import TRANSFORMS, RoleTable

ROLE_NAMES = ("system", "user", "assistant", "tool")
BATCH_ROWS = 1024
COLUMNS = ("messages", "extra_info", "data_source", "group")

Row = tuple[str, dict[str, Any]]  # "file, row 3" for errors, and the row


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """Files to read, in order; a folder stands for the parquet and JSONL files in it, sorted by name."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in (".parquet", ".jsonl"))
            if not inside:
                raise ValueError(f"{path}: no .parquet or .jsonl file in this folder")
            files += inside
        elif not path.is_file():
            raise ValueError(f"{path}: no such file")
        elif path.suffix not in (".parquet", ".jsonl"):
            raise ValueError(f"{path}: expected a .parquet or .jsonl file")
        else:
            files.append(path)
    return files


def read(files: Sequence[Path], roles: RoleTable) -> Iterator[Conversation]:
    """Every row as a conversation whose assistant is the simulated human.

    Raises ValueError naming file and row: broken JSON or text, no messages, a wrong type, an unknown role, an
    undeclared data_source, or a row with nothing to train.
    """
    for path in files:
        for where, row in _rows(path):
            yield conversation_of(path, where, row, roles)


def count_sources(files: Sequence[Path]) -> Counter[str]:
    """Rows of each data_source. Of parquet files only that column is read."""
    counts: Counter[str] = Counter()
    for path in files:
        for where, row in _rows(path, columns=("data_source",)):
            counts[_source(where, row)] += 1
    return counts


def _rows(path: Path, columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
    return _parquet_rows(path, columns) if path.suffix == ".parquet" else _jsonl_rows(path)


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=present):
                for row in batch.to_pylist() if present else [{}] * len(batch):
                    yield f"{path}, row {number}", row  # counted from 0, as pyarrow and pandas do
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not valid UTF-8 (byte {error.start}); convert the file to UTF-8") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected an object with messages and data_source, got {_kind(row)}")
            yield where, row


def conversation_of(path: Path, where: str, row: dict[str, Any], roles: RoleTable) -> Conversation:
    """One row as a conversation; `where` is "FILE, row N". Raises ValueError that begins with it."""
    source = _source(where, row)
    transform = roles.transform(source)
    if transform is None:
        raise ValueError(
            f"{where}: data_source {source!r} has no declared roles; add data.roles {source} <one of "
            f'{", ".join(TRANSFORMS)}> (or "*" for every other source)'
        )
    messages = transform(_messages(where, row))
    if not any(message.role == "assistant" for message in messages):
        raise ValueError(
            f"{where}: nothing to train: no assistant message after {transform.__name__!r} (data_source {source!r}); "
            "declare other roles for it or remove the row"
        )
    number = where.rpartition(" ")[2]
    group = row.get("group")
    if group is not None and not isinstance(group, str | int):
        raise ValueError(f"{where}: group must be a string or an integer, got {_kind(group)}")
    name = f"{path}:{number}"
    return Conversation(id=name, source=source, messages=messages, group=name if group is None else str(group))


def _source(where: str, row: dict[str, Any]) -> str:
    source = row.get("data_source")
    if not isinstance(source, str) or not source:
        raise ValueError(f"{where}: data_source must be the name of the row's source, got {_kind(source)}")
    try:
        refuse(source)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return source


def _messages(where: str, row: dict[str, Any]) -> tuple[Message, ...]:
    stored = row.get("messages")
    if stored is None:
        extra = row.get("extra_info")
        stored = extra.get("messages") if isinstance(extra, dict) else None
    if not isinstance(stored, list) or not stored:
        found = "an empty list" if stored == [] else _kind(stored)
        raise ValueError(
            f"{where}: messages must be a list of {{role, content}}, got {found}; remove the row or fill it"
        )
    messages = []
    for number, message in enumerate(stored):
        here = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise ValueError(f"{here}: expected {{role, content}}, got {_kind(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLE_NAMES:
            raise ValueError(f"{here}: role {role!r} is not one of {', '.join(ROLE_NAMES)}")
        if not isinstance(content, str):
            raise ValueError(f'{here}: content must be a string, got {_kind(content)}; use "" for an empty message')
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{here}: content is not Unicode text (half of a surrogate pair at character {error.start}); replace it"
            ) from error
        messages.append(Message(role, content))
    return tuple(messages)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
