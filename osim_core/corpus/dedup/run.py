"""Deduplication of JSON Lines files of any size, all at once or incrementally against a signature store.

A first pass reads each file once: every line is checked, its text sketched, the sketch written as a part (reading.py,
sketch.py, store.py). Then the parts of all files, and of those the store knows, are clustered together (cluster.py).
Memory is about 140 bytes a row and a chunk of 64 MiB with its sketches, whatever the length of the texts; a new file
costs no second sketch of the old ones, yet gives the clusters of one run over everything. Legend: L rows of the files.
"""

import contextlib
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
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
        chosen = {str(path.resolve()): path for path in sources}
        written = _write(out, files, chosen, clusters)
    figures = {
        "documents": written["documents"],
        "kept": written["kept"],
        "bytes": sum(part.header["source"]["text_bytes"] for name in chosen for part in files[name]),
        "quarantined": len(written["bad"]),
        "files": written["files"],
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": settings.threads,
    }
    reasons = Counter(bad["reason"] for bad in written["bad"])
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


def _write(out: Path, files: dict[str, list[Part]], chosen: dict[str, Path], clusters: Stored) -> dict:
    """The parquet file with the rows of the files in `chosen`, and the list of quarantined rows; returns figures."""
    counts = {name: files[name][-1].header["source"]["rows"] for name in chosen}
    total = sum(counts.values())
    cluster = np.full(total, -1, np.int64)
    keep = np.zeros(total, bool)
    index = np.full(total, np.nan, np.float32)
    bad, listed, first = [], [], 0
    texts = np.cumsum([0, *(sum(part.rows for part in group) for group in files.values())])
    text_slices = {name: slice(*texts[i : i + 2]) for i, name in enumerate(files)}
    for name, path in chosen.items():
        here = text_slices[name]
        rows = first + clusters.rows[here] - clusters.first_row[name]
        cluster[rows] = clusters.rows[clusters.survivor[here]]
        keep[rows] = clusters.survivor[here] == np.arange(here.start, here.stop)
        index[rows] = clusters.jaccard[here]
        listed.append({"path": str(path), "first_row": first, "rows": counts[name]})
        for entry in files[name][-1].header["source"]["bad"]:
            bad.append({"file": str(path), **entry, "row": first + entry["row"]})
        first += counts[name]
    write_clusters(out, cluster, keep, index)
    if bad:
        lines = "".join(json.dumps(entry) + os.linesep for entry in bad)
        write_durably(out.with_name(out.name + ".quarantine.jsonl"), lines.encode())
    return {"documents": total - len(bad), "kept": int(keep.sum()), "files": listed, "bad": bad}


def write_clusters(out: Path, cluster: np.ndarray, keep: np.ndarray, jaccard: np.ndarray) -> None:
    """Parquet of row, cluster int64 [L], keep bool [L], jaccard float32 [L] (not a number becomes null)."""
    count = cluster.size
    known = np.packbits(~np.isnan(jaccard), bitorder="little")
    kept = np.packbits(keep, bitorder="little")
    columns = {  # from buffers, since pa.array imports pandas to look at a NumPy array
        "row": pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(np.arange(count, dtype=np.int64))]),
        "cluster": pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(cluster)]),
        "keep": pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(kept)]),
        "jaccard": pa.Array.from_buffers(pa.float32(), count, [pa.py_buffer(known), pa.py_buffer(jaccard)]),
    }
    table = pa.table(list(columns.values()), names=list(columns))
    with DurableFile(out) as file:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        file.write(sink.getvalue())
        file.publish()
