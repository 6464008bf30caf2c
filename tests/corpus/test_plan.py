"""A plan covers exactly what mix and policy declare, for any lengths, and is stored once."""

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osim_core.corpus import plan as plan_module
from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.plan import build_plan, cut_documents, draw_documents, open_plan
from osim_core.corpus.shards import ShardSet
from tests.support.documents import SOURCES, loss_mask, make_documents, open_shards, write_shards

DEFAULTS = {"overlong": "split", "mix": {}, "seed": 3, "epoch": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = make_documents(203, longest=70)
    return documents, open_shards(tmp_path_factory.mktemp("shards"), documents, max_documents=50)


def targets_of(pieces) -> Counter:
    """(document, token) -> how often the pieces predict it."""
    return Counter((int(p["document"]), token) for p in pieces for token in range(int(p["start"]) + 1, int(p["stop"])))


@pytest.mark.parametrize("capacity", [2, 3, 7, 16, 33, 70, 500])
def test_split_predicts_every_loss_target_once(corpus, capacity):
    documents, shards = corpus
    pieces = cut_documents(shards, np.arange(len(documents)), capacity, "split")
    targets = targets_of(pieces)
    assert max(targets.values()) == 1
    for number, document in enumerate(documents):
        for token in np.flatnonzero(loss_mask(document)).tolist():
            assert token == 0 or (number, token) in targets, (number, token)
    lengths = pieces["stop"] - pieces["start"]
    assert lengths.min() >= 2 and lengths.max() <= capacity


def test_split_cuts_at_the_last_turn_that_fits(tmp_path):
    turns = np.array([0, 4, 9, 12, 31])
    spans = np.array([[1, 4], [10, 12], [13, 31]])
    document = RenderedDocument("d", "chat", np.arange(33, dtype=np.int32), spans, turns)
    shards = open_shards(tmp_path, [document])
    pieces = cut_documents(shards, np.array([0]), 10, "split")
    # 0-9 two turns; 9-12 the third; the fourth is longer than a row: cut at 22, whose token carries loss, so the
    # next piece starts one earlier; 31 starts a turn whose header carries none
    assert [(p["start"], p["stop"]) for p in pieces] == [(0, 9), (9, 12), (12, 22), (21, 31), (31, 33)]


@pytest.mark.parametrize("overlong", ["split", "truncate", "drop"])
def test_pieces_follow_the_policy_and_losses_are_counted(corpus, overlong):
    documents, shards = corpus
    capacity = 29
    offsets, pieces, statistics = build_plan(shards, sequence_length=capacity, **DEFAULTS | {"overlong": overlong})
    lengths = np.array([len(d.tokens) for d in documents])
    expected = {
        "split": int((lengths < 2).sum()),
        "truncate": int((lengths < 2).sum() + np.maximum(lengths - capacity, 0).sum()),
        "drop": int((lengths < 2).sum() + lengths[lengths > capacity].sum()),
    }
    if overlong == "split":  # a last piece of one token that carries no loss goes too
        assert expected["split"] <= statistics["dropped_tokens"] <= expected["split"] + (lengths > capacity).sum()
    else:
        assert statistics["dropped_tokens"] == expected[overlong]
        assert set(pieces["start"]) == {0}
    gone = (lengths < 2) | ((lengths > capacity) if overlong == "drop" else False)
    assert statistics["dropped_documents"] == gone.sum()
    assert set(np.flatnonzero(~gone)) == set(pieces["document"])
    covered = {(int(p["document"]), t) for p in pieces for t in range(int(p["start"]), int(p["stop"]))}
    assert lengths.sum() - len(covered) == statistics["dropped_tokens"]
    assert statistics["padding"] == pytest.approx(1 - statistics["tokens"] / (len(offsets) - 1) / capacity)


def test_rows_are_filled_front_to_back(corpus):
    _, shards = corpus
    offsets, pieces, _ = build_plan(shards, sequence_length=64, **DEFAULTS)
    for first, last in itertools.pairwise(offsets):
        row = pieces[first:last]
        ends = np.cumsum(row["stop"] - row["start"])
        assert row["offset"].tolist() == [0, *ends[:-1]] and ends[-1] <= 64
    everything = cut_documents(shards, np.arange(len(shards)), 64, "split")
    assert Counter(pieces[["document", "start", "stop"]].tolist()) == Counter(
        everything[["document", "start", "stop"]].tolist()
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 3), seed=st.integers(0, 9), epochs=st.integers(1, 6))
def test_draws_are_even_and_without_replacement(corpus, share, seed, epochs):
    _, shards = corpus
    chat = shards.sources == SOURCES.index("chat")
    total = np.zeros(len(shards), np.int64)
    for epoch in range(epochs):
        draws = draw_documents(shards, {"chat": share}, seed, epoch)
        assert np.isin(draws[chat], [int(share), int(share) + 1, round(share)]).all()
        assert np.ptp(draws[chat]) <= 1
        assert abs(draws[chat].sum() - share * chat.sum()) <= 1
        assert (draws[~chat] == 1).all()
        total += draws
    assert np.ptp(total[chat]) <= 1
    assert total[chat].sum() == round(epochs * share * chat.sum())


def test_half_an_epoch_changes_and_depends_on_the_seed(corpus):
    _, shards = corpus
    first, second = (draw_documents(shards, {"chat": 0.5}, 1, epoch) for epoch in (0, 1))
    other = draw_documents(shards, {"chat": 0.5}, 2, 0)
    chat = shards.sources == SOURCES.index("chat")
    assert (first[chat] + second[chat] <= 2).all() and (first[chat] != second[chat]).mean() > 0.9
    assert (first != other).any()
    assert draw_documents(shards, {"chat": 0}, 1, 0)[chat].sum() == 0


def test_multiplicity_reaches_the_rows(corpus):
    _, shards = corpus
    _, pieces, statistics = build_plan(shards, sequence_length=80, **DEFAULTS | {"mix": {"chat": 2.0, "plays": 0}})
    visits = Counter(pieces["document"].tolist())
    long_enough = shards.lengths >= 2
    for number in np.flatnonzero(long_enough).tolist():
        expected = {"chat": 2, "plays": 0, "debates": 1}[shards.source_names[shards.sources[number]]]
        assert visits[number] == expected
    assert statistics["documents"] == (shards.sources == 0).sum() * 2 + (shards.sources == 2).sum()


def test_seed_and_epoch_change_the_order_and_nothing_else(corpus):
    _, shards = corpus
    plans = [
        build_plan(shards, sequence_length=64, **DEFAULTS | change) for change in ({}, {}, {"seed": 4}, {"epoch": 1})
    ]
    sets = [Counter(pieces[["document", "start", "stop"]].tolist()) for _, pieces, _ in plans]
    assert sets[0] == sets[1] == sets[2] == sets[3]
    np.testing.assert_array_equal(plans[0][1], plans[1][1])
    assert (plans[0][1]["document"] != plans[2][1]["document"]).any()
    assert (plans[0][1]["document"] != plans[3][1]["document"]).any()


def test_plan_is_built_once_and_reread(corpus, tmp_path, monkeypatch):
    _, shards = corpus
    built = open_plan(tmp_path, shards, sequence_length=64, **DEFAULTS)
    offsets, pieces, statistics = build_plan(shards, sequence_length=64, **DEFAULTS)
    monkeypatch.setattr(plan_module, "build_plan", lambda *args, **kwargs: pytest.fail("built again"))
    again = open_plan(tmp_path, shards, sequence_length=64, **DEFAULTS | {"mix": {"chat": 1.0}})
    for plan in (built, again):
        np.testing.assert_array_equal(plan.pieces, pieces)
        np.testing.assert_array_equal(plan.row_offsets, offsets)
        assert statistics.items() <= plan.statistics.items()
        np.testing.assert_array_equal(plan.row(3), pieces[offsets[3] : offsets[4]])


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"epoch": 1}, {"overlong": "drop"}, {"mix": {"chat": 0.5}}, {"sequence_length": 65}],
)
def test_every_input_has_its_own_plan(corpus, tmp_path, change):
    _, shards = corpus
    inputs = {"sequence_length": 64} | DEFAULTS
    open_plan(tmp_path, shards, **inputs)
    open_plan(tmp_path, shards, **inputs | change)
    assert len(list(tmp_path.glob("plans/*/plan.json"))) == 2


def test_quarantined_documents_are_left_out(tmp_path):
    documents = make_documents(60, longest=90)
    write_shards(tmp_path, documents, max_documents=20)
    (tmp_path / "train-00001.bin").unlink()
    shards = ShardSet.open(tmp_path, "train", "quarantine")
    for mix in ({}, {"chat": 0.5, "plays": 1.5}):
        _, pieces, _ = build_plan(shards, sequence_length=40, **DEFAULTS | {"mix": mix})
        assert not np.isin(pieces["document"], np.arange(20, 40)).any()
        assert (pieces["document"] >= 40).any()


def test_failed_build_leaves_nothing(corpus, tmp_path, monkeypatch):
    _, shards = corpus

    def full_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plan_module.DurableFile, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        open_plan(tmp_path, shards, sequence_length=64, **DEFAULTS)
    assert [path.suffix for path in (tmp_path / "plans").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mix": {"novels": 1.0}}, "unknown source 'novels'; the shards hold chat, plays, debates"),
        ({"mix": {"chat": -0.5}}, "'chat' has share -0.5"),
        ({"mix": {"chat": float("nan")}}, "'chat' has share nan"),
        ({"overlong": "wrap"}, "overlong: 'wrap'"),
        ({"sequence_length": 1}, "sequence_length: must be at least 2"),
        ({"mix": dict.fromkeys(SOURCES, 0.0)}, "no document to train on"),
    ],
)
def test_user_errors_are_named(corpus, tmp_path, change, message):
    _, shards = corpus
    with pytest.raises(ValueError, match=message):
        open_plan(tmp_path, shards, **{"sequence_length": 64} | DEFAULTS | change)


def test_of_many_that_start_together_one_builds(corpus, tmp_path, monkeypatch):
    _, shards = corpus
    built = []

    def build(*args, **kwargs):
        built.append(1)
        time.sleep(0.2)
        return build_plan(*args, **kwargs)

    monkeypatch.setattr(plan_module, "build_plan", build)
    with ThreadPoolExecutor(4) as pool:  # the lock is a file's, so threads stand for processes
        plans = list(pool.map(lambda _: open_plan(tmp_path, shards, sequence_length=64, **DEFAULTS), range(4)))
    assert len(built) == 1 and len({len(plan) for plan in plans}) == 1
