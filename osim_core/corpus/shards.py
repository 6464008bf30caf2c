"""Checksummed token shards: what `prepare` writes once and every training rank maps.

A shard is three files: `<split>-NNNNN.bin` and `.idx` (tokens, readable by Megatron-core) and `<split>-NNNNN.arrow`
(Arrow IPC, one record batch, with what that format lacks: document ids, sources, loss spans, turn starts). Their
sizes and SHA-256 go into the shard's manifest entry. `<folder>/manifest.json`, written last, lists the entries:
{"sources": [names], "shards": {split: [entries]}}.

    with ShardWriter(folder, "train", vocab_size, sources, max_documents) as writer:
        for document in documents: writer.add(document)
        entries = writer.close()
    shards = ShardSet.open(folder, "train")

Everything stays memory-mapped; only `lengths` and `sources` (8 bytes a document) are ever copied whole.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.durable import exclusive, map_file, sha256_of, write_durably
from osim_core.corpus.indexed import IndexedTokens, IndexedWriter, token_dtype

logger = logging.getLogger(__name__)

SIDECAR = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),  # index into the manifest's sources
        pa.field("loss_spans", pa.list_(pa.int32()), nullable=False),  # start, stop, start, stop, ...
        pa.field("turn_starts", pa.list_(pa.int32()), nullable=False),
    ]
)


class ShardWriter:
    """Writes the shards of one split, `max_documents` in each; a shard appears only when it is complete.

    Leaving the `with` block without `close` removes the unfinished shard and keeps the finished ones, which no
    manifest lists yet.
    """

    def __init__(self, folder: str | Path, split: str, vocab_size: int, sources: list[str], max_documents: int) -> None:
        if max_documents < 1:
            raise ValueError(f"shard_documents: must be at least 1, got {max_documents}")
        self.folder, self.split, self.vocab_size = Path(folder), split, vocab_size
        self.max_documents = max_documents
        self._source_index = {name: index for index, name in enumerate(sources)}
        self._entries: list[dict[str, Any]] = []
        self._open_shard()

    def _open_shard(self) -> None:
        self._name = f"{self.split}-{len(self._entries):05d}"
        self._writer = IndexedWriter(self.folder / self._name, token_dtype(self.vocab_size))
        self._ids: list[str] = []
        self._sources: list[int] = []
        self._spans: list[np.ndarray] = []
        self._turns: list[np.ndarray] = []
        self._max_token = 0

    def add(self, document: RenderedDocument) -> None:
        """Append one document. Raises ValueError naming its id if it is empty, inconsistent or out of vocabulary."""
        self._check(document)
        if len(self._writer) == self.max_documents:
            self._finish_shard()
            self._open_shard()
        self._writer.add(document.tokens)
        self._ids.append(document.id)
        self._sources.append(self._source_index[document.source])
        self._spans.append(np.asarray(document.loss_spans, np.int32).reshape(-1))
        self._turns.append(np.asarray(document.turn_starts, np.int32))
        self._max_token = max(self._max_token, int(document.tokens.max()))

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard; returns the manifest entries in order."""
        if len(self._writer):
            self._finish_shard()
        return self._entries

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._writer.__exit__(*exception)

    def _check(self, document: RenderedDocument) -> None:
        where = f"document {document.id!r} of {document.source!r}"
        tokens, length = document.tokens, len(document.tokens)
        if length == 0:
            raise ValueError(f"{where}: no tokens; drop empty documents before writing shards")
        if document.source not in self._source_index:
            known = ", ".join(self._source_index)
            raise ValueError(f"{where}: source is not declared; declared sources: {known}")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            bad = int(tokens.max()) if tokens.min() >= 0 else int(tokens.min())
            raise ValueError(
                f"{where}: token {bad} is outside the vocabulary of {self.vocab_size}; "
                "is this the tokenizer it was rendered with?"
            )
        edges = np.asarray(document.loss_spans).reshape(-1)
        turns = np.asarray(document.turn_starts)
        if len(edges) and (edges[0] < 0 or edges[-1] > length or (np.diff(edges) < 0).any()):
            raise ValueError(f"{where}: loss_spans must be sorted, disjoint and within its {length} tokens")
        if len(turns) and (turns[0] < 0 or turns[-1] >= length or (np.diff(turns) <= 0).any()):
            raise ValueError(f"{where}: turn_starts must increase and lie within its {length} tokens")

    def _finish_shard(self) -> None:
        columns = [
            pa.array(self._ids, pa.string()),
            pa.array(self._sources, pa.int32()),
            _list_array(self._spans),
            _list_array(self._turns),
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SIDECAR) as file:
            file.write_batch(pa.record_batch(columns, schema=SIDECAR))
        sidecar = f"{self._name}.arrow"
        files = {sidecar: write_durably(self.folder / sidecar, sink.getvalue())}
        files |= self._writer.publish()
        entry = {
            "name": self._name,
            "documents": len(self._ids),
            "tokens": self._writer.tokens,
            "max_token": self._max_token,
            "files": dict(sorted(files.items())),
        }
        self._entries.append(entry)


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows), pa.int32()))


class Shard:
    """One open shard, all of it mapped: `index` (tokens), `sources` int32 [N], `ids`, and two ragged columns."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        prefix = folder / entry["name"]
        self.index = IndexedTokens(prefix)
        path = folder / f"{entry['name']}.arrow"
        try:
            batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(map_file(path)))).get_batch(0)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a shard sidecar ({error}); prepare the corpus again") from error
        if batch.schema != SIDECAR or not len(self.index) == len(batch) == entry["documents"]:
            raise ValueError(f"{path}: does not belong to {prefix}.idx; prepare the corpus again")
        self.ids = batch.column("id")
        self.sources = batch.column("source").to_numpy()
        # a ragged column is (offsets int32 [N+1], values int32); both are views of the file
        self.loss_spans = _ragged_views(batch.column("loss_spans"))
        self.turn_starts = _ragged_views(batch.column("turn_starts"))


def _ragged_views(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return column.offsets.to_numpy(), column.values.to_numpy()


class ShardSet:
    """The shards of one split as one sequence of documents 0..N-1, in manifest order.

    A quarantined shard keeps its document numbers, with length 0 and source -1, so every other number still points
    at the same conversation. `quarantined` maps its name to the reason; `fingerprint` (hex) names exactly the
    contents that are in use.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        sources: list[str],
        entries: list[dict[str, Any]],
        damaged: dict[str, str],
    ) -> None:
        self.folder, self.split, self.source_names = folder, split, list(sources)
        self.quarantined = damaged
        self.shards = [None if entry["name"] in damaged else Shard(folder, entry) for entry in entries]
        self.starts = np.cumsum([0] + [entry["documents"] for entry in entries])  # int64 [shards + 1]
        self.num_tokens = sum(entry["tokens"] for entry in entries if entry["name"] not in damaged)
        contents = [None if entry["name"] in damaged else entry["files"] for entry in entries]
        identity = json.dumps([split, self.source_names, self.starts.tolist(), contents], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        on_damaged: Literal["stop", "quarantine"] = "stop",
        *,
        manifest: dict[str, Any] | None = None,
        vocab_size: int | None = None,
    ) -> "ShardSet":
        """Open and verify every shard that `manifest` (by default `folder`/manifest.json) lists for `split`.

        Files are hashed the first time; `<split>.verified.json` remembers size and mtime, so the next start is
        instant. `folder` must be writable. Raises ValueError naming the file for a missing or damaged shard
        (on_damaged="stop"), and always when nothing usable remains, the split is unknown, or a shard holds a token
        that `vocab_size` does not.
        """
        folder = Path(folder)
        if on_damaged not in ("stop", "quarantine"):
            raise ValueError(f"on_damaged_shard: {on_damaged!r} is not one of 'stop', 'quarantine'")
        if manifest is None:
            manifest = _read_manifest(folder)
        if not manifest["shards"].get(split):
            raise ValueError(f"{folder}: no shards for split {split!r}; it has {sorted(manifest['shards'])}")
        entries = manifest["shards"][split]
        for entry in entries:
            if vocab_size is not None and entry["max_token"] >= vocab_size:
                raise ValueError(
                    f"{folder / entry['name']}.bin: holds token {entry['max_token']}, but the declared vocabulary "
                    f"has {vocab_size}; use the tokenizer that the shards were prepared with, or a larger model"
                )
        damaged = _verify(folder, split, entries)
        if damaged and on_damaged == "stop":
            raise ValueError(next(iter(damaged.values())))
        if len(damaged) == len(entries):
            raise ValueError(f"{folder}: every {split} shard is damaged; first: {next(iter(damaged.values()))}")
        for reason in damaged.values():
            logger.warning("quarantined %s", reason)
        return cls(folder, split, manifest["sources"], entries, damaged)

    def __len__(self) -> int:
        """Documents, those of quarantined shards included."""
        return int(self.starts[-1])

    def _usable(self) -> Iterator[tuple[Shard, int]]:
        """Each open shard with the number of its first document."""
        for shard, start in zip(self.shards, self.starts[:-1].tolist(), strict=True):
            if shard is not None:
                yield shard, start

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N] tokens of each document; 0 in a quarantined shard."""
        lengths = np.zeros(len(self), np.int32)
        for shard, start in self._usable():
            lengths[start : start + len(shard.index)] = shard.index.lengths
        return lengths

    @cached_property
    def sources(self) -> np.ndarray:
        """int32 [N] index into `source_names`; -1 in a quarantined shard."""
        sources = np.full(len(self), -1, np.int32)
        for shard, start in self._usable():
            sources[start : start + len(shard.index)] = shard.sources
        return sources

    def locate(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index into `shards`, row inside that shard), int64 each, of int64 document numbers."""
        shard = np.searchsorted(self.starts, documents, side="right") - 1
        return shard, documents - self.starts[shard]

    def _at(self, document: int) -> tuple[Shard, int]:
        shard, row = self.locate(np.int64(document))
        found = self.shards[shard]
        assert found is not None, f"document {document} is in a quarantined shard"
        return found, int(row)

    def id(self, document: int) -> str:
        """The id the document was prepared with."""
        shard, row = self._at(document)
        return shard.ids[row].as_py()

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint16 or int32 [stop - start] a read-only view of the document's tokens."""
        shard, row = self._at(document)
        return shard.index.tokens(row, start, stop)

    def loss_mask(self, document: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """bool [stop - start] whether each of those tokens carries loss as a target."""
        shard, row = self._at(document)
        offsets, values = shard.loss_spans
        edges = values[offsets[row] : offsets[row + 1]]
        stop = int(shard.index.lengths[row]) if stop is None else stop
        return np.searchsorted(edges, np.arange(start, stop), side="right") % 2 == 1

    def turn_starts(self, document: int) -> np.ndarray:
        """int32 [turns] offsets at which the document's turns start."""
        shard, row = self._at(document)
        offsets, values = shard.turn_starts
        return values[offsets[row] : offsets[row + 1]]

    def document(self, document: int) -> RenderedDocument:
        """All of it; arrays are read-only views."""
        shard, row = self._at(document)
        offsets, values = shard.loss_spans
        return RenderedDocument(
            id=self.id(document),
            source=self.source_names[shard.sources[row]],
            tokens=shard.index.tokens(row),
            loss_spans=values[offsets[row] : offsets[row + 1]].reshape(-1, 2),
            turn_starts=self.turn_starts(document),
        )

    def ragged(
        self, column: Literal["loss_spans", "turn_starts"], documents: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A ragged column of many documents at once, for planning.

        documents: int64 [k], ascending. Returns (values int32, end to end; counts int64 [k]).
        """
        values, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for shard, start in self._usable():
            first, last = np.searchsorted(documents, [start, start + len(shard.index)])
            offsets, flat = getattr(shard, column)
            rows = documents[first:last] - start
            count = (offsets[rows + 1] - offsets[rows]).astype(np.int64)
            values.append(flat[ragged_indices(offsets[rows], count)])
            counts.append(count)
        counts = np.concatenate(counts)
        assert len(counts) == len(documents), "a document of a quarantined shard was asked for"
        return np.concatenate(values), counts


def ragged_indices(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 [counts.sum()]: starts[0], starts[0]+1, ... (counts[0] of them), then starts[1], ..."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{path}: file is missing; prepare the corpus first")
    try:
        manifest = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); prepare the corpus again") from error
    for key in ("shards", "sources"):
        if key not in manifest:
            raise ValueError(f"{path}: key {key!r} is missing; prepare the corpus again")
    return manifest


def _verify(folder: Path, split: str, entries: list[dict[str, Any]]) -> dict[str, str]:
    """{name of a damaged shard: one line naming the file and the fix}, in manifest order."""
    stamps_path = folder / f"{split}.verified.json"
    with exclusive(folder / f"{split}.lock"), ThreadPoolExecutor() as pool:
        stamps = json.loads(stamps_path.read_text()) if stamps_path.exists() else {}
        verdicts = list(pool.map(partial(_check_shard, folder, stamps), entries))
        fresh = {name: stamp for _, passed in verdicts for name, stamp in passed.items()}
        if fresh != stamps:
            write_durably(stamps_path, json.dumps(fresh).encode())
    return {entry["name"]: reason for entry, (reason, _) in zip(entries, verdicts, strict=True) if reason}


def _check_shard(folder: Path, stamps: dict[str, list], entry: dict[str, Any]) -> tuple[str | None, dict[str, list]]:
    """(what is wrong with the shard or None, {file: [size, mtime_ns, sha256]} of the files that are as promised)."""
    reason, passed = None, {}
    for name, promised in entry["files"].items():
        path = folder / name
        fix = "restore it or prepare the corpus again"
        if not path.is_file():
            reason = reason or f"{path}: file is missing; {fix}"
            continue
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, promised["sha256"]]
        if status.st_size != promised["bytes"]:
            reason = reason or f"{path}: {status.st_size} bytes, expected {promised['bytes']}; {fix}"
        elif stamps.get(name) != stamp and sha256_of(path) != promised["sha256"]:
            reason = reason or f"{path}: checksum differs from the manifest, the file is damaged; {fix}"
        else:
            passed[name] = stamp
    return reason, passed
