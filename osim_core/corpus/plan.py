"""A packing plan: which piece of which document stands where in which row, for one epoch.

    documents --mix--> documents of this epoch --overlong policy--> pieces --best-fit-decreasing--> rows --shuffle-->

A plan is a pure function of (shards, sequence length, overlong policy, mix, seed, epoch); no rank or world size
enters. It is computed once, by whichever process comes first, and mapped from disk by the others. All steps are
vectorised: 21 M documents take seconds, and 20 bytes each.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np

from osim_core.corpus.durable import DurableFile, exclusive, map_file, sync_folder
from osim_core.corpus.pack import pack_documents
from osim_core.corpus.shards import ShardSet, ragged_indices

FORMAT = 1  # raise it when the same inputs give another plan
# tokens start..stop of `document` occupy row positions offset..offset+stop-start
PIECE = np.dtype([("document", np.int64), ("start", np.int32), ("stop", np.int32), ("offset", np.int32)])
Overlong = Literal["split", "truncate", "drop"]


class Plan:
    """A stored plan, memory-mapped.

    row_offsets   int64 [R+1] row r holds pieces row_offsets[r]..row_offsets[r+1]
    pieces        PIECE [P] in row order; `offset` with the row's end are the row's cu_seqlens
    statistics    rows, pieces, tokens (in pieces), padding (share of positions), documents (drawn for this epoch),
                  dropped_documents, dropped_tokens (by policy "drop" or "truncate", or too short to predict)
    """

    def __init__(self, folder: Path) -> None:
        self.statistics = json.loads((folder / "plan.json").read_text())
        self.row_offsets = map_file(folder / "rows.i64").view(np.int64)
        self.pieces = map_file(folder / "pieces.i64i32i32i32").view(PIECE)

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, row: int) -> np.ndarray:
        """PIECE [pieces of the row], a read-only view."""
        return self.pieces[self.row_offsets[row] : self.row_offsets[row + 1]]


def open_plan(
    cache: str | Path,
    shards: ShardSet,
    *,
    sequence_length: int,
    overlong: Overlong,
    mix: dict[str, float],
    seed: int,
    epoch: int,
    document_length: int | None = None,
) -> Plan:
    """The plan of these inputs from `cache`/plans, building and publishing it first if it is not there.

    document_length: what counts as overlong, where that is less than the row.
    mix: source name -> how often each epoch goes through it; sources it does not name count once.
    Raises ValueError for an unknown source, a negative share, a length below 2, or a plan without rows.
    """
    inputs = {
        "format": FORMAT,
        "shards": shards.fingerprint,
        "sequence_length": sequence_length,
        "overlong": overlong,
        "mix": {name: share for name, share in sorted(mix.items()) if share != 1},
        "seed": seed,
        "epoch": epoch,
        "document_length": document_length,
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]
    plans = Path(cache) / "plans"
    plans.mkdir(parents=True, exist_ok=True)
    folder = plans / key
    if not folder.is_dir():
        with exclusive(plans / f"{key}.lock"):
            if not folder.is_dir():
                row_offsets, pieces, statistics = build_plan(
                    shards,
                    sequence_length=sequence_length,
                    overlong=overlong,
                    mix=mix,
                    seed=seed,
                    epoch=epoch,
                    document_length=document_length,
                )
                _publish(folder, row_offsets, pieces, {"inputs": inputs} | statistics)
    return Plan(folder)


def build_plan(
    shards: ShardSet,
    *,
    sequence_length: int,
    overlong: Overlong,
    mix: dict[str, float],
    seed: int,
    epoch: int,
    document_length: int | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Compute a plan in memory: (row_offsets int64 [R+1], pieces PIECE [P], statistics), as in `Plan`."""
    if sequence_length < 2:
        raise ValueError(f"sequence_length: must be at least 2 to predict anything, got {sequence_length}")
    longest = min(document_length or sequence_length, sequence_length)
    draws = draw_documents(shards, mix, seed, epoch)
    pieces = cut_documents(shards, np.flatnonzero(draws), longest, overlong)
    pieces = np.repeat(pieces, draws[pieces["document"]])
    if len(pieces) == 0:
        raise ValueError(
            f"{shards.folder}: the {shards.split} split has no document to train on with sequence_length "
            f"{sequence_length}, overlong {overlong!r} and sources {mix}; change one of them"
        )
    rng = np.random.default_rng([seed, epoch])
    pieces = pieces[rng.permutation(len(pieces))]  # so that ties in length meet other neighbours each epoch
    lengths = pieces["stop"] - pieces["start"]
    packed = pack_documents(lengths, sequence_length)
    rows = rng.permutation(len(packed.row_offsets) - 1)
    counts = np.diff(packed.row_offsets)[rows]
    pieces = pieces[packed.documents[ragged_indices(packed.row_offsets[rows], counts)]]
    row_offsets = np.concatenate([[0], np.cumsum(counts)])

    lengths = pieces["stop"] - pieces["start"]
    ends = np.cumsum(lengths, dtype=np.int64)
    before_row = (ends - lengths)[row_offsets[:-1]]
    pieces["offset"] = ends - lengths - np.repeat(before_row, counts)
    assert (pieces["offset"] + lengths <= sequence_length).all(), "the packer overfilled a row"
    return row_offsets, pieces, _statistics(shards, draws, pieces, len(rows), sequence_length)


def draw_documents(shards: ShardSet, mix: dict[str, float], seed: int, epoch: int) -> np.ndarray:
    """int32 [N] how often each document appears in this epoch.

    Each source is an endless walk around one seeded permutation of its documents, and an epoch of share e is the
    next e * n of them: 0.5 is a half that changes every epoch, 2 is each twice, 1.5 once and a half again. Nothing
    is drawn with replacement, so over any number of epochs two documents of a source differ by at most one visit.
    """
    for name, share in mix.items():
        if name not in shards.source_names:
            raise ValueError(f"sources: unknown source {name!r}; the shards hold {', '.join(shards.source_names)}")
        if not 0 <= share < float("inf"):
            raise ValueError(f"sources: {name!r} has share {share}; give the epochs of it in one pass, 0 or more")
    draws = (shards.lengths > 0).astype(np.int32)
    for index, name in enumerate(shards.source_names):
        share = mix.get(name, 1.0)
        if share == 1.0:
            continue
        documents = np.flatnonzero((shards.sources == index) & (shards.lengths > 0))
        first, last = round(epoch * share * len(documents)), round((epoch + 1) * share * len(documents))
        whole, rest = divmod(last - first, max(len(documents), 1))
        draws[documents] = whole
        if rest:
            walk = np.random.default_rng([seed, 0, index]).permutation(documents)
            draws[walk[np.arange(first, first + rest) % len(documents)]] += 1
    return draws


def cut_documents(shards: ShardSet, documents: np.ndarray, capacity: int, overlong: Overlong) -> np.ndarray:
    """PIECE [P], offsets unset: the documents (int64, ascending) as pieces of 2..capacity tokens."""
    lengths = shards.lengths[documents]
    whole = np.flatnonzero((lengths >= 2) & (lengths <= capacity))
    long = np.flatnonzero(lengths > capacity)
    if overlong == "split":
        owner, start, stop = _split_at_turns(shards, documents[long], capacity)
        owner = long[owner]
    elif overlong == "truncate":
        owner, start, stop = long, np.zeros(len(long), np.int64), np.full(len(long), capacity)
    elif overlong == "drop":
        owner = start = stop = np.zeros(0, np.int64)
    else:
        raise ValueError(f"overlong: {overlong!r} is not one of 'split', 'truncate', 'drop'")
    pieces = np.zeros(len(whole) + len(owner), PIECE)
    pieces["document"] = documents[np.concatenate([whole, owner])]
    pieces["start"][len(whole) :] = start
    pieces["stop"] = np.concatenate([lengths[whole], stop])
    return pieces


def _split_at_turns(
    shards: ShardSet, documents: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut overlong documents at the last turn start that fits; a turn longer than a row is cut at the row's end.

    A piece whose first token carries loss starts one token earlier: that token needs something to be predicted
    from, so no target is ever lost. Returns (index into documents, start, stop), int64 each. All documents advance
    together, one piece a round, on one number line: document i occupies base[i]..base[i]+length.
    """
    lengths = shards.lengths[documents].astype(np.int64)
    base = np.cumsum(lengths) - lengths
    turns, turn_counts = shards.ragged("turn_starts", documents)
    turns = np.concatenate([[-1], turns + np.repeat(base, turn_counts)])
    spans, span_counts = shards.ragged("loss_spans", documents)
    spans = spans + np.repeat(base, span_counts)

    found = []
    active, start = np.arange(len(documents)), np.zeros(len(documents), np.int64)
    while len(active):
        limit = start + capacity
        border = turns[np.searchsorted(turns, base[active] + limit, side="right") - 1]
        border -= base[active]
        # a border less than 2 tokens on would be a piece without a target
        cut = np.where(border - start >= 2, border, limit)
        cut = np.where(lengths[active] <= limit, lengths[active], cut)
        found.append(np.stack([active, start, cut]))
        carries_loss = np.searchsorted(spans, base[active] + cut, side="right") % 2
        more = cut < lengths[active]
        active, start = active[more], (cut - carries_loss)[more]
    owner, start, stop = np.concatenate([*found, np.zeros((3, 0), np.int64)], axis=1)
    useful = stop - start >= 2
    return owner[useful], start[useful], stop[useful]


def _statistics(
    shards: ShardSet, draws: np.ndarray, pieces: np.ndarray, rows: int, sequence_length: int
) -> dict[str, float]:
    tokens = int((pieces["stop"] - pieces["start"]).sum(dtype=np.int64))
    reached = np.zeros(len(draws), np.int32)  # the pieces of a document cover it from 0 to here
    np.maximum.at(reached, pieces["document"], pieces["stop"])
    return {
        "rows": rows,
        "pieces": len(pieces),
        "tokens": tokens,
        "padding": 1 - tokens / (rows * sequence_length),
        "documents": int(draws.sum()),
        "dropped_documents": int(draws[reached == 0].sum()),
        "dropped_tokens": int((draws * (shards.lengths - reached).astype(np.int64)).sum()),
    }


def _publish(folder: Path, row_offsets: np.ndarray, pieces: np.ndarray, statistics: dict) -> None:
    """Write the plan under a temporary folder name, then rename; caller holds the lock of this plan."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        contents = {
            "rows.i64": row_offsets,
            "pieces.i64i32i32i32": pieces.view(np.uint8),
            "plan.json": json.dumps(statistics, indent=1).encode(),
        }
        for name, data in contents.items():
            with DurableFile(temporary / name) as file:
                file.write(data)
                file.publish()
        temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
