"""Tile plans: which block of query rows meets which block of keys. Built once per batch, read by every layer.

The NumPy here is the truth and takes any spans; `metadata.py` makes the same tables from cu_seqlens in one launch.

    plan = build_tile_plan(spans, num_queries, num_keys, block_q=128, block_k=64)
    plan.to("cuda")

A span (query_start, query_stop, key_start, key_stop, delta) says: query row t in [query_start, query_stop) sees key
row r in [key_start, key_stop) iff r + delta <= t and, under a window of W rows, t - (r + delta) < W.

Shape suffixes: N spans, Q query tiles, P pieces, K key tiles, V visits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

Span = tuple[int, int, int, int, int]


class TileCapacity(NamedTuple):
    """Rows of the four tables, so that shapes stay the same from batch to batch."""

    query_tiles: int
    pieces: int
    key_tiles: int
    visits: int

    @classmethod
    def of_segments(
        cls, num_rows: int, segments: int, block_q: int, block_k: int, *, max_depth: int = 0, max_descendants: int = 0
    ) -> "TileCapacity":
        """Enough for any cu_seqlens [segments + 1] over a row of `num_rows` tokens.

        max_depth        most ancestors a segment has (0 where nothing is shared, 1 for prompts with replies)
        max_descendants  most segments that share one prefix
        """
        # a segment's last tile may be partial, and so may the tail behind the last border
        query_tiles, key_tiles = (min(num_rows // block + segments + 1, num_rows) for block in (block_q, block_k))
        return cls(query_tiles, query_tiles * (1 + max_depth), key_tiles, key_tiles * (1 + max_descendants))


@dataclass(frozen=True, eq=False)
class TilePlan:
    """The four tables, int32 on one device.

    query_tiles  [Q, 4] (row_start, row_stop, piece_begin, piece_end), at most block_q rows of one query range
    pieces       [P, 3] (key_start, key_stop, delta): keys that the tile visits through one span, ascending, already
                 cut to what causality and the window leave the tile
    key_tiles    [K, 4] (row_start, row_stop, visit_begin, visit_end), at most block_k keys that the same spans cover
    visits       [V, 3] (query_start, query_stop, delta): query rows that see at least one of the tile's keys through
                 one span, ascending

    Tiles stand in descending order of work (blocks of the other side that they meet, ties by row), so that long
    ones start first and no SM is left with a giant at the end. Pieces and visits stand in row order of their tiles.
    Rows that no span covers get tiles without pieces or visits. Spare rows of the tables are zero: row_start =
    row_stop. `window` is None for unlimited.
    """

    query_tiles: torch.Tensor
    pieces: torch.Tensor
    key_tiles: torch.Tensor
    visits: torch.Tensor
    block_q: int
    block_k: int
    num_queries: int
    num_keys: int
    window: int | None = None

    def to(self, device: torch.device | str) -> "TilePlan":
        """The same plan with its tables on another device."""
        names = ("query_tiles", "pieces", "key_tiles", "visits")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    @property
    def forward_tiles(self) -> int:
        """block_q x block_k score tiles that forward computes per head. Waits for the device."""
        return int(_blocks(self.pieces, self.block_k).sum())

    @property
    def backward_tiles(self) -> int:
        """block_q x block_k score tiles that the key side of backward computes per head. Waits for the device."""
        return int(_blocks(self.visits, self.block_q).sum())


def build_tile_plan(
    spans: Sequence[Span],
    num_queries: int,
    num_keys: int,
    block_q: int,
    block_k: int,
    window: int | None = None,
    capacity: TileCapacity | None = None,
) -> TilePlan:
    """The tile plan of one batch, on the CPU.

    spans     in any order; two query ranges are either the same or disjoint, and the spans of one query range have
              disjoint keys. Spans without queries or without keys say nothing.
    window    how many of the latest keys a query sees, itself included; None for all
    capacity  rows of the tables, the spare ones zero; None for just enough

    Tiles start at the start of their query range and blocks of keys at the start of their piece. The range's short
    tile stands last, except where standing first spares each later tile a block of keys (`_tile_rows`).

    Raises ValueError for spans that leave the rows or overlap, for sizes below 1, and for a capacity too small.
    """
    for name, value in (("block_q", block_q), ("block_k", block_k), ("window", 1 if window is None else window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    spans_N5 = _checked_spans(spans, num_queries, num_keys)
    sides = _query_side(spans_N5, num_queries, block_q, block_k, window)
    sides += _key_side(spans_N5, num_keys, block_q, block_k, window)
    if capacity is not None:
        sides = tuple(_padded(table, *room) for table, room in zip(sides, capacity._asdict().items(), strict=True))
    tables = (torch.from_numpy(table.astype(np.int32)) for table in sides)
    return TilePlan(*tables, block_q, block_k, num_queries, num_keys, window)


def causal_tile_minimum(lengths: Sequence[int], block_q: int, block_k: int) -> int:
    """Tiles of a grid aligned to each document that touch its causal triangle: what a kernel on one unpacked
    document at a time computes per head. The Show of the benchmark allows this plus one tile a document."""
    total = 0
    for length in lengths:
        stops = np.minimum(np.arange(block_q, length + block_q, block_q), length)
        total += int((-(-stops // block_k)).sum())
    return total


def _checked_spans(spans, num_queries: int, num_keys: int) -> np.ndarray:
    """int64 [N, 5], sorted, without the spans that say nothing."""
    spans_N5 = np.asarray(spans, dtype=np.int64).reshape(-1, 5)
    query_start, query_stop, key_start, key_stop, _ = spans_N5.T
    inside = (query_start >= 0) & (query_start <= query_stop) & (query_stop <= num_queries)
    inside &= (key_start >= 0) & (key_start <= key_stop) & (key_stop <= num_keys)
    if not inside.all():
        first = int(np.argmin(inside))
        raise ValueError(f"span {first} {spans[first]} leaves {num_queries} query rows x {num_keys} key rows")
    spans_N5 = spans_N5[(query_start < query_stop) & (key_start < key_stop)]
    spans_N5 = spans_N5[np.lexsort(spans_N5[:, 2::-1].T)]  # by query range, then by keys
    before, after = spans_N5[:-1], spans_N5[1:]
    same_range = (before[:, :2] == after[:, :2]).all(axis=1)
    ordered = np.where(same_range, before[:, 3] <= after[:, 2], before[:, 1] <= after[:, 0])
    if not ordered.all():
        first = int(np.argmin(ordered))
        pair = f"{tuple(before[first].tolist())} and {tuple(after[first].tolist())}"
        raise ValueError(f"spans {pair} overlap: in their queries, or in their keys for the same queries")
    return spans_N5


def _query_side(spans_N5, num_queries, block_q, block_k, window):
    # ranges of equal queries, and between them the rows that no span covers
    first_span = np.flatnonzero(np.diff(spans_N5[:, 0], prepend=-1))
    spans_of_range = np.diff(first_span, append=len(spans_N5))
    covered = spans_N5[first_span, :2]
    borders = np.unique(np.concatenate([[0, num_queries], covered.ravel()]))
    starts, stops = borders[:-1], borders[1:]
    first, count = np.zeros_like(starts), np.zeros_like(starts)
    at = np.searchsorted(starts, covered[:, 0])
    first[at], count[at] = first_span, spans_of_range

    row_start, row_stop, range_of_tile = _tile_rows(starts, stops, block_q, shorten_first=block_q - block_k)
    tile, nth = _expand(count[range_of_tile])
    _, _, key_start, key_stop, delta = spans_N5[first[range_of_tile[tile]] + nth].T
    key_stop = np.minimum(key_stop, row_stop[tile] - delta)
    if window is not None:
        key_start = np.maximum(key_start, row_start[tile] - delta - window + 1)
    return _tables(row_start, row_stop, tile, np.stack([key_start, key_stop, delta], axis=1), block_k)


def _key_side(spans_N5, num_keys, block_q, block_k, window):
    # every border of a key span cuts, so that a span covers all of a tile or nothing of it
    borders = np.unique(np.concatenate([[0, num_keys], spans_N5[:, 2:4].ravel()]))
    row_start, row_stop, _ = _tile_rows(borders[:-1], borders[1:], block_k)
    first_tile = np.searchsorted(row_start, spans_N5[:, 2])
    span, nth = _expand(np.searchsorted(row_start, spans_N5[:, 3]) - first_tile)
    tile = first_tile[span] + nth
    order = np.argsort(tile, kind="stable")  # spans ascend in queries, so the visits of a tile do
    span, tile = span[order], tile[order]
    query_start, query_stop, _, _, delta = spans_N5[span].T
    query_start = np.maximum(query_start, row_start[tile] + delta)
    if window is not None:
        query_stop = np.minimum(query_stop, row_stop[tile] - 1 + delta + window)
    return _tables(row_start, row_stop, tile, np.stack([query_start, query_stop, delta], axis=1), block_q)


def _tile_rows(starts, stops, block: int, shorten_first: int = 0):
    """(row_start, row_stop, range) of the tiles that cut each range into blocks.

    A range that no block divides has one short tile. Last is the plain choice: its tiles then end on borders of key
    blocks, so fewer blocks need a mask. A tile of r rows put first moves every later tile's last row back by
    block - r, which saves each a block of keys if r <= block_q - block_k (`shorten_first`), and never costs one.
    """
    lengths = stops - starts
    tiles = -(-lengths // block)
    which, nth = _expand(tiles)
    remainder = lengths % block
    short_first = (remainder > 0) & (remainder <= shorten_first)
    shift = np.where(short_first, block - remainder, 0)[which]
    row_start = np.maximum(starts[which], starts[which] + nth * block - shift)
    row_stop = np.minimum(stops[which], starts[which] + (nth + 1) * block - shift)
    return row_start, row_stop, which


def _tables(row_start, row_stop, tile_of_entry, entries_E3, block: int):
    """Tiles by descending work and their entries (pieces or visits) without the empty ones."""
    kept = entries_E3[:, 0] < entries_E3[:, 1]
    entries_E3, tile_of_entry = entries_E3[kept], tile_of_entry[kept]
    ends = np.cumsum(np.bincount(tile_of_entry, minlength=row_start.size))
    begins = np.concatenate([[0], ends[:-1]])[: row_start.size]
    work = np.bincount(tile_of_entry, weights=_blocks(entries_E3, block), minlength=row_start.size)
    order = np.argsort(-work, kind="stable")
    return np.stack([row_start, row_stop, begins, ends], axis=1)[order], entries_E3


def _expand(counts):
    """(index, nth) of `counts[index]` items each: _expand([2, 0, 1]) is ([0, 0, 2], [0, 1, 0])."""
    index = np.repeat(np.arange(counts.size), counts)
    return index, np.arange(index.size) - np.repeat(np.cumsum(counts) - counts, counts)


def _blocks(entries_E3, block: int):
    """Blocks of keys (or queries) in each piece (or visit)."""
    return (entries_E3[:, 1] - entries_E3[:, 0] + block - 1) // block


def _padded(table, name: str, room: int):
    if len(table) > room:
        raise ValueError(f"the batch needs {len(table)} {name.replace('_', ' ')}, and the capacity is {room}")
    return np.concatenate([table, np.zeros((room - len(table), table.shape[1]), dtype=table.dtype)])
