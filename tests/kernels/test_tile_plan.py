"""Tile plans: tiles, pieces and masks together are exactly the visible pairs, no less work and no more is listed.

Shape suffixes: T query rows, S key rows.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import draw_lengths
from osim_core.corpus.pack import pack_documents
from osim_kernels.packed_attention.tiles import TileCapacity, build_tile_plan, causal_tile_minimum


def dense(spans, num_queries, num_keys, window):
    """bool [T, S] straight from the definition of a span."""
    visible_TS = np.zeros((num_queries, num_keys), dtype=bool)
    for query_start, query_stop, key_start, key_stop, delta in spans:
        distance = np.arange(query_start, query_stop)[:, None] - np.arange(key_start, key_stop)[None] - delta
        seen = (distance >= 0) & (distance < (num_queries + num_keys if window is None else window))
        visible_TS[query_start:query_stop, key_start:key_stop] |= seen
    return visible_TS


def count_from_query_side(plan):
    """int [T, S]: how often a kernel that walks query tiles meets each visible pair. 1 or 0 if the plan is right."""
    met_TS = np.zeros((plan.num_queries, plan.num_keys), dtype=int)
    limit = plan.num_queries + plan.num_keys if plan.window is None else plan.window
    for row_start, row_stop, begin, end in plan.query_tiles.tolist():
        for key_start, key_stop, delta in plan.pieces[begin:end].tolist():
            distance = np.arange(row_start, row_stop)[:, None] - np.arange(key_start, key_stop)[None] - delta
            met_TS[row_start:row_stop, key_start:key_stop] += (distance >= 0) & (distance < limit)
    return met_TS


def count_from_key_side(plan):
    """The same for a kernel that walks key tiles."""
    met_TS = np.zeros((plan.num_queries, plan.num_keys), dtype=int)
    limit = plan.num_queries + plan.num_keys if plan.window is None else plan.window
    for row_start, row_stop, begin, end in plan.key_tiles.tolist():
        for query_start, query_stop, delta in plan.visits[begin:end].tolist():
            distance = np.arange(query_start, query_stop)[:, None] - np.arange(row_start, row_stop)[None] - delta
            met_TS[query_start:query_stop, row_start:row_stop] += (distance >= 0) & (distance < limit)
    return met_TS


def assert_right(plan, spans):
    visible_TS = dense(spans, plan.num_queries, plan.num_keys, plan.window)
    np.testing.assert_array_equal(count_from_query_side(plan), visible_TS)
    np.testing.assert_array_equal(count_from_key_side(plan), visible_TS)
    sides = (
        (plan.query_tiles, plan.pieces, plan.num_queries, plan.block_q, plan.block_k, visible_TS),
        (plan.key_tiles, plan.visits, plan.num_keys, plan.block_k, plan.block_q, visible_TS.T),
    )
    for tiles, entries, rows, block, other_block, visible in sides:
        assert tiles.dtype == entries.dtype == torch.int32
        tiles, entries = tiles.tolist(), entries.tolist()
        real = [tile for tile in tiles if tile[0] < tile[1]]
        assert all(tile == [0, 0, 0, 0] for tile in tiles[len(real) :])
        # every row in one tile, no tile past its block
        in_row_order = sorted(real)
        assert [start for start, *_ in in_row_order] == [0, *(stop for _, stop, *_ in in_row_order)][: len(real)]
        assert (in_row_order[-1][1] if real else 0) == rows
        assert all(stop - start <= block for start, stop, *_ in real)
        # entries follow the rows, each belongs to one tile, ascends, and leaves no margin at its two ends
        assert [begin for *_, begin, _ in in_row_order] == [0, *(end for *_, end in in_row_order)][: len(real)]
        for start, stop, begin, end in real:
            assert all(a[1] <= b[0] for a, b in pairwise(entries[begin:end]))
            for first, last, _ in entries[begin:end]:
                assert visible[start:stop, first].any() and visible[start:stop, last - 1].any()
        assert entries[in_row_order[-1][3] if real else 0 :] == [[0, 0, 0]] * (
            len(entries) - (in_row_order[-1][3] if real else 0)
        )
        # longest first, ties by row
        work = [sum(-((a - b) // other_block) for a, b, _ in entries[begin:end]) for *_, begin, end in real]
        assert [(-w, tile[0]) for w, tile in zip(work, real, strict=True)] == sorted(
            (-w, tile[0]) for w, tile in zip(work, real, strict=True)
        )


lengths_of_documents = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 40)), max_size=9)
blocks = st.sampled_from([(16, 16), (16, 8), (8, 16), (32, 8), (7, 5), (1, 3), (128, 64)])
windows = st.one_of(st.none(), st.integers(1, 30))


def packed(lengths, parents=None):
    """Spans of a packed row whose segments continue their parents (a shared prefix, or a tree of them)."""
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
    parents = [-1] * len(lengths) if parents is None else parents
    origins, spans = [], []  # row that position 0 of the segment's sequence would have
    for segment, parent in enumerate(parents):
        origins.append(borders[segment] if parent < 0 else borders[segment] - borders[parent + 1] + origins[parent])
        ancestor = segment
        while ancestor >= 0:
            keys = borders[ancestor], borders[ancestor + 1]
            spans.append((borders[segment], borders[segment + 1], *keys, origins[segment] - origins[ancestor]))
            ancestor = parents[ancestor]
    return spans, borders[-1]


@settings(max_examples=150, deadline=None)
@given(lengths_of_documents, blocks, windows, st.integers(0, 20))
def test_packed_documents(lengths, block, window, tail):
    spans, rows = packed(lengths)
    assert_right(build_tile_plan(spans, rows + tail, rows + tail, *block, window), spans)


@settings(max_examples=150, deadline=None)
@given(st.data(), lengths_of_documents, blocks, windows)
def test_shared_prefixes_and_trees_of_them(data, lengths, block, window):
    parents = [data.draw(st.integers(-1, segment - 1)) for segment in range(len(lengths))]
    spans, rows = packed(lengths, parents)
    assert_right(build_tile_plan(spans, rows, rows, *block, window), spans)


@settings(max_examples=150, deadline=None)
@given(lengths_of_documents, blocks, windows, st.sampled_from([2, 4]), st.data())
def test_context_parallel_ranks_see_the_whole_row_as_keys(lengths, block, window, ranks, data):
    """Zigzag: a rank's queries are chunks `rank` and `2 ranks - 1 - rank` of the row, so key spans overlap."""
    _, rows = packed(lengths)
    cuts = [rows * i // (2 * ranks) for i in range(2 * ranks + 1)]
    rank = data.draw(st.integers(0, ranks - 1))
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
    spans, local = [], 0
    for chunk in (rank, 2 * ranks - 1 - rank):
        for start, stop in pairwise(borders):
            first, last = max(start, cuts[chunk]), min(stop, cuts[chunk + 1])
            if first < last:
                query_start = local + first - cuts[chunk]
                spans.append((query_start, query_start + last - first, start, last, query_start - first))
        local += cuts[chunk + 1] - cuts[chunk]
    assert_right(build_tile_plan(spans, local, rows, *block, window), spans)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 25)] * 4, st.integers(-30, 30)), max_size=6), blocks, windows)
def test_any_spans_and_any_distance(parts, block, window):
    spans, covered = [], 0
    for skipped, queries, key_start, keys, delta in parts:
        spans.append((covered + skipped, covered + skipped + queries, key_start, key_start + keys, delta))
        covered += skipped + queries
    plan = build_tile_plan(spans, covered + 3, 51, *block, window)
    assert_right(plan, spans)
    again = build_tile_plan(spans[::-1], covered + 3, 51, *block, window)
    assert all(torch.equal(getattr(plan, name), getattr(again, name)) for name in TileCapacity._fields)


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, blocks, windows, st.integers(0, 20), st.data())
def test_the_capacity_of_a_row_holds_every_batch_and_changes_only_the_padding(lengths, block, window, tail, data):
    parents = [data.draw(st.integers(-1, segment - 1)) for segment in range(len(lengths))]
    spans, rows = packed(lengths, parents)
    depth = descendants = 0
    family = Counter()
    for segment in range(len(lengths)):
        ancestors, ancestor = 0, parents[segment]
        while ancestor >= 0:
            ancestors, family[ancestor], ancestor = ancestors + 1, family[ancestor] + 1, parents[ancestor]
        depth, descendants = max(depth, ancestors), max([descendants, *family.values()])
    capacity = TileCapacity.of_segments(rows + tail, len(lengths), *block, max_depth=depth, max_descendants=descendants)
    shape = rows + tail, rows + tail, *block, window
    padded, exact = build_tile_plan(spans, *shape, capacity), build_tile_plan(spans, *shape)
    assert_right(padded, spans)
    for name, room in capacity._asdict().items():
        table = getattr(padded, name)
        assert len(table) == room
        assert torch.equal(table[: len(getattr(exact, name))], getattr(exact, name))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=9), st.sampled_from([(128, 128), (128, 64), (64, 128), (64, 32)]))
def test_forward_never_computes_more_than_a_grid_aligned_to_each_document(lengths, block):
    spans, rows = packed(lengths)
    plan = build_tile_plan(spans, rows, rows, *block)
    assert plan.forward_tiles <= causal_tile_minimum(lengths, *block)
    assert sum(length * (length + 1) // 2 for length in lengths) <= plan.forward_tiles * block[0] * block[1]


def test_a_short_tile_goes_first_where_that_saves_blocks_and_last_where_it_does_not():
    """300 rows in blocks of 128 x 64: 44 + 128 + 128 rows end at 44, 172 and 300 and so meet 1 + 3 + 5 blocks of
    keys; 128 + 128 + 44 would meet 2 + 4 + 5. With 100 rows over instead of 44 nothing would be won."""
    short = build_tile_plan(packed([300])[0], 300, 300, 128, 64)
    assert short.query_tiles.tolist() == [[172, 300, 2, 3], [44, 172, 1, 2], [0, 44, 0, 1]]
    assert short.pieces.tolist() == [[0, 44, 0], [0, 172, 0], [0, 300, 0]]
    assert (short.forward_tiles, causal_tile_minimum([300], 128, 64)) == (9, 11)
    long = build_tile_plan(packed([356])[0], 356, 356, 128, 64)
    assert long.query_tiles.tolist() == [[256, 356, 2, 3], [128, 256, 1, 2], [0, 128, 0, 1]]
    assert long.forward_tiles == causal_tile_minimum([356], 128, 64) == 12


@pytest.mark.parametrize("block", [(128, 128), (128, 64), (64, 64)])
@pytest.mark.parametrize("lengths", ["conversations", "uniform"])
def test_at_most_8_per_cent_over_the_causal_minimum_plus_a_diagonal_tile_a_document(lengths, block):
    rng = np.random.default_rng(7)
    drawn = draw_lengths(4_000, 16_384) if lengths == "conversations" else rng.integers(1, 2_049, 2_000)
    rows = pack_documents(drawn, 16_384)
    computed = allowed = 0
    for row in range(len(rows)):
        documents = drawn[rows[row]]
        spans, used = packed(documents)
        computed += build_tile_plan(spans, 16_384, 16_384, *block).forward_tiles
        allowed += causal_tile_minimum(documents, *block) + len(documents)
        assert used <= 16_384
    assert computed <= 1.08 * allowed


def test_shared_prompt_worked_by_hand():
    """A prompt of 5 rows and replies of 2 and 3, blocks of 4: the replies' distances are those of the unshared
    sequences, so the second reply's first row (7) stands 1 behind the prompt's last (4), and delta is 7 - 5."""
    spans, rows = packed([5, 2, 3], [-1, 0, 0])
    assert spans[1:] == [(5, 7, 5, 7, 0), (5, 7, 0, 5, 0), (7, 10, 7, 10, 0), (7, 10, 0, 5, 2)]
    plan = build_tile_plan(spans, rows, rows, 4, 4)
    assert plan.query_tiles.tolist() == [[5, 7, 2, 4], [7, 10, 4, 6], [4, 5, 1, 2], [0, 4, 0, 1]]
    assert plan.pieces.tolist() == [[0, 4, 0], [0, 5, 0], [0, 5, 0], [5, 7, 0], [0, 5, 2], [7, 10, 0]]
    assert plan.key_tiles.tolist() == [[0, 4, 0, 3], [4, 5, 3, 6], [5, 7, 6, 7], [7, 10, 7, 8]]
    assert plan.visits.tolist()[:3] == [[0, 5, 0], [5, 7, 0], [7, 10, 2]]


def test_the_comparison_notices_a_missing_piece_and_a_wrong_distance():
    spans, rows = packed([9, 30, 4], [-1, 0, 0])
    for spoil in ("piece", "delta"):
        plan = build_tile_plan(spans, rows, rows, 16, 8)
        if spoil == "piece":
            plan.pieces[2, 1] = plan.pieces[2, 0]
        else:
            plan.visits[0, 2] += 1  # a diagonal tile: one pair less for each key
        with pytest.raises(AssertionError):
            assert_right(plan, spans)


@pytest.mark.parametrize(
    ("spans", "arguments", "message"),
    [
        ([(0, 5, 0, 5, 0)], (4, 8, 16, 16), r"span 0 \(0, 5, 0, 5, 0\) leaves 4 query rows x 8 key rows"),
        ([(0, 5, 0, 9, 0)], (8, 8, 16, 16), "span 0 .* leaves"),
        ([(3, 2, 0, 5, 0)], (8, 8, 16, 16), "span 0 .* leaves"),
        ([(0, 5, 0, 5, 0), (4, 8, 5, 8, 0)], (8, 8, 16, 16), "overlap"),
        ([(0, 5, 0, 5, 0), (0, 5, 4, 8, 0)], (8, 8, 16, 16), "overlap"),
        ([], (8, 8, 0, 16), "block_q must be at least 1, got 0"),
        ([], (8, 8, 16, 16, 0), "window must be at least 1, got 0"),
        ([], (8, 8, 4, 4, None, TileCapacity(1, 0, 2, 0)), "needs 2 query tiles, and the capacity is 1"),
    ],
)
def test_bad_input_names_itself(spans, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_tile_plan(spans, *arguments)
