"""What the ranks read is a pure function of (seed, step), and every packed row holds exactly its documents."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osim_core.config import DataConfig
from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.loader import PackedLoader
from osim_core.corpus.shards import ShardSet
from tests.support.documents import loss_mask, make_documents, open_shards, write_shards

LENGTH, ROWS = 67, 12


@dataclass(repr=False)  # hypothesis would print all of it
class Corpus:
    documents: list[RenderedDocument]
    shards: ShardSet
    config: DataConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    documents = make_documents(401, longest=110, seed=5)
    shards = open_shards(folder / "shards", documents, max_documents=64)
    return Corpus(documents, shards, DataConfig(cache=str(folder), sequence_length=LENGTH))


def make(corpus, *, rank=0, world=1, seed=11, rows=ROWS, **data):
    return PackedLoader(
        corpus.shards,
        replace(corpus.config, **data),
        split=corpus.shards.split,
        sequence_length=corpus.config.sequence_length,
        global_batch_rows=rows,
        seed=seed,
        rank=rank,
        world=world,
    )


def identity(batch):
    """A row as something that can be compared and counted."""
    return (
        tuple(batch.documents_S.tolist()),
        tuple(batch.tokens_T.tolist()),
        tuple(batch.cu_seqlens.tolist()),
    )


def step_rows(corpus, step, world=1, **options):
    """The rows of a global step over all ranks, as a multiset."""
    return Counter(
        identity(b) for rank in range(world) for b in make(corpus, rank=rank, world=world, **options).batch(step)
    )


def test_a_row_is_its_documents(corpus):
    documents, loader = corpus.documents, make(corpus)
    for step in range(loader.steps_per_epoch):
        for number, batch in enumerate(loader.batch(step)):
            row = loader._row(step * ROWS + number)
            borders = batch.cu_seqlens.tolist()
            for index, piece in enumerate(row):
                a, b = borders[index], borders[index + 1]
                document = documents[piece["document"]]
                start, stop = int(piece["start"]), int(piece["stop"])
                tokens = torch.from_numpy(document.tokens[start:stop]).long()
                mask = torch.from_numpy(loss_mask(document)[start + 1 : stop]).float()
                assert batch.documents_S[index] == piece["document"]
                assert loader.shards.source_names[batch.sources_S[index]] == document.source
                assert torch.equal(batch.tokens_T[a:b], tokens)
                assert torch.equal(batch.labels_T[a : b - 1], tokens[1:])
                assert torch.equal(batch.weights["ce"][a : b - 1], mask)
                assert batch.labels_T[b - 1] == 0 and batch.weights["ce"][b - 1] == 0
                assert torch.equal(batch.positions_T[a:b], torch.arange(stop - start))
            if len(borders) - 1 > len(row):  # the padding tail is one more segment
                tail = slice(borders[-2], None)
                assert len(borders) - 1 == len(row) + 1 and batch.documents_S[-1] == batch.sources_S[-1] == -1
                assert batch.tokens_T[tail].sum() == batch.labels_T[tail].sum() == batch.weights["ce"][tail].sum() == 0
            else:
                assert borders[-1] == sum(row["stop"] - row["start"]) == LENGTH


def test_dtypes_are_those_of_the_contract(corpus):
    batch = make(corpus).batch(0)[0]
    for tensor in (batch.tokens_T, batch.labels_T, batch.positions_T, batch.documents_S):
        assert tensor.dtype == torch.int64
    assert batch.cu_seqlens.dtype == batch.sources_S.dtype == torch.int32
    assert batch.weights["ce"].dtype == torch.float32


@pytest.mark.parametrize("length", [5, 67, 300])
def test_an_epoch_weighs_every_target_once(corpus, length):
    loader = make(replace(corpus, config=replace(corpus.config, sequence_length=length)), rows=1)
    weights = Counter()
    for step in range(loader.steps_per_epoch):
        (batch,) = loader.batch(step)
        for index, document in enumerate(batch.documents_S.tolist()):
            segment = slice(*batch.cu_seqlens[index : index + 2].tolist())
            on = batch.weights["ce"][segment].bool()
            weights.update((document, token) for token in batch.labels_T[segment][on].tolist())
    expected = Counter(
        (number, token)
        for number, document in enumerate(corpus.documents)
        for token in document.tokens[1:][loss_mask(document)[1:]].tolist()
    )
    assert weights == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 40), world=st.sampled_from([2, 3, 4, 6, 12]), seed=st.integers(0, 3))
def test_world_size_never_changes_the_rows_of_a_step(corpus, step, world, seed):
    one = step_rows(corpus, step, seed=seed)
    assert sum(one.values()) == ROWS
    assert step_rows(corpus, step, world, seed=seed) == one


@pytest.mark.parametrize("sources", [{}, {"chat": 0.5, "plays": 1.7}])
def test_rows_carry_over_between_epochs(corpus, sources):
    """The steps are the epochs' rows laid end to end: none lost, none twice."""
    loader = make(corpus, sources=sources)
    steps = 3 * loader.steps_per_epoch
    read = [identity(batch) for step in range(steps) for batch in loader.batch(step)]
    finer = make(corpus, sources=sources, rows=1)
    assert Counter(read) == Counter(identity(finer.batch(step)[0]) for step in range(steps * ROWS))
    first = Counter(d for documents, _, _ in read[: finer.steps_per_epoch] for d in documents if d >= 0)
    lengths = loader.shards.lengths
    if not sources:
        assert set(first) == set(np.flatnonzero(lengths >= 2).tolist())
        assert all(first[d] == 1 for d in first if lengths[d] <= LENGTH)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 25), prefetch=st.integers(0, 5), rank=st.integers(0, 1))
def test_resume_and_prefetch_change_nothing(corpus, start, prefetch, rank):
    whole = make(corpus, rank=rank, world=2, prefetch=1)
    resumed = make(corpus, rank=rank, world=2, prefetch=prefetch)
    expected = [(step, batches) for step, batches in islice(whole.stream(0), start + 4) if step >= start]
    for (step, batches), (wanted, references) in zip(islice(resumed.stream(start), 4), expected, strict=True):
        assert step == wanted
        for batch, reference in zip(batches, references, strict=True):
            assert identity(batch) == identity(reference)
            assert torch.equal(batch.weights["ce"], reference.weights["ce"])


def test_order_of_a_rank_is_repeatable_and_seeded(corpus):
    first, again, other = (
        [identity(b) for b in make(corpus, rank=1, world=2, seed=seed).batch(7)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_ranks_get_equal_rows_and_near_equal_work(corpus):
    work = [
        [sum(int((b.cu_seqlens.diff()[b.documents_S >= 0] ** 2).sum()) for b in make(corpus, rank=r, world=4).batch(s))]
        for s in range(5)
        for r in range(4)
    ]
    assert all(len(make(corpus, rank=r, world=4).batch(0)) == ROWS // 4 for r in range(4))
    work = np.array(work).reshape(5, 4)
    assert (np.ptp(work, axis=1) <= 0.35 * work.mean(axis=1)).all()


def test_a_failure_while_reading_ahead_reaches_the_step(corpus, monkeypatch):
    loader = make(corpus, prefetch=3)
    original = loader.batch

    def batch(step):
        if step == 2:
            raise OSError("disk went away")
        return original(step)

    monkeypatch.setattr(loader, "batch", batch)
    stream = loader.stream(0)
    assert [next(stream)[0], next(stream)[0]] == [0, 1]
    with pytest.raises(OSError, match="disk went away"):
        next(stream)


def test_evaluation_is_the_same_for_every_world_and_seed(corpus):
    def rows(world, seed, wanted=30):
        ranks = [
            make(corpus, rank=r, world=world, seed=seed, sources={"chat": 0.5}).evaluation(wanted) for r in range(world)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        assert all(len(batch) == ROWS // world for batches in ranks for batch in batches)
        return [Counter(identity(b) for rank in ranks for b in rank[i]) for i in range(len(ranks[0]))]

    one = rows(1, 1)
    assert len(one) == 3 and sum(b.total() for b in one) == 36
    assert sum(count for b in one for (documents, _, _), count in b.items() if documents == (-1,)) == 6
    assert rows(2, 1) == rows(4, 9) == one
    everything = rows(1, 1, wanted=10**6)
    assert sum((b for b in everything), Counter()) >= sum((b for b in one), Counter()) - Counter(
        {row: n for b in one for row, n in b.items() if row[0] == (-1,)}
    )
    seen = {d for b in everything for documents, _, _ in b for d in documents} - {-1}
    assert seen == set(np.flatnonzero(corpus.shards.lengths >= 2).tolist())  # the mix does not thin it


def test_world_that_does_not_divide_is_refused_with_the_fix(corpus):
    with pytest.raises(ValueError, match=r"12 rows cannot be shared equally by 5 data-parallel ranks; use 10"):
        make(corpus, world=5)
    with pytest.raises(ValueError, match=r"global_batch_rows: 0 rows"):
        make(corpus, rows=0)


def test_quarantined_shard_is_never_read(tmp_path):
    documents = make_documents(80)
    write_shards(tmp_path, documents, max_documents=20)
    (tmp_path / "train-00002.arrow").unlink()
    shards = ShardSet.open(tmp_path, "train", "quarantine")
    loader = make(Corpus(documents, shards, DataConfig(cache=str(tmp_path), sequence_length=80)), rows=1)
    seen = {d for s in range(loader.steps_per_epoch) for d in loader.batch(s)[0].documents_S.tolist()} - {-1}
    assert seen == {n for n, d in enumerate(documents) if len(d.tokens) >= 2 and not 40 <= n < 60}


def test_loss_on_everyone_trains_every_target_but_is_measured_on_the_simulated(corpus):
    everyone, simulated = make(corpus, loss_on="everyone"), make(corpus)
    for batch, usual in zip(everyone.batch(2), simulated.batch(2), strict=True):
        torch.testing.assert_close(batch.tokens_T, usual.tokens_T)
        inside = batch.sources_S.repeat_interleave(batch.cu_seqlens.diff()) >= 0
        inside[batch.cu_seqlens[1:].long() - 1] = False  # a document's last token predicts nothing
        torch.testing.assert_close(batch.weights["ce"], inside.float())
        assert (usual.weights["ce"] <= batch.weights["ce"]).all()
    for batch, usual in zip(everyone.evaluation(ROWS)[0], simulated.evaluation(ROWS)[0], strict=True):
        torch.testing.assert_close(batch.weights["ce"], usual.weights["ce"])


def test_document_length_caps_the_pieces_of_a_row(corpus):
    loader = make(corpus, document_length=17)
    for batch in loader.batch(0):
        assert batch.cu_seqlens.diff()[batch.sources_S >= 0].max() <= 17
        assert batch.num_tokens == LENGTH
