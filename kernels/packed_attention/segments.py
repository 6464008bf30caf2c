"""Segments: which query rows attend to which key rows. Built once per batch, read by every layer.

Ordinary packing gives one span per document, queries and keys the same rows. A reply that shares its prompt has two:
its own rows, and the prompt's, which other replies see too. Under context parallelism a rank holds some chunks of the
row as queries and the whole row as keys, so each overlap of a chunk with a document has the spans of that document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import torch

from osim_kernels.packed_attention.tiles import Span, TilePlan, build_tile_plan


@dataclass(frozen=True, eq=False)
class Segments:
    """The mask of a batch as spans (query_start, query_stop, key_start, key_stop, delta).

    Query row t in [query_start, query_stop) sees key row r in [key_start, key_stop) iff r + delta <= t and, under a
    window, t - (r + delta) < window. Spans of one query range add up: the softmax runs over all their keys. Queries
    that see no key, and rows in no span, give 0.

    spans   on the host, so that no layer has to read borders back from the device; query ranges ascend and are
            either the same or disjoint, the spans of one query range have disjoint keys, and keys of different query
            ranges may overlap
    window  how many of the latest positions a query sees, its own included; None for all
    device  where plans made from the spans live

    Compared by identity: plans are cached on the object.
    """

    spans: tuple[Span, ...]
    window: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _plans: dict[tuple[int, ...], TilePlan] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        covered = (0, 0)
        for query_start, query_stop, key_start, key_stop, _ in self.spans:
            same = (query_start, query_stop) == covered
            assert (same or covered[1] <= query_start) and query_start <= query_stop, self.spans
            assert 0 <= key_start <= key_stop, self.spans
            covered = (query_start, query_stop)
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens: torch.Tensor, parents: torch.Tensor | None = None, window: int | None = None
    ) -> "Segments":
        """The segments of a packed row, each causal and blind to the others but for its ancestors.

        cu_seqlens  int [n + 1], never decreasing; repeated borders at the end are segments of length zero
        parents     int [n] or None: the earlier segment whose whole content, and whose ancestors', precede this one's
                    in its sequence (a tree of shared prefixes); -1 for none. A window counts distances in it

        Reads both on the host: pass the CPU batch's and move the result with `.to`, since a tensor on the GPU costs a
        synchronisation here. Raises ValueError for a parent that is not an earlier segment.
        """
        length = int(cu_seqlens[-1])
        return cls.context_parallel(cu_seqlens, [(0, length)], parents, window)

    @classmethod
    def context_parallel(
        cls,
        cu_seqlens: torch.Tensor,
        chunks: Sequence[tuple[int, int]],
        parents: torch.Tensor | None = None,
        window: int | None = None,
    ) -> "Segments":
        """Segments of one context-parallel rank; the rest as `from_cu_seqlens`.

        chunks holds the row positions [start, stop) of this rank's queries, in their local order (zigzag gives two);
        local queries are those chunks back to back, keys are the whole row in row order (gathered by the caller).
        """
        borders = cu_seqlens.tolist()
        lineage = _lineage(borders, parents)
        spans, offset = [], 0
        for chunk_start, chunk_stop in chunks:
            for (start, stop), ancestors in zip(pairwise(borders), lineage, strict=True):
                first, last = max(start, chunk_start), min(stop, chunk_stop)
                if first < last:
                    local = offset + first - chunk_start
                    queries = (local, local + last - first)
                    spans += [(*queries, *keys, distance + local - first) for *keys, distance in ancestors]
                    spans.append((*queries, start, last, local - first))
            offset += chunk_stop - chunk_start
        return cls(tuple(spans), window, cu_seqlens.device)

    def to(self, device: torch.device | str) -> "Segments":
        """The same segments for tensors on another device."""
        return Segments(self.spans, self.window, torch.device(device))

    def by_queries(self) -> list[tuple[int, int, list[Span]]]:
        """(query_start, query_stop, its spans) of each query range, ascending; ranges without rows are left out."""
        ranges = groupby(self.spans, key=lambda span: span[:2])
        return [(start, stop, list(spans)) for (start, stop), spans in ranges if start < stop]

    @property
    def one_run_each(self) -> bool:
        """Whether every query range has a single run of keys, aligned with it at the end: the masks that
        variable-length attention kernels know."""
        aligned = all(delta == query_stop - key_stop for _, query_stop, _, key_stop, delta in self.spans)
        return aligned and all(len(spans) == 1 for _, _, spans in self.by_queries())

    def tile_plan(self, num_queries: int, num_keys: int, block_q: int, block_k: int) -> TilePlan:
        """The tile plan of these sizes on `device`; made once and shared by all layers."""
        key = (num_queries, num_keys, block_q, block_k)
        if key not in self._plans:
            self._plans[key] = build_tile_plan(self.spans, *key, window=self.window).to(self.device)
        return self._plans[key]


def _lineage(borders: list[int], parents: torch.Tensor | None) -> list[list[tuple[int, int, int]]]:
    """Of each segment, its ancestors from the root down: (start, stop, delta of a query in row order)."""
    lineage: list[list[tuple[int, int, int]]] = []
    for segment, parent in enumerate([-1] * (len(borders) - 1) if parents is None else parents.tolist()):
        if not -1 <= parent < segment:
            raise ValueError(f"segment {segment}: parent {parent} is not an earlier segment")
        family = []
        if parent >= 0:
            family = [(start, stop) for start, stop, _ in lineage[parent]]
            family.append((borders[parent], borders[parent + 1]))
        # the row where position 0 of the segment's sequence would lie, were it contiguous
        origin = borders[segment] - sum(stop - start for start, stop in family)
        offset, ancestors = 0, []
        for start, stop in family:
            ancestors.append((start, stop, origin - (start - offset)))
            offset += stop - start
        lineage.append(ancestors)
    return lineage
