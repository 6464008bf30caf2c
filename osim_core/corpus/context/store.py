"""What has been written, by content hash, in one SQLite file: a killed run goes on where it was, at no cost.

The key covers the writer's identity and everything that it is shown, so another model, prompt or edited conversation
is written anew. Rows of a transport failure are kept for the report and asked again by the next run.
"""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from osim_core.corpus.context.schema import SocialContext, from_json
from osim_core.corpus.sources.dialogue import Dialogue


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one request.

    status   "written", "missing" (see `fault` and `reason`), or "stated" (the record carries its own context)
    context  JSON of the social context if written, else ""
    fault    of the last attempt: a Fault of writers.py, or "leak"
    leakage  overlap of the context that was written, or of the last one that was rejected
    tokens   over all attempts; `untold` attempts gave no count
    """

    key: str
    status: str
    context: str = ""
    fault: str = ""
    reason: str = ""
    leakage: float = 0.0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    untold: int = 0

    def social_context(self) -> SocialContext | None:
        """The context if one was written."""
        return from_json(self.context) if self.status == "written" else None


COLUMNS = tuple(Row.__dataclass_fields__)


def content_key(identity: str, dialogue: Dialogue, speaker: str) -> str:
    """SHA-256 over the writer and all that it is shown, hex."""
    shown = [
        identity,
        dialogue.source,
        speaker,
        [[turn.speaker, turn.text] for turn in dialogue.turns],
        dialogue.scene,
        dialogue.relationship,
        dialogue.personas.get(speaker, ""),
        dialogue.goals.get(speaker, ""),
        dialogue.system,
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


class ContextStore:
    """The rows of one file; `path` None keeps them in memory."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._rows = sqlite3.connect(":memory:" if path is None else path)
        self._rows.execute("PRAGMA journal_mode = WAL")  # a kill at any time leaves what was committed
        kinds = {"leakage": "REAL", "attempts": "INTEGER", "prompt_tokens": "INTEGER", "completion_tokens": "INTEGER"}
        kinds |= {"untold": "INTEGER", "key": "TEXT PRIMARY KEY"}
        columns = ", ".join(f"{name} {kinds.get(name, 'TEXT')}" for name in COLUMNS)
        self._rows.execute(f"CREATE TABLE IF NOT EXISTS contexts({columns}) WITHOUT ROWID")
        self._rows.commit()

    def get(self, key: str) -> Row | None:
        """The row of a key, if there is one that needs no second try."""
        query = f"SELECT {', '.join(COLUMNS)} FROM contexts WHERE key = ? AND fault != 'transport'"
        row = self._rows.execute(query, (key,)).fetchone()
        return Row(*row) if row else None

    def put(self, rows: Sequence[Row]) -> None:
        """Keep rows, all or none of them."""
        with self._rows:
            self._rows.executemany(
                f"INSERT OR REPLACE INTO contexts VALUES ({', '.join('?' * len(COLUMNS))})", map(astuple, rows)
            )

    def close(self) -> None:
        self._rows.close()

    def __enter__(self) -> "ContextStore":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
