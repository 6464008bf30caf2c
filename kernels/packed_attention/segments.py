"""Segments: which query rows attend to which key rows. Built once per batch, read by every layer.

Ordinary packing gives one segment per document, queries and keys the same span. Under context parallelism a rank
holds some chunks of the row as queries and the whole row as keys: each overlap of a chunk with a document is one
segment whose keys run from the document's start to the overlap's stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

Span = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Segments:
    """n segments: queries [query_start, query_stop) attend to keys [key_start, key_stop), causal, aligned at the end.

    Query i of a segment sees keys up to key_start + (key length - query length) + i inclusive, the bottom-right
    alignment: the last query sees the last key. Queries with no visible key, and rows in no segment, give 0.

    spans          the same borders on the host, (query_start, query_stop, key_start, key_stop) each, so that no
                   layer has to read them back from the device
    query_starts, query_stops, key_starts, key_stops
                   int32 [n], on the device of the batch
    max_q, max_k   longest query and key span

    Query spans ascend and do not overlap; key spans may overlap. Compared by identity, so that plans made from one
    batch's segments can be cached on the object.
    """

    spans: tuple[Span, ...]
    query_starts: torch.Tensor
    query_stops: torch.Tensor
    key_starts: torch.Tensor
    key_stops: torch.Tensor
    max_q: int
    max_k: int

    @classmethod
    def from_spans(cls, spans: Sequence[Span], device: torch.device | str = "cpu") -> "Segments":
        """Segments from host borders. Asserts that query spans ascend without overlap."""
        covered = 0
        for query_start, query_stop, key_start, key_stop in spans:
            assert covered <= query_start <= query_stop and 0 <= key_start <= key_stop, spans
            covered = query_stop
        borders = torch.tensor(spans, dtype=torch.int32).reshape(-1, 4).to(device, non_blocking=True)
        return cls(
            tuple(spans),
            *(column.contiguous() for column in borders.unbind(1)),
            max_q=max((span[1] - span[0] for span in spans), default=0),
            max_k=max((span[3] - span[2] for span in spans), default=0),
        )

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: torch.Tensor) -> "Segments":
        """One segment per document of a packed row; cu_seqlens is int [n + 1], never decreasing.

        Reads cu_seqlens on the host: pass the CPU batch's and move the result with `.to`, since a tensor on the GPU
        costs one synchronisation here.
        """
        borders = cu_seqlens.tolist()
        spans = [(start, stop, start, stop) for start, stop in pairwise(borders)]
        return cls.from_spans(spans, cu_seqlens.device)

    @classmethod
    def context_parallel(cls, cu_seqlens: torch.Tensor, chunks: Sequence[tuple[int, int]]) -> "Segments":
        """Segments of one context-parallel rank.

        chunks holds the row positions [start, stop) of this rank's queries, in their local order (zigzag gives two);
        local queries are those chunks back to back, keys are the whole row in row order (gathered by the caller).
        Reads cu_seqlens (int [n + 1]) on the host, as `from_cu_seqlens` does.
        """
        borders = cu_seqlens.tolist()
        spans, offset = [], 0
        for chunk_start, chunk_stop in chunks:
            for start, stop in pairwise(borders):
                first, last = max(start, chunk_start), min(stop, chunk_stop)
                if first < last:
                    local = offset + first - chunk_start
                    spans.append((local, local + last - first, start, last))
            offset += chunk_stop - chunk_start
        return cls.from_spans(spans, cu_seqlens.device)

    def to(self, device: torch.device | str) -> "Segments":
        """The same segments with their tensors on another device."""
        return Segments.from_spans(self.spans, device)
