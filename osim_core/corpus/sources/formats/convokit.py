"""ConvoKit corpora: utterances.jsonl, speakers.json, conversations.json, in one folder per corpus.

An utterance is {id, conversation_id, speaker, reply-to, timestamp, text, meta}; older dumps call the first two root
and user, and the file users.json. The utterances of one conversation may lie anywhere in the file, so they pass
through a temporary SQLite table: memory stays bounded for any corpus.

A conversation whose utterances each reply to the one before is one dialogue, in the order of the file; one that
branches gives the paths of paths.py. Everybody who speaks is a person to simulate; of more than two, those who speak
at least twice.
"""

import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.sources.formats.paths import is_chain
from osim_core.corpus.sources.formats.paths import paths as tree_paths
from osim_core.corpus.sources.quarantine import BadRow, Quarantine, Where
from osim_core.corpus.sources.records import members, read_records, text_of

# Metadata that was known before anybody spoke. Everything else may be an outcome (who won, whether it derailed) or an
# annotation made afterwards, and would tell the model what it is to predict.
SCENE_KEYS = ("title", "topic", "page_title", "subreddit", "prompt", "scenario", "case_name", "program", "date", "year")
PERSONA_KEYS = ("character_name", "name", "gender", "sex", "age", "education", "party", "occupation", "dialect_area")
MAX_FACT = 300  # characters; longer metadata is a text of its own, not a fact about the scene
MIN_TURNS = 2  # of one speaker among more than two

SCHEMA = """
CREATE TABLE utterances(
    number INTEGER PRIMARY KEY, row INTEGER, id TEXT, conversation TEXT, speaker TEXT, parent TEXT, text TEXT);
CREATE TABLE facts(kind TEXT, name TEXT, value TEXT, PRIMARY KEY(kind, name)) WITHOUT ROWID;
"""


def read(source: str, folder: Path, quarantine: Quarantine) -> Iterator[tuple[Where, Dialogue]]:
    """Dialogues of one corpus, in the order in which conversations begin. Raises ValueError without utterances."""
    path = _file(folder, "utterances.jsonl")
    if path is None:
        raise ValueError(f"source {source!r}: {folder} has no utterances.jsonl; is it a ConvoKit corpus?")
    with tempfile.TemporaryDirectory(prefix="convokit-") as scratch, closing(_table(Path(scratch))) as table:
        table.execute("BEGIN")  # one transaction: a commit per row would take most of the time
        table.executemany(
            "INSERT INTO utterances(row, id, conversation, speaker, parent, text) VALUES (?,?,?,?,?,?)",
            _utterances(path, quarantine),
        )
        table.execute("CREATE INDEX by_conversation ON utterances(conversation, number)")
        for kind, names in (("speaker", ("speakers.json", "users.json")), ("conversation", ("conversations.json",))):
            found = next((file for name in names if (file := _file(folder, name))), None)
            if found:
                keys = PERSONA_KEYS if kind == "speaker" else SCENE_KEYS
                table.executemany("INSERT OR REPLACE INTO facts VALUES (?,?,?)", _facts(kind, found, keys, quarantine))
        table.execute("COMMIT")
        begun = "SELECT conversation FROM utterances GROUP BY conversation ORDER BY MIN(number)"
        for (conversation,) in table.execute(begun):
            rows = table.execute(
                "SELECT row, id, speaker, parent, text FROM utterances WHERE conversation = ? ORDER BY number",
                (conversation,),
            ).fetchall()
            where = Where(path, rows[0][0])
            for dialogue in _dialogues(source, conversation, rows, table, quarantine):
                yield where, dialogue


def _utterances(path: Path, quarantine: Quarantine) -> Iterator[tuple[Any, ...]]:
    for where, row in read_records([path], ("id", "text"), quarantine):
        with quarantine.catch(where):
            text = text_of(row["text"], "text")
            conversation = row.get("conversation_id", row.get("root"))
            speaker = row.get("speaker", row.get("user"))
            if isinstance(speaker, dict):  # dumps of ConvoKit 1 hold the whole speaker
                speaker = speaker.get("id", speaker.get("name"))
            if conversation is None or speaker is None:
                raise BadRow("wrong column", "no conversation_id (or root), or no speaker (or user)")
            parent = row.get("reply-to", row.get("reply_to"))
            if not text.strip():
                quarantine.notes["empty_utterances"] += 1
            yield (
                where.row,
                str(row["id"]),
                str(conversation),
                str(speaker),
                None if parent is None else str(parent),
                text.strip(),
            )


def _facts(kind: str, path: Path, keys: Iterable[str], quarantine: Quarantine) -> Iterator[tuple[str, str, str]]:
    with quarantine.catch(Where(path)):
        for name, entry in members(path):
            meta = entry.get("meta", entry) if isinstance(entry, dict) else {}
            meta = meta if isinstance(meta, dict) else {}
            known = {key: str(meta[key]) for key in keys if isinstance(meta.get(key), str | int) and meta[key] != ""}
            known = {key: value for key, value in known.items() if len(value) <= MAX_FACT}
            if known:
                yield kind, str(name), json.dumps(known)


def _dialogues(
    source: str, conversation: str, rows: list[tuple], table: sqlite3.Connection, quarantine: Quarantine
) -> Iterator[Dialogue]:
    texts = {key: (speaker, text) for _, key, speaker, _, text in rows}
    if len(texts) < len(rows):
        quarantine.notes["repeated_ids"] += len(rows) - len(texts)
    if is_chain([(key, parent) for _, key, _, parent, _ in rows]):
        kept, dropped = [list(texts)], 0
    else:
        kept, dropped = tree_paths({key: parent for _, key, _, parent, _ in rows})
    quarantine.notes["paths_overlapping"] += dropped
    scene = _stated(table, "conversation", conversation)
    for number, path in enumerate(kept):
        turns = tuple(Turn(*texts[key]) for key in path if texts[key][1])
        counts = Counter(turn.speaker for turn in turns)
        least = 1 if len(counts) == 2 else MIN_TURNS
        trained = tuple(sorted(name for name, count in counts.items() if count >= least))
        if len(counts) < 2 or not trained:
            quarantine.notes["one_speaker" if len(counts) < 2 else "nobody_speaks_twice"] += 1
            continue
        yield Dialogue(
            id=f"{conversation}/{number}",
            source=source,
            turns=turns,
            trained=trained,
            scene=scene,
            personas={name: persona for name in counts if (persona := _stated(table, "speaker", name))},
            people={name: name for name in counts},
        )


def _stated(table: sqlite3.Connection, kind: str, name: str) -> str:
    row = table.execute("SELECT value FROM facts WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    if row is None:
        return ""
    return "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in json.loads(row[0]).items())


def _table(scratch: Path) -> sqlite3.Connection:
    table = sqlite3.connect(scratch / "utterances.sqlite", isolation_level=None)
    table.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + SCHEMA)
    return table


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
