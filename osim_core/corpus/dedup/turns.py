"""Turns that recur: what many conversations say alike, though the conversations differ.

    python -m osim_core.corpus.dedup.turns IN.jsonl --out OUT.parquet --at-least 10 --policy mask

Scripts, greetings of service desks, scripted tutors and prompts pasted as a turn fill a corpus without making any two
conversations near-duplicates; a model learns them by heart, and they flatter its loss. A turn recurs if at least
`at_least` conversations have it or one like it (the clusters of run.py, with turns for texts, so an index of 0.8 of
5-grams: one word may differ at an end of a turn of 13 words, anywhere in one of 49, and none in shorter ones). Run this
after the deduplication of whole conversations, or copies of a conversation make all of its turns recur.

What to do about them:
    drop  conversations of which `share` or more lies in recurring turns, if others that stay say each of these
    mask  recurring turns carry no loss but where they stand first
    flag  nothing, they are only listed
Turns of the system, and those shorter than `shortest` bytes ("ok", "thank you"), are not looked at. Memory is about
180 bytes a turn that is. Legend: R rows, T turns looked at; a phrase is a cluster of turns, named by its first.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from osim_core import _dedup
from osim_core.corpus.dedup.cluster import Stored, cluster_files
from osim_core.corpus.dedup.reading import REASONS, Scan
from osim_core.corpus.dedup.run import bad_rows, check_sources, publish
from osim_core.corpus.dedup.settings import LONGEST_ROW, Report, Settings, silent
from osim_core.corpus.dedup.sketch import NO_PROMPTS, sketch_file
from osim_core.observe.progress import Stages

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("recurring", pa.list_(pa.int32()), nullable=False),  # places of recurring turns among the messages
        pa.field("share", pa.float32(), nullable=False),  # of the bytes of all turns but the system's
        pa.field("drop", pa.bool_(), nullable=False),
        pa.field("mask", pa.list_(pa.int32()), nullable=False),  # turns to take the loss from
    ]
)


@dataclass(frozen=True)
class TurnSettings:
    """at_least: conversations that make a turn recurring. policy, share, shortest: see above. The rest is that of
    Settings."""

    at_least: int = 10
    policy: Literal["drop", "mask", "flag"] = "flag"
    share: float = 0.8
    shortest: int = 20
    threads: int = 1
    bad_rows: Literal["stop", "quarantine"] = "stop"
    longest_row: int = LONGEST_ROW
    phrases: int = 100  # in the figures

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        if self.at_least < 2:
            raise ValueError(f"turns: at_least must be 2 or more, got {self.at_least}: each turn is in a conversation")
        if not 0 < self.share <= 1:
            raise ValueError(f"turns: share must be above 0 and at most 1, got {self.share}")
        if self.shortest < 1:
            raise ValueError(f"turns: shortest must be at least 1 byte, got {self.shortest}")


@dataclass
class _TurnScanner:
    """Messages of a chunk as texts; remembers how much each row says."""

    settings: TurnSettings
    row_bytes: list[np.ndarray] = field(default_factory=list)  # int64, of all turns but the system's

    def __call__(self, chunk: np.ndarray) -> Scan:
        settings = self.settings
        numbers, counts, codes, begins, lengths, system, lines = _dedup.scan_messages(
            chunk, settings.longest_row, settings.threads
        )
        rows = np.repeat(np.arange(numbers.size), counts)
        turns = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
        spoken = np.where(system, 0, lengths)
        self.row_bytes.append(np.bincount(rows, spoken, minlength=numbers.size).astype(np.int64))
        errors = {
            row: REASONS[codes[row]].format(longest=settings.longest_row) for row in np.flatnonzero(codes).tolist()
        }
        at = np.flatnonzero(spoken >= settings.shortest)
        return Scan(
            numbers, lines, errors, rows[at], begins[at], lengths[at], extra={"turns": turns[at].astype(np.int32)}
        )


def find_recurring_turns(
    source: Path | Sequence[Path], out: Path, settings: TurnSettings, report: Report = silent
) -> dict:
    """Write what recurs in each row of one or several JSONL files of `messages` (SCHEMA; rows as in run.py).

    Returns the figures: rows, turns (looked at), recurring (of those), phrases, rows_dropped, turns_masked, and the
    `top` phrases: text, conversations, turns, near (turns that are like it, not the same words).
    Raises ValueError naming file and row for bad input.
    """
    settings.check()
    sources = check_sources(source)
    texts = Settings(threads=settings.threads, bad_rows=settings.bad_rows, longest_row=settings.longest_row)
    texts.check()
    scanner = _TurnScanner(settings)
    with tempfile.TemporaryDirectory(prefix="turns-", dir=out.parent) as folder:
        files = {
            str(path): sketch_file(path, Path(folder), number, scanner, NO_PROMPTS, texts, report)
            for number, path in enumerate(sources)
        }
        clusters = cluster_files(files, NO_PROMPTS, texts, report)
        turns = np.concatenate([part.column("turns") for group in files.values() for part in group])
    row_bytes = np.concatenate(scanner.row_bytes)
    counts = count_conversations(clusters.survivor, clusters.rows)
    recurring = np.flatnonzero(counts[clusters.survivor] >= settings.at_least)
    phrases, rows, lengths = clusters.survivor[recurring], clusters.rows[recurring], clusters.lengths[recurring]
    share = np.bincount(rows, lengths, minlength=row_bytes.size) / np.maximum(row_bytes, 1)
    drop = np.zeros(row_bytes.size, bool)
    masked = np.zeros(recurring.size, bool)
    if settings.policy == "drop":
        drop = choose_dropped(phrases, rows, lengths, row_bytes, settings.share)
    elif settings.policy == "mask":
        masked = recurring != phrases
    table = pa.table(
        [
            pa.array(np.arange(row_bytes.size)),
            _lists(rows, turns[recurring], row_bytes.size),
            pa.array(share.astype(np.float32)),
            pa.array(drop),
            _lists(rows[masked], turns[recurring][masked], row_bytes.size),
        ],
        schema=SCHEMA,
    )
    bad = bad_rows({path: files[str(path)] for path in sources})
    publish(out, table, bad)
    return {
        "rows": row_bytes.size,
        "quarantined": len(bad),
        "turns": turns.size,
        "recurring": recurring.size,
        "phrases": np.unique(phrases).size,
        "rows_dropped": int(drop.sum()),
        "turns_masked": int(masked.sum()),
        "top": _top(sources, clusters, counts, recurring, settings.phrases),
    }


def count_conversations(phrases: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [T]: in how many rows phrase t occurs (0 if no turn is the phrase t). phrases, rows: int64 [T], rows
    ascending."""
    order = np.argsort(phrases, kind="stable")
    phrase, row = phrases[order], rows[order]
    fresh = np.ones(phrase.size, bool)
    fresh[1:] = (phrase[1:] != phrase[:-1]) | (row[1:] != row[:-1])
    return np.bincount(phrase[fresh], minlength=phrase.size)


def choose_dropped(
    phrases: np.ndarray, rows: np.ndarray, lengths: np.ndarray, row_bytes: np.ndarray, share: float
) -> np.ndarray:
    """bool [R]: rows that go, in their order, because kept rows say `share` of their bytes.

    phrases, rows, lengths: one per recurring turn, rows ascending. row_bytes int64 [R]. Rows that have less than the
    share in recurring turns stay; of the others, one stays if it has a phrase that none of those says which stay, so
    no phrase disappears from the corpus.
    """
    drop = np.zeros(row_bytes.size, bool)
    mostly = np.bincount(rows, lengths, minlength=row_bytes.size) >= share * row_bytes
    mostly &= np.bincount(rows, minlength=row_bytes.size) > 0
    said = set(phrases[~mostly[rows]].tolist())
    candidates = np.unique(rows[mostly[rows]])
    starts, ends = np.searchsorted(rows, candidates), np.searchsorted(rows, candidates, side="right")
    for row, start, end in zip(candidates.tolist(), starts.tolist(), ends.tolist(), strict=True):
        own = phrases[start:end].tolist()
        drop[row] = said.issuperset(own)
        if not drop[row]:
            said.update(own)
    return drop


def _lists(rows: np.ndarray, values: np.ndarray, count: int) -> pa.ListArray:
    """list<int32> [count] of the values of each row; rows ascending."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values.astype(np.int32))


def _top(
    sources: Sequence[Path], clusters: Stored, counts: np.ndarray, recurring: np.ndarray, limit: int
) -> list[dict]:
    """The phrases of most conversations, first come first at a tie."""
    phrases = clusters.survivor[recurring]
    turns = np.bincount(phrases, minlength=counts.size)
    near = np.bincount(phrases, clusters.jaccard[recurring] < 1, minlength=counts.size)
    named = np.unique(phrases)
    best = named[np.argsort(-counts[named], kind="stable")][:limit]
    starts = np.array([clusters.first[str(path)][0] for path in sources])
    top = []
    for phrase in best.tolist():
        with sources[int(np.searchsorted(starts, phrase, side="right")) - 1].open("rb") as file:
            file.seek(clusters.begins[phrase])
            text = json.loads(b'"' + file.read(int(clusters.lengths[phrase])) + b'"')
        about = {"conversations": int(counts[phrase]), "turns": int(turns[phrase]), "near": int(near[phrase])}
        top.append({"text": text, **about})
    return top


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on stderr for bad input."""
    defaults = TurnSettings()
    parser = argparse.ArgumentParser(prog="python -m osim_core.corpus.dedup.turns", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", type=Path, nargs="+", metavar="IN.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet")
    parser.add_argument("--at-least", type=int, default=defaults.at_least, metavar="CONVERSATIONS")
    parser.add_argument("--policy", choices=("drop", "mask", "flag"), default=defaults.policy)
    parser.add_argument("--share", type=float, default=defaults.share, help="of a conversation, to drop it")
    parser.add_argument("--shortest", type=int, default=defaults.shortest, help="bytes of a turn that counts")
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--bad-rows", choices=("stop", "quarantine"), default=defaults.bad_rows)
    parser.add_argument("--longest-row", type=int, default=defaults.longest_row, help="bytes of a line")
    parser.add_argument("--phrases", type=int, default=defaults.phrases, help="of the figures, printed as JSON")
    arguments = vars(parser.parse_args(argv))
    sources, out = arguments.pop("sources"), arguments.pop("out")
    try:
        if not out.parent.is_dir():
            raise ValueError(f"{out.parent}: no such folder for --out")
        figures = find_recurring_turns(sources, out, TurnSettings(**arguments), Stages.on_stderr("turns"))
    except ValueError as error:
        print(f"turns: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
