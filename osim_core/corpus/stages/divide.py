"""Sixth stage: train and validation, in one part, on columns only.

Three rules, in this order: sides of held-out people (or plays, debates) are validation; a side in which a held-out
person speaks is in neither split; nor is one whose cluster has a side in validation. The last holds for both sides of
one dialogue as well, which share their cluster, so no words of the validation split are ever trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osim_core.corpus.durable import map_file, write_durably
from osim_core.corpus.split import hold_out
from osim_core.corpus.stage import Counts
from osim_core.corpus.stages.record import Side, read_chunk

SPLITS = "splits.i8"
ENDED, NEITHER, TRAIN, VALIDATION = -1, 0, 1, 2
NAMES = {ENDED: "", NEITHER: "", TRAIN: "train", VALIDATION: "validation"}


@dataclass(frozen=True)
class DivideJob:
    """SIDES tables of all chunks, in order; sources by number."""

    tables: tuple[Path, ...]
    sources: tuple[str, ...]
    share: float


def divide(job: DivideJob, folder: Path, name: str) -> Counts:
    """Write splits.i8, int8 for every side of all chunks. Counts: first [place of each chunk's first side], sources
    {source: {groups, held_out_groups, train, validation, dropped_for_validation}}."""
    columns = [_columns(path, job.sources) for path in job.tables]
    first = np.cumsum([0, *(len(c.alive) for c in columns)])
    alive = np.concatenate([c.alive for c in columns])
    source, group, cluster = (np.concatenate([getattr(c, n) for c in columns]) for n in ("source", "group", "cluster"))
    others, owner = (np.concatenate([getattr(c, n) for c in columns]) for n in ("others", "owner"))
    owner += np.repeat(first[:-1], [len(c.owner) for c in columns])
    del columns  # the same again, chunk by chunk

    splits = np.where(alive, TRAIN, ENDED).astype(np.int8)
    counts = {}
    for number, label in enumerate(job.sources):
        here = alive & (source == number)
        spoken = here[owner]
        held = hold_out(group[here], others[spoken], job.share)
        splits[here & _among(group, held)] = VALIDATION
        quoting = owner[spoken & _among(others, held)]
        splits[quoting[splits[quoting] == TRAIN]] = NEITHER
        counts[label] = {"groups": len(np.unique(group[here])), "held_out_groups": len(held)}
    held_clusters = np.zeros(cluster.max(initial=-1) + 1, bool)
    held_clusters[cluster[splits == VALIDATION]] = True
    splits[held_clusters[cluster] & (splits == TRAIN)] = NEITHER
    for number, label in enumerate(job.sources):
        of = np.bincount(splits[alive & (source == number)], minlength=3).tolist()
        counts[label] |= {"train": of[TRAIN], "validation": of[VALIDATION], "dropped_for_validation": of[NEITHER]}
    write_durably(folder / SPLITS, splits)
    return {"first": first.tolist(), "sources": counts}


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool [len(values)]: which values are in `ascending`; np.isin would sort them all."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values


def read_splits(folder: Path, first: int, last: int) -> np.ndarray:
    """int8 [last - first]: ENDED, NEITHER, TRAIN or VALIDATION of these sides."""
    return map_file(folder / SPLITS).view(np.int8)[first:last]


@dataclass(frozen=True)
class Divided:
    """A chunk of the filter stage, its SIDES table, its sources, and where its sides stand in splits.i8 of `splits`."""

    chunk: Path
    table: Path
    sources: tuple[str, ...]
    splits: Path
    first: int
    last: int

    def sides(self) -> Iterator[tuple[int, Side]]:
        """(split, side) of every side, in order."""
        codes = iter(read_splits(self.splits, self.first, self.last).tolist())
        for record in read_chunk(self.chunk):
            for side in record.sides:
                yield next(codes), side


@dataclass(frozen=True, slots=True)
class _Columns:
    """One chunk's sides S: alive bool [S], source int32 [S], group uint64 [S], cluster int64 [S]; and the others who
    speak in them: others uint64 [O], owner int64 [O], the side each stands in."""

    alive: np.ndarray
    source: np.ndarray
    group: np.ndarray
    cluster: np.ndarray
    others: np.ndarray
    owner: np.ndarray


def _columns(path: Path, sources: tuple[str, ...]) -> _Columns:
    table = pq.read_table(path, columns=["ended", "source", "group", "cluster", "others"]).combine_chunks()
    lists = table["others"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    counts = np.diff(lists.offsets.to_numpy())
    codes = {name: number for number, name in enumerate(sources)}
    return _Columns(
        alive=np.array([ended == "" for ended in table["ended"].to_pylist()], bool),
        source=np.array([codes[name] for name in table["source"].to_pylist()], np.int32),
        group=table["group"].to_numpy(),
        cluster=table["cluster"].to_numpy(),
        others=lists.flatten().to_numpy(),
        owner=np.repeat(np.arange(len(counts)), counts),
    )
