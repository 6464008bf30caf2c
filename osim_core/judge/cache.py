"""Answers of a judge's server by the content of the request, in one SQLite file: durable, and made for replay.

The key covers the address and every byte of the request, so another model, rubric, wording or reply asks anew. Only
answers that a judge could use are kept. Record once, and a run or a test repeats without the server.
"""

import hashlib
import sqlite3
import threading
from pathlib import Path


class AnswerCache:
    """The answers of one file; several threads and processes may use it. Raises ValueError for a file that is no such
    cache."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._rows = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._rows.execute("PRAGMA journal_mode = WAL")
            self._rows.execute("PRAGMA synchronous = FULL")  # an answer that was paid for survives a power cut
            self._rows.execute("CREATE TABLE IF NOT EXISTS answers(key BLOB PRIMARY KEY, answer BLOB) WITHOUT ROWID")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"judge cache {path}: {error}; name another file or remove it") from error

    def get(self, url: str, request: bytes) -> bytes | None:
        """The answer to a request, if it is known."""
        with self._lock:
            row = self._rows.execute("SELECT answer FROM answers WHERE key = ?", (_key(url, request),)).fetchone()
        return row[0] if row else None

    def put(self, url: str, request: bytes, answer: bytes) -> None:
        """Keep an answer; durable when this returns."""
        with self._lock, self._rows:
            self._rows.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (_key(url, request), answer))

    def close(self) -> None:
        self._rows.close()


def _key(url: str, request: bytes) -> bytes:
    return hashlib.sha256(url.encode() + b"\n" + request).digest()
