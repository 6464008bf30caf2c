"""The packer against a plain Python best-fit decreasing: each document once, no row too full, none opened in vain."""

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core import _native
from osim_core.corpus.pack import pack_documents


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """Room left in every row, sorted, by the textbook algorithm: one document at a time, a sorted list of rooms."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        tightest = bisect.bisect_left(rooms, length)
        room = rooms.pop(tightest) if tightest < len(rooms) else capacity
        bisect.insort(rooms, room - length)
    return rooms


def room_of_rows(packed, lengths: np.ndarray) -> np.ndarray:
    filled = np.add.reduceat(lengths[packed.documents].astype(np.int64), packed.row_offsets[:-1])
    return packed.capacity - filled


@st.composite
def corpora(draw):
    """A capacity and lengths that it holds, with runs of equal lengths (the packer works on runs)."""
    capacity = draw(st.one_of(st.integers(1, 70), st.sampled_from([63, 64, 65, 127, 4_095, 4_096, 4_097])))
    length = st.one_of(st.integers(1, capacity), st.integers(1, min(capacity, 5)), st.just(capacity))
    runs = draw(st.lists(st.tuples(length, st.integers(1, 30)), max_size=25))
    lengths = [value for value, count in runs for _ in range(count)]
    return capacity, draw(st.permutations(lengths)) if len(lengths) < 60 else lengths


@settings(max_examples=400, deadline=None)
@given(corpora())
def test_packs_like_textbook_best_fit_decreasing(corpus):
    capacity, lengths = corpus
    lengths = np.array(lengths, dtype=np.int32)
    packed = pack_documents(lengths, capacity)
    assert sorted(packed.documents) == list(range(lengths.size))
    assert (np.diff(packed.row_offsets) > 0).all() and packed.row_offsets[0] == 0
    assert packed.row_offsets[-1] == lengths.size
    room = room_of_rows(packed, lengths) if lengths.size else np.array([], dtype=int)
    assert (room >= 0).all()
    # Equal rows are interchangeable, so the multiset of rooms is the algorithm's unique answer.
    assert sorted(room) == best_fit_decreasing(list(lengths), capacity)


@settings(max_examples=200, deadline=None)
@given(corpora())
def test_no_two_rows_could_have_been_one(corpus):
    capacity, lengths = corpus
    lengths = np.array(lengths, dtype=np.int64)
    packed = pack_documents(lengths, capacity)
    if len(packed) < 2:
        return
    # A row was opened for its longest document because no row before it had room; rooms only shrink.
    room = room_of_rows(packed, lengths)
    longest = lengths[packed.documents[packed.row_offsets[:-1]]]
    for row in range(1, len(packed)):
        assert (room[:row] < longest[row]).all()


@settings(max_examples=60, deadline=None)
@given(corpora())
def test_rows_hold_longest_first_with_ties_by_index_and_repeat_exactly(corpus):
    capacity, lengths = corpus
    lengths = np.array(lengths, dtype=np.int32)
    first, second = pack_documents(lengths, capacity), pack_documents(lengths.astype(np.int64), capacity)
    np.testing.assert_array_equal(first.documents, second.documents)
    np.testing.assert_array_equal(first.row_offsets, second.row_offsets)
    for row in range(len(first)):
        members = first[row]
        keys = [(-int(lengths[document]), int(document)) for document in members]
        assert keys == sorted(keys)


@pytest.mark.parametrize("capacity", [2_048, 8_192, 16_384, 32_768])
def test_conversation_like_lengths_leave_at_most_a_ten_thousandth_of_padding(capacity):
    normal_N = np.random.default_rng(3).standard_normal(400_000)
    lengths = np.clip(np.exp(np.log(467) - 0.5 + normal_N), 8, capacity).astype(np.int32)
    packed = pack_documents(lengths, capacity)
    assert packed.padding_share <= 1e-4
    assert packed.padding_share == pytest.approx(room_of_rows(packed, lengths).sum() / (len(packed) * capacity))


def test_only_documents_past_half_a_row_leave_what_their_lengths_dictate():
    packed = pack_documents(np.full(1_001, 1_100), 2_048)
    assert len(packed) == 1_001
    assert packed.padding_share == pytest.approx(948 / 2_048)


def test_equal_documents_fill_rows_to_the_floor():
    packed = pack_documents(np.full(10, 3), 10)
    assert [list(packed[row]) for row in range(len(packed))] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_nothing_to_pack_gives_no_rows():
    packed = pack_documents([], 16)
    assert len(packed) == 0 and packed.documents.size == 0 and packed.padding_share == 0.0


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16, np.uint32])
def test_every_integer_type_packs_alike(dtype):
    packed = pack_documents(np.array([5, 4, 3, 2, 1], dtype=dtype), 5)
    assert [sorted(packed[row]) for row in range(len(packed))] == [[0], [1, 4], [2, 3]]


def test_strided_lengths_are_read_right():
    lengths = np.arange(1, 41, dtype=np.int64)
    every_other = pack_documents(lengths[::2], 64)
    copied = pack_documents(lengths[::2].copy(), 64)
    np.testing.assert_array_equal(every_other.documents, copied.documents)


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 4, 9, 2, 10], 8, "document 2 has length 9, more than a row's 8"),
        ([3, 0, 9], 8, "document 1 has length 0"),
        ([3, 2, -5], 8, "document 2 has length -5"),
        ([1], 0, "capacity 0"),
        ([1], -4, "capacity -4"),
        ([1], 1 << 40, "capacity 1099511627776"),
        ([1.5, 2.0], 8, "expected integers, got float64"),
        ([True], 8, "expected integers, got bool"),
        ([[1, 2], [3, 4]], 8, "expected one dimension"),
    ],
)
def test_bad_input_names_itself(lengths, capacity, message):
    with pytest.raises(ValueError, match=message):
        pack_documents(lengths, capacity)


def test_int64_lengths_past_int32_are_not_wrapped():
    with pytest.raises(ValueError, match="document 0 has length 4294967299"):
        pack_documents(np.array([(1 << 32) + 3], dtype=np.int64), 8)


def test_the_native_function_refuses_rather_than_converts():
    with pytest.raises(TypeError):
        _native.pack(np.array([1.0, 2.0]), 8)


def test_results_outlive_their_producer():
    offsets, documents = _native.pack(np.full(1_000, 7, dtype=np.int32), 64)
    copies = offsets.copy(), documents.copy()
    for _ in range(50):
        _native.pack(np.full(1_000, 9, dtype=np.int32), 64)
    np.testing.assert_array_equal(offsets, copies[0])
    np.testing.assert_array_equal(documents, copies[1])
