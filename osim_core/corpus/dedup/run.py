"""Deduplication of JSON Lines of any size, and incrementally against the files of a signature store.

A first pass reads the file once, in chunks: every line is checked, its text sketched, the sketch written as a part
(store.py). Then all parts, of this file and of those the store knows, are clustered together: a few columns are held
in memory, about 125 bytes a row, band keys are read one band at a time and texts are read again by their offset
where a pair has to be verified. So memory does not grow with the text, and a new file costs no second sketch of the
old ones, yet gives the clusters of one run over everything. Legend: L rows of this file.
"""

import contextlib
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from osim_core import _dedup
from osim_core.corpus.dedup import THRESHOLD, Sketches, check_settings
from osim_core.corpus.dedup.store import Part, read_part, write_part
from osim_core.corpus.durable import DurableFile, write_durably

CHUNK_BYTES = 64 << 20
LONGEST_ROW = 16 << 20
NO_PROMPTS = np.zeros(0, np.uint64)
REASONS = (
    "",
    "not valid UTF-8",
    "not valid JSON",
    "not a JSON object",
    "no field {field!r}",
    "{field!r} is null",
    "{field!r} is not a string",
    "the row is longer than {longest} bytes",
)


@dataclass(frozen=True)
class Settings:
    """text_field: top-level string to compare. bad_rows: stop at the first bad row, or list them beside the output
    and go on. longest_row: bytes of a line, up to 1 GiB. mask_roles: compare without role tags at line starts (`User:`,
    `Speaker 2:`, `<|im_start|>user`). mask_prompts: compare without a first line that at least so many rows share, if
    it is not 0; what is shared depends on all rows, so not with a store. store: folder to keep signatures in."""

    text_field: str = "text"
    threshold: float = THRESHOLD
    threads: int = 1
    bad_rows: Literal["stop", "quarantine"] = "stop"
    longest_row: int = LONGEST_ROW
    mask_roles: bool = False
    mask_prompts: int = 0
    store: Path | None = None


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that could not be read; `line` counts from 1."""

    row: int
    line: int
    reason: str


def deduplicate(source: Path, out: Path, settings: Settings) -> dict:
    """Cluster the rows of `source` and write `out` (parquet: row, cluster, keep, jaccard); returns the figures.

    Rows are the non-blank lines, from 0; with a store, cluster numbers count on from the rows of earlier files. Bad
    rows that are quarantined have cluster -1, keep false and a null jaccard, and are listed in OUT.quarantine.jsonl.
    Raises ValueError naming file and row for bad input.
    """
    check_settings(settings.threshold, settings.threads)
    if not source.is_file():
        raise ValueError(f"{source}: no such file")
    if not 0 < settings.longest_row <= 1 << 30:
        raise ValueError(f"dedup: longest_row {settings.longest_row} is not in [1, 2^30]")
    if settings.mask_prompts and settings.store is not None:
        raise ValueError("dedup: mask_prompts does not go with a store: what is shared depends on all rows")
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.ExitStack() as stack:
        if settings.store is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dedup-", dir=out.parent)))
        else:
            folder = settings.store
            folder.mkdir(parents=True, exist_ok=True)
        files = _known_files(folder, settings)
        name = str(source.resolve())
        if name not in files:
            prompts = _shared_first_lines(source, settings)
            files[name] = _sketch_file(source, folder, len(files), prompts, settings)
        else:
            prompts = NO_PROMPTS  # a stored file
        survivor, jaccard, rows_before = _cluster(files, name, prompts, settings)
        parts = files[name]
        bad = [Bad(**entry) for entry in parts[-1].header["source"]["bad"]]
        _write(out, parts, survivor, jaccard, rows_before, bad)
    figures = {
        "documents": sum(part.rows for part in parts),
        "kept": int((survivor == rows_before + np.arange(survivor.size)).sum()),
        "bytes": sum(part.header["source"]["text_bytes"] for part in parts),
        "quarantined": len(bad),
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": settings.threads,
    }
    if bad:
        figures["quarantined_by_reason"] = dict(Counter(b.reason for b in bad))
    return figures


def _chunks(path: Path, longest: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """(offset in the file, bytes uint8 that end at a line's end, bytes of an overlong line cut out behind them)."""
    with path.open("rb") as file:
        offset, carried = 0, b""
        while block := file.read(CHUNK_BYTES):
            carried += block
            end = carried.rfind(b"\n") + 1
            if end:
                yield offset, np.frombuffer(carried, np.uint8)[:end], 0
                offset, carried = offset + end, carried[end:]
            if len(carried) > longest:
                skipped = len(carried)
                while (line_end := (block := file.read(CHUNK_BYTES)).find(b"\n")) < 0 and block:
                    skipped += len(block)
                kept = block[line_end + 1 :] if block else b""
                skipped += len(block) - len(kept)
                yield offset, np.zeros(0, np.uint8), skipped
                offset, carried = offset + skipped, kept
        if carried:
            yield offset, np.frombuffer(carried, np.uint8), 0


def _shared_first_lines(source: Path, settings: Settings) -> np.ndarray:
    """Hashes of the first lines that at least mask_prompts rows share, ascending; reads the file once."""
    if not settings.mask_prompts:
        return NO_PROMPTS
    hashes = [NO_PROMPTS]
    for _, chunk, _ in _chunks(source, settings.longest_row):
        _, begins, lengths, errors, _ = _dedup.scan(
            chunk, settings.text_field.encode(), settings.longest_row, settings.threads
        )
        good = np.flatnonzero(errors == 0)
        hashes.append(_dedup.first_lines(chunk, begins[good], lengths[good]))
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return values[(counts >= settings.mask_prompts) & (values != 0)]


def _sketch_file(source: Path, folder: Path, number: int, prompts: np.ndarray, settings: Settings) -> list[Part]:
    """Read and sketch the file; the last part says that it is the last and lists the bad rows."""
    parts: list[Part] = []
    bad: list[Bad] = []
    rows = lines = 0
    pending = None  # written once we know whether it is the last one
    size = source.stat().st_size
    for offset, chunk, skipped in _chunks(source, settings.longest_row):
        numbers, begins, lengths, errors, count = _dedup.scan(
            chunk, settings.text_field.encode(), settings.longest_row, settings.threads
        )
        if skipped:
            numbers, errors, count = np.zeros(1, np.int64), np.full(1, 7, np.uint8), 1
        for i in np.flatnonzero(errors).tolist():
            reason = REASONS[errors[i]].format(field=settings.text_field, longest=settings.longest_row)
            found = Bad(rows + i, lines + int(numbers[i]) + 1, reason)
            if settings.bad_rows == "stop":
                raise ValueError(
                    f"{source}, row {found.row} (line {found.line}): {reason}; correct it, or go on without such rows "
                    "by --bad-rows quarantine"
                )
            bad.append(found)
        if chunk.size:
            good = np.flatnonzero(errors == 0)
            begins, lengths = begins[good], lengths[good]
            columns, text_bytes = _dedup.sketch_lines(
                chunk,
                begins,
                lengths,
                settings.mask_roles,
                prompts,
                settings.threshold,
                settings.threads,
                signatures=settings.store is not None,
            )
            if pending:
                parts.append(_write_part(folder, source, number, len(parts), *pending, settings))
            pending = (Sketches(*columns), rows + good, begins + offset, lengths, text_bytes)
        rows, lines = rows + len(errors), lines + count
    if source.stat().st_size != size:
        raise ValueError(f"{source}: changed while it was read; run again")
    if pending is None:
        empty = np.zeros(0, np.int64)
        columns, _ = _dedup.sketch_lines(
            np.zeros(0, np.uint8),
            empty,
            empty.astype(np.uint32),
            False,
            NO_PROMPTS,
            settings.threshold,
            1,
            signatures=settings.store is not None,
        )
        pending = (Sketches(*columns), empty, empty, empty.astype(np.uint32), 0)
    last = {"rows": rows, "size": size, "bad": [{"row": b.row, "line": b.line, "reason": b.reason} for b in bad]}
    return [*parts, _write_part(folder, source, number, len(parts), *pending, settings, last=last)]


def _write_part(
    folder: Path,
    source: Path,
    number: int,
    part: int,
    sketches: Sketches,
    rows: np.ndarray,
    begins: np.ndarray,
    lengths: np.ndarray,
    text_bytes: int,
    settings: Settings,
    last: dict | None = None,
) -> Part:
    columns = {"lines": rows.astype(np.int64), "begins": begins, "lengths": lengths}
    columns |= {name: getattr(sketches, name) for name in Sketches.__slots__}
    about = {"path": str(source.resolve()), "part": part, "text_bytes": text_bytes, "last": last is not None}
    about["settings"] = _about_texts(settings)
    return write_part(folder / f"{number:05}-{part:05}.signatures", about | (last or {}), columns)


def _about_texts(settings: Settings) -> dict:
    """What a sketch depends on besides the text."""
    return {"field": settings.text_field, "threshold": settings.threshold, "mask_roles": settings.mask_roles}


def _known_files(folder: Path, settings: Settings) -> dict[str, list[Part]]:
    """Source path -> its parts, in the order in which the sources came. An unfinished source is forgotten."""
    files: dict[str, list[Part]] = {}
    for path in sorted(folder.glob("*.signatures")):
        part = read_part(path)
        if part.header["source"]["settings"] != _about_texts(settings):
            raise ValueError(f"{path}: made with {part.header['source']['settings']}, not {_about_texts(settings)}")
        files.setdefault(part.header["source"]["path"], []).append(part)
    for name, parts in list(files.items()):
        about = parts[-1].header["source"]
        if not about["last"]:
            for part in parts:
                part.path.unlink()
            del files[name]
        elif not Path(name).is_file() or Path(name).stat().st_size != about["size"]:
            raise ValueError(f"{name}: gone or changed since the store {folder} was written; restore it or start anew")
    return files


def _cluster(
    files: dict[str, list[Part]], name: str, prompts: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray, int]:
    """(survivor [L], jaccard [L], first row of this file) after clustering every part of every file."""
    parts = [part for group in files.values() for part in group]
    total = sum(part.rows for part in parts)
    columns = {
        "begins": np.empty(total, np.int64),
        "lengths": np.empty(total, np.uint32),
        "hashes": np.empty((total, 2), np.uint64),
        "widths": np.empty(total, np.uint8),
        "digits": np.empty((total, _dedup.LANES // 16), np.uint64),
    }
    wide_rows, wide_keys, key_parts, sources = [], [], [], []
    with contextlib.ExitStack() as stack:
        first = 0
        spans = {}
        for source, group in files.items():
            sources.append((first, 0, stack.enter_context(open(source, "rb")).fileno()))
            start = first
            for part in group:
                for column, values in columns.items():
                    values[first : first + part.rows] = part.column(column)
                wide_rows.append(part.column("wide_rows") + first)
                wide_keys.append(part.column("wide_keys"))
                key_parts.append((first, part.offset("keys"), stack.enter_context(part.path.open("rb")).fileno()))
                first += part.rows
            spans[source] = slice(start, first)
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
            None,
            settings.threshold,
            settings.threads,
        )
    return survivor[spans[name]], jaccard[spans[name]], spans[name].start


def _write(
    out: Path, parts: list[Part], survivor: np.ndarray, jaccard: np.ndarray, rows_before: int, bad: list[Bad]
) -> None:
    """The parquet file, and the list of quarantined rows. Cluster numbers are rows, not positions among good rows."""
    lines = np.concatenate([part.column("lines") for part in parts])
    count = parts[-1].header["source"]["rows"]
    cluster = np.full(count, -1, np.int64)
    keep = np.zeros(count, bool)
    index = np.full(count, np.nan, np.float32)
    own = survivor >= rows_before
    # Survivors in earlier files of a store keep their number there; those of this file are named by row.
    cluster[lines] = np.where(own, lines[np.where(own, survivor - rows_before, 0)] + rows_before, survivor)
    keep[lines] = survivor == rows_before + np.arange(survivor.size)
    index[lines] = jaccard
    known = np.packbits(~np.isnan(index), bitorder="little")
    kept = np.packbits(keep, bitorder="little")
    columns = {  # from buffers, since pa.array imports pandas to look at a NumPy array
        "row": pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.arange(count, dtype=np.int64))]),
        "cluster": pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(cluster)]),
        "keep": pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(kept)]),
        "jaccard": pa.Array.from_buffers(pa.float32(), count, [pa.py_buffer(known), pa.py_buffer(index)]),
    }
    table = pa.table(list(columns.values()), names=list(columns))
    with DurableFile(out) as file:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        file.write(sink.getvalue())
        file.publish()
    if bad:
        rows = "".join(json.dumps({"row": b.row, "line": b.line, "reason": b.reason}) + os.linesep for b in bad)
        write_durably(out.with_name(out.name + ".quarantine.jsonl"), rows.encode())
