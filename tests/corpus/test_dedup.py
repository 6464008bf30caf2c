"""Clusters of near-duplicates: exactly the verified pairs, whatever the order or the threads."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.dialogue_corpus import EDITS, corpus_digest, make_corpus, true_pairs
from osim_core import _dedup
from osim_core.corpus.dedup import find_duplicates


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return make_corpus(3_000)


@pytest.fixture(scope="module")
def clusters(corpus):
    return find_duplicates(corpus)


def partition(survivor: np.ndarray) -> set[frozenset[int]]:
    """The clusters as sets of rows, whoever survives."""
    groups: dict[int, set[int]] = {}
    for row, kept in enumerate(survivor.tolist()):
        groups.setdefault(kept, set()).add(row)
    return set(map(frozenset, groups.values()))


def test_the_corpus_is_the_same_everywhere_and_has_every_kind_of_copy(corpus):
    assert corpus_digest(make_corpus(500)) == corpus_digest(make_corpus(500)) != corpus_digest(make_corpus(500, seed=2))
    assert len(corpus) == 3_000 and len(EDITS) == 7


def test_pairs_are_those_of_the_exact_join(corpus, clusters):
    pairs, jaccard = true_pairs(corpus)
    survivor = clusters.survivor
    joined = survivor[pairs[:, 0]] == survivor[pairs[:, 1]]
    assert len(pairs) > 5_000 and joined.mean() >= 0.998
    assert joined[jaccard < 0.85].mean() >= 0.99
    partner = np.zeros(len(corpus), bool)
    partner[pairs[joined].ravel()] = True
    shared = np.bincount(survivor, minlength=len(corpus))[survivor] > 1
    assert partner[shared].all()  # precision 1: nobody is in a cluster without a partner above the threshold


def test_reported_indices_are_exact(corpus, clusters):
    for row in np.flatnonzero(~clusters.keep)[:300].tolist():
        a, b = (set(_dedup.shingles(corpus[i].encode()).tolist()) for i in (row, clusters.survivor[row]))
        expected = len(a & b) / len(a | b) if a | b else 1.0
        assert clusters.jaccard[row] == pytest.approx(expected, abs=1e-7)
    assert (clusters.jaccard[clusters.keep] == 1).all()


@pytest.mark.parametrize("options", [{"threads": 2}, {"threads": 5}, {"scalar": True}, {"scalar": True, "threads": 2}])
def test_threads_and_instruction_sets_change_nothing(corpus, clusters, options):
    again = find_duplicates(corpus, **options)
    assert np.array_equal(again.survivor, clusters.survivor) and np.array_equal(again.jaccard, clusters.jaccard)


def test_order_changes_only_who_survives(corpus, clusters):
    order = np.random.default_rng(0).permutation(len(corpus))
    shuffled = find_duplicates([corpus[i] for i in order])
    back = {frozenset(order[list(group)].tolist()) for group in partition(shuffled.survivor)}
    assert back == partition(clusters.survivor)
    for group in partition(shuffled.survivor):
        assert {shuffled.survivor[i] for i in group} == {min(group)}


def test_the_lowest_priority_survives_then_the_lowest_row():
    text = "the same seven words stand here again"
    result = find_duplicates([text, text.upper(), text + "!"], priorities=np.array([2, 1, 1]))
    assert result.survivor.tolist() == [1, 1, 1]
    assert find_duplicates([text, text.upper(), text + "!"]).survivor.tolist() == [0, 0, 0]


def test_chinese_and_thai_are_compared_by_code_points():
    rng = np.random.default_rng(0)
    lines = ["".join(map(chr, 0x4E00 + rng.integers(0, 2_000, 60))) for _ in range(200)]
    thai = ["".join(map(chr, 0x0E01 + rng.integers(0, 40, 60))) for _ in range(200)]
    edited = [line[:30] + "的" + line[31:] for line in lines[:50]] + [line + "ก" for line in thai[:50]]
    survivor = find_duplicates([*lines, *thai, *edited]).survivor
    assert survivor[:400].tolist() == list(range(400))
    assert survivor[400:].tolist() == [*range(50), *range(200, 250)]


def test_case_and_punctuation_are_no_difference():
    # tors keeps punctuation as tokens and misses such copies
    a = "Well, I never said that; you did, and everyone heard it on the day we met."
    b = "well i never SAID that -- you did and everyone heard it... on the day we met"
    assert find_duplicates([a, b]).survivor.tolist() == [0, 0]
    assert find_duplicates([a, b]).jaccard.tolist() == [1, 1]


def test_long_texts_meet_across_the_border_of_lane_widths():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 10_000, 6_000)]
    for length in (700, 900, 1_020, 1_100, 1_300, 5_000):
        base = words[:length]
        texts = [" ".join(base), " ".join(base + [f"x{i}" for i in range(length // 6)]), " ".join(words[-600:])]
        assert find_duplicates(texts).survivor.tolist() == [0, 0, 2], length


def test_a_bucket_of_a_million_like_pairs_costs_no_million_comparisons():
    words = [f"w{i}" for i in range(100)]
    texts = [" ".join([*words[:50], f"slot{i}", *words[50:]]) for i in range(1_500)]
    result = find_duplicates(texts)
    assert (result.survivor == 0).all()
    assert result.statistics.candidates <= 9 * 21 * len(texts) and result.statistics.verified < 4 * len(texts)


def test_most_pairs_of_a_crowd_that_hardly_differ_are_found():
    """200 texts filled into one template, each with a near copy: buckets are crowded with pairs just below 0.8."""
    rng = np.random.default_rng(1)
    texts = []
    for number in range(200):
        words = [f"w{i}" for i in range(120)]
        for place in rng.choice(np.arange(5, 114), 2, replace=False):
            words[place] = f"v{number}x{place}"
        copy = words.copy()
        copy[rng.integers(5, 114)] = f"t{number}"
        texts += [" ".join(words), " ".join(copy)]
    survivor = find_duplicates(texts).survivor
    pairs, _ = true_pairs(texts)
    joined = survivor[pairs[:, 0]] == survivor[pairs[:, 1]]
    assert (survivor[::2] == survivor[1::2]).all()
    assert len(pairs) > 300 and joined.mean() > 0.85  # 0.74 if each were compared with one neighbour only


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=12), st.integers(1, 2))
def test_nothing_is_joined_that_brute_force_does_not_join(documents, threads):
    sets = [{tuple(d[i : i + 5]) for i in range(len(d) - 4)} or {tuple(d)} for d in documents]
    component = list(range(len(sets)))

    def root(i: int) -> int:
        return i if component[i] == i else root(component[i])

    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            if len(a & b) / len(a | b) >= 0.8:
                component[max(root(i), root(j))] = min(root(i), root(j))
    survivor = find_duplicates([" ".join(d) for d in documents], threads=threads).survivor
    for row, kept in enumerate(survivor.tolist()):
        assert root(row) == root(kept)
        same = [i for i in range(row + 1) if sets[i] == sets[row]]
        assert kept <= same[0] and survivor[same[0]] == kept  # an index of 1 is never missed


@pytest.mark.parametrize("setting", [{"threshold": 0.5}, {"threshold": 1.1}, {"threads": 0}])
def test_settings_that_cannot_work_are_refused(setting):
    with pytest.raises(ValueError, match="dedup: thre"):
        find_duplicates(["a"], **setting)


def test_null_and_empty_input():
    with pytest.raises(ValueError, match="text 1 is null"):
        find_duplicates(pa.array(["a", None], pa.large_string()))
    assert find_duplicates([]).survivor.size == 0
    sliced = pa.array(["x", "a b c d e", "A b c d e"], pa.large_string()).slice(1)
    assert find_duplicates(sliced).survivor.tolist() == [0, 0]


ROLE_TAGS = [
    ("User: hello", "      hello"),
    ("a\nSpeaker 12: b", "a\n            b"),
    ("<|im_start|>user\nhi<|im_end|>", " " * 16 + "\nhi<|im_end|>"),
    ("<|user|> hi", " " * 8 + " hi"),
    ("assistant:x", " " * 10 + "x"),
    ("you said: no", "you said: no"),
    ("user manual: page 1", "user manual: page 1"),
    ("the user: x", "the user: x"),
    ("Username: x", "Username: x"),
    ("system", "system"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "masked"), ROLE_TAGS)
def test_role_tags_are_blanked_and_nothing_else(text, masked):
    assert _dedup.mask_roles(text.encode()).decode() == masked
