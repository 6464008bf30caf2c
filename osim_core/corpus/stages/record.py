"""A record: one dialogue of a source with the sides that are trained, and the JSONL files of records between stages.

Readers give either a Dialogue, whose sides are taken when contexts are written, or sides that are ready (packaged
sources and your own rows). The unit of deduplication is the record: both sides of one chat say the same words, so they
stay or go together, and `spoken` is their one text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.durable import DurableFile
from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.stages import BATCH, BATCH_BYTES


@dataclass(frozen=True, slots=True)
class Side:
    """A dialogue as one person lives it; where its social context comes from; the labels that filters gave it."""

    conversation: Conversation
    context: Literal["stated", "written", "missing"]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """`dialogue` until contexts are written, `sides` from then on. id: unique in the corpus."""

    id: str
    source: str
    dialogue: Dialogue | None = None
    sides: tuple[Side, ...] = ()

    def spoken(self) -> str:
        """What is said in it, a line a turn; system messages are not said."""
        return "\n".join(m.content for m in self.sides[0].conversation.messages if m.role != "system")

    def with_sides(self, sides: tuple[Side, ...]) -> "Record":
        return replace(self, dialogue=None, sides=sides)


def to_line(record: Record, *, text: bool = False) -> bytes:
    """One line of JSON; with `text`, what is spoken stands in front, for the deduplication to find."""
    values: dict[str, Any] = {"text": record.spoken()} if text else {}
    values |= {"source": record.source, "id": record.id}
    if record.dialogue is not None:
        values["dialogue"] = _dialogue_values(record.dialogue)
    values["sides"] = [_side_values(side) for side in record.sides]
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> Record:
    """What `to_line` wrote."""
    values = json.loads(line)
    source, dialogue = values["source"], values.get("dialogue")
    return Record(
        id=values["id"],
        source=source,
        dialogue=None if dialogue is None else _dialogue(source, dialogue),
        sides=tuple(_side(source, side) for side in values["sides"]),
    )


def read_chunk(path: Path) -> Iterator[Record]:
    """The records of a file, one at a time."""
    with path.open("rb") as file:
        yield from map(from_line, file)


def read_batches(path: Path) -> Iterator[list[Record]]:
    """The records of a file, as many at a time as memory is meant to hold."""
    batch, size = [], 0
    with path.open("rb") as file:
        for line in file:
            batch.append(from_line(line))
            size += len(line)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


class ChunkWriter:
    """Writes records to `folder/NAME.00000.jsonl` and so on, a new file at `chunk_bytes`; use as a context manager.

    A file appears when it is complete.
    """

    def __init__(self, folder: Path, name: str, chunk_bytes: int) -> None:
        self._folder, self._name, self._limit = folder, name, chunk_bytes
        self._file: DurableFile | None = None
        self._chunks: list[dict[str, Any]] = []

    def write(self, record: Record) -> None:
        if self._file is None:
            name = f"{self._name}.{len(self._chunks):05d}"
            self._file = DurableFile(self._folder / f"{name}.jsonl")
            self._chunks.append({"name": name, "records": 0, "sources": []})
        self._file.write(to_line(record))
        chunk = self._chunks[-1]
        chunk["records"] += 1
        if record.source not in chunk["sources"]:
            chunk["sources"].append(record.source)
        if self._file.bytes >= self._limit:
            self._finish()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last file; returns {name, records, sources, bytes} of each."""
        self._finish()
        return self._chunks

    def _finish(self) -> None:
        if self._file is not None:
            self._chunks[-1]["bytes"] = self._file.publish()["bytes"]
            self._file = None

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.discard()


def _dialogue_values(dialogue: Dialogue) -> dict[str, Any]:
    return {
        "id": dialogue.id,
        "turns": [[turn.speaker, turn.text] for turn in dialogue.turns],
        "trained": dialogue.trained,
        "scene": dialogue.scene,
        "relationship": dialogue.relationship,
        "personas": dict(dialogue.personas),
        "goals": dict(dialogue.goals),
        "people": dict(dialogue.people),
        "system": dialogue.system,
    }


def _dialogue(source: str, values: dict[str, Any]) -> Dialogue:
    turns = tuple(Turn(*turn) for turn in values["turns"])
    return Dialogue(**{**values, "source": source, "turns": turns, "trained": tuple(values["trained"])})


def _side_values(side: Side) -> dict[str, Any]:
    conversation = side.conversation
    return {
        "id": conversation.id,
        "group": conversation.group,
        "others": conversation.others,
        "context": side.context,
        "labels": dict(side.labels),
        "messages": [[message.role, message.content] for message in conversation.messages],
    }


def _side(source: str, values: dict[str, Any]) -> Side:
    messages = tuple(Message(*message) for message in values["messages"])
    conversation = Conversation(values["id"], source, messages, values["group"], tuple(values["others"]))
    return Side(conversation, values["context"], values["labels"])
