"""Packed prompt trees: shared parts once, queries at the ends of the paths, calls never divided."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core.judge.tree import Tree, pack_trees


def unfold(batch, row: int) -> tuple[list[int], list[int]]:
    """(tokens, positions) that the query row sees: its segment up to it, and all ancestors."""
    borders, parents = batch.cu_seqlens.tolist(), batch.parents_S.tolist()
    segment = next(s for s, (a, b) in enumerate(itertools.pairwise(borders)) if a <= row < b)
    pieces = [(borders[segment], row + 1)]
    while (segment := parents[segment]) >= 0:
        pieces.insert(0, (borders[segment], borders[segment + 1]))
    rows = [r for start, stop in pieces for r in range(start, stop)]
    return batch.tokens_T[rows].tolist(), batch.positions_T[rows].tolist()


def test_a_tree_by_hand():
    tree = Tree()
    ends = [tree.add(path) for path in [((1, 2), (3,), (4, 5)), ((1, 2), (3,), (6,)), ((1, 2), (7,), (4, 5))]]
    assert tree.tokens == [1, 2, 3, 4, 5, 6, 7, 4, 5] and ends == [4, 5, 8]
    assert tree.parents == [-1, 0, 1, 1, 0, 4] and tree.positions == [0, 1, 2, 3, 4, 3, 2, 3, 4]
    assert tree.add(((1, 2), (3,), (6,))) == 5 and len(tree.tokens) == 9
    assert tree.cost([((1, 2), (3,), (8,)), ((1, 2), (3,), (8,)), ((), (1, 2), (9, 9), ())]) == 3


paths = st.lists(
    st.lists(
        st.tuples(*[st.lists(st.integers(1, 3), max_size=3).map(tuple)] * 3, st.just((9,))), min_size=2, max_size=2
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(paths, st.sampled_from([20, 25, 40, 1000]), st.sampled_from([1, 8]))
def test_every_query_sees_its_own_path_and_nothing_else(calls, most, multiple):
    rows = pack_trees(calls, most, multiple)
    assert sorted(member for row in rows for member in row.members) == list(range(len(calls)))
    for row in rows:
        assert row.tokens <= most and row.batch.num_tokens % multiple == 0
        for member, queries in zip(row.members, row.rows_IS.tolist(), strict=True):
            for path, query in zip(calls[member], queries, strict=True):
                flat = [token for part in path for token in part]
                assert unfold(row.batch, query) == (flat, list(range(len(flat))))


def test_eight_replies_on_a_long_prefix_are_a_third_of_the_tokens():
    """8 replies of 300 tokens, 3 questions of 60, to 1,200 shared tokens."""
    fresh = itertools.count(10)
    rubric, context = (tuple(itertools.islice(fresh, n)) for n in (200, 1000))
    questions = [tuple(itertools.islice(fresh, 60)) for _ in range(3)]
    calls = []
    for _ in range(8):
        reply = tuple(itertools.islice(fresh, 300))
        calls.append([(rubric, context, reply, question) for question in questions])
    (row,) = pack_trees(calls, 8192)
    unshared = sum(len(part) for call in calls for path in call for part in path)
    assert (row.tokens, unshared) == (5040, 37_440)
    (row,) = pack_trees([call[:1] for call in calls], 8192)  # one question: what sharing the context alone saves
    assert row.tokens == 1200 + 8 * 360 and 8 * 1560 / row.tokens > 3


def test_calls_of_one_context_meet_in_a_row():
    contexts = [tuple(range(c * 100, c * 100 + 50)) for c in range(4)]
    calls = [[((1,), context, (reply,), (2,))] for reply in range(3) for context in contexts]
    random.Random(0).shuffle(calls)
    rows = pack_trees(calls, 60)
    assert len(rows) == 4 and all(row.tokens == 1 + 50 + 3 * 2 for row in rows)


def test_a_call_that_cannot_fit_is_an_error():
    with pytest.raises(ValueError, match="7 tokens does not fit a row of 6"):
        pack_trees([[((1, 2, 3), (4, 5, 6, 7))]], 6)
