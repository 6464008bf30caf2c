"""The index of benchmark items, and what rows share with it. Texts in memory; run.py is for files, policy.py for what
to do about the matches."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from osim_core import _decontaminate

LONG_RUN = 13  # a shared run of this many words flags the row by itself
COVERAGE = 0.5  # so do shorter runs that hold this share of an item's words,
SHORT_RUN = 5  # but not shorter ones than this: everybody says "how are you" (such items are counted as too short)


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


class Span(NamedTuple):
    """Characters [begin, end) of one turn that stand in a run shared with an item."""

    turn: int
    begin: int
    end: int


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

    def locate(self, rows: Sequence[Sequence[str]], matches: Matches, threads: int = 1) -> dict[int, list[Span]]:
        """Where the runs of flagged matches stand: row -> its spans, in order and disjoint. `rows` as searched."""
        flagged = np.unique(matches.row[matches.flagged]).tolist()
        wanted = set(zip(matches.row[matches.flagged].tolist(), matches.item[matches.flagged].tolist(), strict=True))
        data, offsets = _buffer([text for row in flagged for text in rows[row]])
        row_offsets = np.cumsum([0, *(len(rows[row]) for row in flagged)], dtype=np.int64)
        places: dict[int, list[Span]] = {row: [] for row in flagged}
        columns = self._index.locate(data, offsets, row_offsets, threads)
        for number, item, *place in zip(*(column.tolist() for column in columns), strict=True):
            if (flagged[number], item) in wanted:
                places[flagged[number]].append(Span(*place))
        return {row: list(_characters(rows[row], _merged(spans))) for row, spans in places.items()}

    def too_short(self, item: int) -> bool:
        """Whether an item has too few words for any row to be flagged for it."""
        return bool(self._index.lengths[item] < SHORT_RUN)


def _buffer(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of all texts end to end, uint8, and their borders, int64 [n + 1]."""
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def _merged(spans: list[Span]) -> Iterator[Span]:
    """The same places without overlaps, in order."""
    held: Span | None = None
    for span in sorted(spans):
        if held is not None and span.turn == held.turn and span.begin <= held.end:
            held = held._replace(end=max(held.end, span.end))
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


def _characters(turns: Sequence[str], spans: Iterator[Span]) -> Iterator[Span]:
    """Byte offsets of UTF-8 become offsets of characters."""
    for turn, begin, end in spans:
        data = turns[turn].encode()
        start = len(data[:begin].decode())
        yield Span(turn, start, start + len(data[begin:end].decode()))
