"""Clusters of texts on disk: second pass of run.py and turns.py.

All parts of all files are clustered together. A few columns are held in memory, about 150 bytes a text; band keys are
read one band at a time, and a text is read again by its place in its file where a pair has to be verified.
Legend: T texts of all files.
"""

import contextlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from osim_core import _dedup
from osim_core.corpus.dedup.settings import Report, Settings
from osim_core.corpus.dedup.store import Part


@dataclass(frozen=True, slots=True)
class Stored:
    """Clusters of all texts, which are numbered over all files, as rows are.

    survivor         int64 [T]    the text that each text's cluster keeps
    jaccard          float32 [T]  exact index of the two
    rows             int64 [T]    row of each text
    begins, lengths  [T]          place of each text's JSON string in its file, int64 and uint32
    first            {path: (its first text, its first row)}
    """

    survivor: np.ndarray
    jaccard: np.ndarray
    rows: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    first: dict[str, tuple[int, int]]


def cluster_files(
    files: Mapping[str, Sequence[Part]], prompts: np.ndarray, settings: Settings, report: Report
) -> Stored:
    """Cluster every text of `files` (path -> its parts). `report` is called with the bands done."""
    parts = [part for group in files.values() for part in group]
    total = sum(part.rows for part in parts)
    columns = {
        "begins": np.empty(total, np.int64),
        "lengths": np.empty(total, np.uint32),
        "hashes": np.empty((total, 2), np.uint64),
        "widths": np.empty(total, np.uint8),
        "digits": np.empty((total, _dedup.LANES // 16), np.uint64),
    }
    rows = np.empty(total, np.int64)
    priorities = None if settings.priorities is None else np.empty(total, np.int32)
    wide_rows, wide_keys, key_parts, sources = [], [], [], []
    first, text, row = {}, 0, 0
    with contextlib.ExitStack() as stack:
        _allow_open_files(len(parts) + len(files))
        for source, group in files.items():
            sources.append((text, 0, stack.enter_context(open(source, "rb")).fileno()))
            first[source] = text, row
            for part in group:
                here = slice(text, text + part.rows)
                for column, values in columns.items():
                    values[here] = part.column(column)
                rows[here] = row + part.column("lines")
                if priorities is not None:
                    priorities[here] = _priorities(part, settings)
                wide_rows.append(part.column("wide_rows") + text)
                wide_keys.append(part.column("wide_keys"))
                key_parts.append((text, part.offset("keys"), stack.enter_context(part.path.open("rb")).fileno()))
                text += part.rows
            row += group[-1].header["source"]["rows"]
        survivor, jaccard, _ = _dedup.cluster_stored(
            np.array(sources, np.int64),
            np.array(key_parts, np.int64),
            columns["begins"],
            columns["lengths"],
            settings.mask_roles,
            prompts,
            columns["hashes"],
            columns["widths"],
            columns["digits"],
            np.concatenate(wide_rows),
            np.concatenate(wide_keys),
            priorities,
            settings.threshold,
            settings.threads,
            scalar=False,
            progress=lambda bands, of: report("cluster", bands, of),
        )
    return Stored(survivor, jaccard, rows, columns["begins"], columns["lengths"], first)


def _priorities(part: Part, settings: Settings) -> np.ndarray:
    """int32 [rows of the part]"""
    source, codes = part.header["source"], part.column("names")
    numbers = np.zeros(len(source["names"]), np.int32)
    for code in np.unique(codes).tolist():  # a value that only bad rows have needs no number
        name = source["names"][code]
        number = settings.priority(name)
        if number is None:
            raise ValueError(f"{source['path']}: {settings.priority_field!r} is {name!r}, which has no priority")
        numbers[code] = number
    return numbers[codes]


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files if it has to. Raises ValueError if the system does not allow it."""
    needed = count + 256  # what Python, torch and the user's shell have open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(f"dedup: {count} files and parts, but the limit of open files is {hard}; raise ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
