"""First stage: one input's rows as records, in chunks; a row that cannot be used is named in a quarantine file."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.registry import refuse
from osim_core.corpus.roles import TRANSFORMS, RoleTable
from osim_core.corpus.sources import SOURCES, files
from osim_core.corpus.sources.load import load
from osim_core.corpus.sources.quarantine import BadRow, Quarantine
from osim_core.corpus.sources.records import read_records
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.inputs import Input
from osim_core.corpus.stages.pipeline import Done
from osim_core.corpus.stages.record import ChunkWriter, Record, Side

UNREADABLE = "unreadable file"


@dataclass(frozen=True)
class ReadJob:
    """One input; how large a chunk gets; roles of your own rows."""

    input: Input
    chunk_bytes: int
    roles: dict[str, str]


def read(job: ReadJob, folder: Path, name: str) -> Counts:
    """Write the input's records. Counts: label, rows, bad {kind: rows}, examples, bytes, unreadable_bytes, notes,
    chunks. Raises ValueError where nothing of the input can be used as the config has it."""
    bad_rows = folder / f"{name}.quarantine.jsonl"
    bad_rows.unlink(missing_ok=True)  # it is appended to, and a killed run may have left one
    quarantine = Quarantine(bad_rows)
    with ChunkWriter(folder, name, job.chunk_bytes) as chunks:
        for record in _records(job, quarantine):
            chunks.write(record)
        written = chunks.close()
    size = job.input.bytes()
    return {
        "label": job.input.label,
        "rows": quarantine.rows,
        "bad": dict(sorted(quarantine.counts.items())),
        "examples": quarantine.examples,
        "bytes": size,
        "unreadable_bytes": size if quarantine.counts[UNREADABLE] else 0,
        "notes": dict(sorted(quarantine.notes.items())),
        "chunks": written,
    }


def _records(job: ReadJob, quarantine: Quarantine) -> Iterator[Record]:
    source, path = job.input.source, job.input.path
    if job.input.kind == "packaged":
        yield from _packaged(SOURCES[source].load(quarantine.notes), quarantine)
    elif job.input.kind == "registered":
        for dialogue in load(source, [path], quarantine):
            yield Record(f"{source}/{dialogue.id}", source, dialogue)
    else:
        for conversation in _own_rows(path, RoleTable(job.roles), quarantine):
            yield Record(conversation.id, conversation.source, sides=(_side(conversation),))


def _packaged(conversations: Iterable[Conversation], quarantine: Quarantine) -> Iterator[Record]:
    """Sides of one dialogue stand together, and their ids differ in the last part only."""
    for name, group in groupby(conversations, key=lambda conversation: conversation.id.rpartition("/")[0]):
        sides = tuple(map(_side, group))
        quarantine.rows += 1
        yield Record(name, sides[0].conversation.source, sides=sides)


def _own_rows(path: Path, roles: RoleTable, quarantine: Quarantine) -> Iterator[Conversation]:
    for where, row in read_records([path], ("data_source",), quarantine):
        source = row["data_source"]
        if isinstance(source, str) and source:
            refuse(source)
            if roles.transform(source) is None:  # not the row's fault: every other one would end the same way
                raise ValueError(
                    f"{where}: data_source {source!r} has no declared roles; add --roles {source} <one of "
                    f"{', '.join(TRANSFORMS)}>"
                )
        try:
            yield files.conversation_of(path, str(where), row, roles)
        except ValueError as error:
            quarantine.add(where, BadRow("unusable row", str(error).removeprefix(str(where)).lstrip(":, ")))


def _side(conversation: Conversation) -> Side:
    opening = conversation.messages[0]
    return Side(conversation, "stated" if opening.role == "system" and opening.content else "missing")


def merge_notes(found: Done, told: Done, splits: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """{source or file: {what was left out or repaired while it was read, and by the split: how many}}."""
    notes: dict[str, Counter[str]] = {source: Counter(counts) for source, counts in splits.items()}
    for source, count in (pair for result in told.results for pair in result["silent"].items()):
        notes[source]["nobody_to_simulate_speaks"] += count
    for result in found.results:
        notes.setdefault(result["label"], Counter()).update(result["notes"])
    return {label: dict(sorted((+counts).items())) for label, counts in notes.items()}


def check_bad_rows(results: Sequence[Counts], share: float) -> dict[str, dict[str, Any]]:
    """{label: {rows, bad_rows, bad {kind: rows}, bad_share}} of the inputs that have bad rows.

    A file that cannot be read counts by its bytes, since nobody knows its rows. Raises ValueError, in one line, for a
    label of which more than `share` is bad.
    """
    merged: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    for result in results:
        counts = merged.setdefault(result["label"], Counter())
        counts.update({name: result[name] for name in ("rows", "bytes", "unreadable_bytes")})
        kinds.setdefault(result["label"], Counter()).update(result["bad"])
    report: dict[str, dict[str, Any]] = {}
    for label, counts in merged.items():
        bad = kinds[label].total() - kinds[label][UNREADABLE]
        by_rows = bad / counts["rows"] if counts["rows"] else 0.0
        by_bytes = counts["unreadable_bytes"] / counts["bytes"] if counts["bytes"] else 0.0
        worst = max(by_rows, by_bytes)
        if worst > share:
            example = next(r["examples"][0] for r in results if r["label"] == label and r["examples"])
            row = "" if example["row"] is None else f", row {example['row']}"
            raise ValueError(
                f"{label}: {worst:.1%} of it cannot be used, more than max_bad_share {share:.1%}; the first: "
                f"{example['file']}{row}: {example['reason']}"
            )
        if kinds[label]:
            report[label] = {
                "rows": counts["rows"],
                "bad_rows": bad,
                "bad": dict(sorted(kinds[label].items())),
                "bad_share": worst,
            }
    return report
