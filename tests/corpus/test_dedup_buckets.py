"""Buckets by sorting, as the GPU makes them, are those of the hash table, and give the same clusters. The torch text
runs on the CPU here."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dialogue_corpus import make_corpus
from osim_core import _dedup
from osim_core.corpus.dedup import Sketches, text_buffers
from osim_core.corpus.dedup.buckets import band_runs, equal_keys

THRESHOLD = 0.8


def corpus() -> pa.Array:
    """Dialogues, and texts around the number of shingles that asks for 32-bit lanes, each twice."""
    rng = np.random.default_rng(0)
    long = [" ".join(f"w{n}" for n in rng.integers(0, 10**9, size)) for size in (400, 830, 1_000, 1_020, 1_040, 3_000)]
    return pa.array([*make_corpus(3_000), *long, *(text + " and more" for text in long), ""], pa.large_string())


def sketched(texts: pa.Array) -> Sketches:
    return Sketches(*_dedup.sketch(*text_buffers(texts), THRESHOLD, 1, signatures=False))


def clusters(texts: pa.Array, s: Sketches, runs=None, threads: int = 1):
    columns = (s.hashes, s.widths, s.keys, s.digits, s.wide_rows, s.wide_keys)
    return _dedup.cluster(*text_buffers(texts), *columns, None, THRESHOLD, threads, runs=runs)


@given(st.lists(st.integers(-3, 3), max_size=60))
def test_equal_keys_are_grouped_in_order(keys):
    places, borders = equal_keys(torch.tensor(keys, dtype=torch.int32))
    groups = [places[a:b].tolist() for a, b in pairwise(borders.tolist())]
    expected = [[i for i, other in enumerate(keys) if other == key] for key in sorted(set(keys))]
    assert groups == [group for group in expected if len(group) > 1]
    assert borders[0] == 0 and borders[-1] == places.numel()


def test_runs_are_the_rows_that_share_a_key():
    sketches = sketched(corpus())
    for (rows, borders), keys in zip(band_runs(sketches, "cpu"), sketches.keys, strict=True):
        assert rows.dtype == np.uint32 and borders.dtype == np.int64
        found = {tuple(rows[a:b].tolist()) for a, b in pairwise(borders.tolist())}
        narrow = np.flatnonzero((sketches.widths == 1) | (sketches.widths == 2))
        order = narrow[np.argsort(keys[narrow], kind="stable")]
        groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
        assert found == {tuple(group.tolist()) for group in groups if group.size > 1}


@pytest.mark.parametrize("threads", [1, 2])
def test_clusters_from_runs_are_those_from_keys(threads):
    texts = corpus()
    sketches = sketched(texts)
    survivor, jaccard, counts = clusters(texts, sketches)
    unusable = replace(sketches, keys=np.zeros_like(sketches.keys))  # so that nothing but the runs can tell
    other = clusters(texts, unusable, band_runs(sketches, "cpu"), threads)
    assert np.array_equal(other[0], survivor) and np.array_equal(other[1], jaccard)
    assert counts[0] == other[2][0] and (survivor != np.arange(survivor.size)).sum() > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[1:], "expected 21 bands, got 20"),
        (lambda runs: [(runs[0][0] + np.uint32(10**6), runs[0][1]), *runs[1:]], "rows be below 3013"),
        (lambda runs: [(runs[0][0][1:], runs[0][1]), *runs[1:]], "borders must ascend from 0"),
        (lambda runs: [(runs[0][0], runs[0][1][::-1].copy()), *runs[1:]], "borders must ascend from 0"),
        (lambda runs: [(runs[0][0], runs[0][1][:0]), *runs[1:]], "borders must ascend from 0"),
    ],
)
def test_runs_that_do_not_fit_are_refused(change, message):
    texts = corpus()
    sketches = sketched(texts)
    with pytest.raises(ValueError, match=message):
        clusters(texts, sketches, change(band_runs(sketches, "cpu")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_sorts_as_the_cpu_does():
    sketches = sketched(corpus())
    for mine, theirs in zip(band_runs(sketches, "cuda"), band_runs(sketches, "cpu"), strict=True):
        assert np.array_equal(mine[0], theirs[0]) and np.array_equal(mine[1], theirs[1])
