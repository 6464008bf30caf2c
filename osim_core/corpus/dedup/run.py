"""Deduplication of JSON Lines files of any size, all at once or incrementally against a signature store.

A first pass reads each file once: every line is checked, its text sketched, the sketch written as a part (reading.py,
sketch.py, store.py). Then the parts of all files, and of those the store knows, are clustered together (cluster.py).
Memory is about 150 bytes a row and a chunk of 64 MiB with its sketches, whatever the length of the texts; a new file
costs no second sketch of the old ones, yet gives the clusters of one run over everything. Legend: L rows of the files.
"""

import contextlib
import itertools
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from osim_core import _dedup
from osim_core.corpus.dedup.cluster import Stored, cluster_files
from osim_core.corpus.dedup.reading import chunks, row_texts
from osim_core.corpus.dedup.settings import Report, Settings, silent
from osim_core.corpus.dedup.sketch import NO_PROMPTS, known_files, sketch_file
from osim_core.corpus.dedup.store import Part
from osim_core.corpus.durable import DurableFile, write_durably

__all__ = ["Settings", "deduplicate"]


def deduplicate(source: Path | Sequence[Path], out: Path, settings: Settings, report: Report = silent) -> dict:
    """Cluster the rows of one or several files and write `out` (parquet: row, cluster, keep, jaccard).

    Returns the figures: documents, kept, bytes of text, quarantined, files [{path, first_row, rows}], times, memory.
    Rows are the non-blank lines of all files in their order, from 0; a cluster is named by the row that it keeps. With
    a store, cluster numbers count on from the rows of its earlier files. Bad rows that are quarantined have cluster
    -1, keep false and a null jaccard, and are listed in OUT.quarantine.jsonl.
    `report` is called as (stage, done, total): bytes of each file, then bands. Raises ValueError naming file and row
    for bad input.
    """
    settings.check()
    sources = check_sources(source)
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.ExitStack() as stack:
        if settings.store is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dedup-", dir=out.parent)))
        else:
            folder = settings.store
            folder.mkdir(parents=True, exist_ok=True)
        files = known_files(folder, settings)
        prompts = _shared_first_lines(sources, settings)
        for path in sources:
            if str(path.resolve()) not in files:
                number = len(files)
                parts = sketch_file(path, folder, number, row_texts(settings), prompts, settings, report)
                files[str(path.resolve())] = parts
        clusters = cluster_files(files, prompts, settings, report)
        chosen = {path: files[str(path.resolve())] for path in sources}
        table, bad = _table(chosen, clusters), bad_rows(chosen)
        publish(out, table, bad)
        parts = [part.header["source"] for group in chosen.values() for part in group]
    rows = [group[-1].header["source"]["rows"] for group in chosen.values()]
    figures = {
        "documents": sum(rows) - len(bad),
        "kept": pc.sum(table["keep"]).as_py() or 0,
        "bytes": sum(part["text_bytes"] for part in parts),
        "quarantined": len(bad),
        "files": [
            {"path": str(path), "first_row": first, "rows": count}
            for path, first, count in zip(chosen, itertools.accumulate(rows, initial=0), rows, strict=False)
        ],
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": settings.threads,
    }
    reasons = Counter(entry["reason"] for entry in bad)
    return figures | ({"quarantined_by_reason": dict(reasons)} if reasons else {})


def check_sources(source: Path | Sequence[Path]) -> list[Path]:
    """The files. Raises ValueError for none, for one that is not there, or one that is there twice."""
    sources = [source] if isinstance(source, Path) else list(source)
    if not sources:
        raise ValueError("dedup: no file to read")
    for path in sources:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
    twice = [path for path, count in Counter(path.resolve() for path in sources).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]}: named twice; every row of it would be a duplicate")
    return sources


def _shared_first_lines(sources: Sequence[Path], settings: Settings) -> np.ndarray:
    """Hashes of the first lines that at least mask_prompts rows share, ascending; reads the files once."""
    if not settings.mask_prompts:
        return NO_PROMPTS
    hashes = [NO_PROMPTS]
    for source in sources:
        for _, chunk, _ in chunks(source, settings.longest_row):
            found = row_texts(settings)(chunk)
            hashes.append(_dedup.first_lines(chunk, found.begins, found.lengths))
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return values[(counts >= settings.mask_prompts) & (values != 0)]


def bad_rows(files: Mapping[Path, Sequence[Part]]) -> list[dict]:
    """{file, row, line, reason} of the quarantined rows of these files (path -> its parts), rows counted over all."""
    bad, first = [], 0
    for path, parts in files.items():
        about = parts[-1].header["source"]
        bad += [{"file": str(path), **entry, "row": first + entry["row"]} for entry in about["bad"]]
        first += about["rows"]
    return bad


def publish(out: Path, table: pa.Table, bad: Sequence[dict]) -> None:
    """Write a parquet file durably, and the bad rows, if there are any, as OUT.quarantine.jsonl."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    with DurableFile(out) as file:
        file.write(sink.getvalue())
        file.publish()
    if bad:
        lines = "".join(json.dumps(entry) + os.linesep for entry in bad)
        write_durably(out.with_name(out.name + ".quarantine.jsonl"), lines.encode())


def _table(files: Mapping[Path, Sequence[Part]], clusters: Stored) -> pa.Table:
    """row, cluster, keep and jaccard of the rows of these files."""
    total = sum(parts[-1].header["source"]["rows"] for parts in files.values())
    cluster = np.full(total, -1, np.int64)
    keep = np.zeros(total, bool)
    jaccard = np.full(total, np.nan, np.float32)
    first = 0
    for path, parts in files.items():
        text, row = clusters.first[str(path.resolve())]
        here = slice(text, text + sum(part.rows for part in parts))
        rows = first + clusters.rows[here] - row
        cluster[rows] = clusters.rows[clusters.survivor[here]]
        keep[rows] = clusters.survivor[here] == np.arange(here.start, here.stop)
        jaccard[rows] = clusters.jaccard[here]
        first += parts[-1].header["source"]["rows"]
    known = np.packbits(~np.isnan(jaccard), bitorder="little")
    kept = np.packbits(keep, bitorder="little")
    columns = {  # from buffers, since pa.array imports pandas to look at a NumPy array
        "row": pa.Array.from_buffers(pa.int64(), total, [None, pa.py_buffer(np.arange(total, dtype=np.int64))]),
        "cluster": pa.Array.from_buffers(pa.int64(), total, [None, pa.py_buffer(cluster)]),
        "keep": pa.Array.from_buffers(pa.bool_(), total, [None, pa.py_buffer(kept)]),
        "jaccard": pa.Array.from_buffers(pa.float32(), total, [pa.py_buffer(known), pa.py_buffer(jaccard)]),
    }
    return pa.table(list(columns.values()), names=list(columns))
