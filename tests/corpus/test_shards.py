"""Shards give back what was written, and every kind of damage is named, stopped at or quarantined."""

import json
import os

import numpy as np
import pytest

from osim_core.corpus import shards as shards_module
from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.shards import ShardSet, ShardWriter
from tests.support.documents import SOURCES, loss_mask, make_documents, open_shards, write_shards


def flip_a_byte(path):
    """Damage the middle of a file, keeping its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("vocab_size", [1000, 151_936])
@pytest.mark.parametrize("max_documents", [4, 53, 1000])
def test_documents_come_back(tmp_path, vocab_size, max_documents):
    documents = make_documents(53, vocab_size=vocab_size)
    shards = open_shards(tmp_path, documents, vocab_size=vocab_size, max_documents=max_documents)
    assert len(shards) == 53
    assert shards.lengths.tolist() == [len(d.tokens) for d in documents]
    assert [shards.source_names[s] for s in shards.sources] == [d.source for d in documents]
    assert shards.num_tokens == sum(len(d.tokens) for d in documents)
    for number, document in enumerate(documents):
        length = len(document.tokens)
        assert shards.id(number) == document.id
        np.testing.assert_array_equal(shards.tokens(number), document.tokens)
        np.testing.assert_array_equal(shards.tokens(number, length // 3, length), document.tokens[length // 3 :])
        np.testing.assert_array_equal(shards.loss_mask(number), loss_mask(document))
        np.testing.assert_array_equal(shards.loss_mask(number, length // 2), loss_mask(document)[length // 2 :])
        np.testing.assert_array_equal(shards.turn_starts(number), document.turn_starts)


def test_ragged_columns_of_a_selection(tmp_path):
    documents = make_documents(40)
    shards = open_shards(tmp_path, documents, max_documents=9)
    chosen = np.array([0, 3, 8, 9, 17, 30, 39])
    values, counts = shards.ragged("turn_starts", chosen)
    assert counts.tolist() == [len(documents[i].turn_starts) for i in chosen]
    assert values.tolist() == [t for i in chosen for t in documents[i].turn_starts]
    values, counts = shards.ragged("loss_spans", np.zeros(0, np.int64))
    assert len(values) == len(counts) == 0


def replaced(document, **fields):
    values = {name: getattr(document, name) for name in document.__slots__} | fields
    return RenderedDocument(**values)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tokens": np.zeros(0, np.int32)}, "no tokens"),
        ({"tokens": np.array([1, 2, 3, 1000], np.int32)}, "token 1000 is outside the vocabulary of 1000"),
        ({"tokens": np.array([1, -2, 3, 4], np.int32)}, "token -2 is outside"),
        ({"source": "novels"}, "source is not declared; declared sources: chat, plays"),
        ({"loss_spans": np.array([[0, 5]], np.int32)}, "loss_spans must be"),
        ({"loss_spans": np.array([[0, 3], [2, 4]], np.int32)}, "loss_spans must be"),
        ({"turn_starts": np.array([0, 4], np.int32)}, "turn_starts must"),
        ({"turn_starts": np.array([2, 2], np.int32)}, "turn_starts must"),
    ],
)
def test_bad_document_is_refused_by_id(tmp_path, fields, message):
    good = RenderedDocument("chat/x", "chat", np.arange(4, dtype=np.int32), np.array([[1, 4]]), np.array([0, 2]))
    writer = ShardWriter(tmp_path, "train", 1000, SOURCES, 10)
    writer.add(good)
    with pytest.raises(ValueError, match=rf"document 'chat/x' .*{message}"):
        writer.add(replaced(good, **fields))


def test_abandoned_writer_leaves_no_unfinished_file(tmp_path):
    documents = make_documents(10)
    with pytest.raises(KeyError), ShardWriter(tmp_path, "train", 1000, SOURCES, 4) as writer:
        for document in documents:
            writer.add(document)
        raise KeyError
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"train-0000{i}.{kind}" for i in (0, 1) for kind in ("bin", "idx", "arrow")}


DAMAGE = {
    "bin byte": ("train-00001.bin", flip_a_byte, "checksum differs"),
    "idx byte": ("train-00001.idx", flip_a_byte, "checksum differs"),
    "sidecar byte": ("train-00001.arrow", flip_a_byte, "checksum differs"),
    "truncated idx": (
        "train-00001.idx",
        lambda path: os.truncate(path, path.stat().st_size - 3),
        "bytes, expected",
    ),
    "missing sidecar": ("train-00001.arrow", lambda path: path.unlink(), "file is missing"),
    "missing bin": ("train-00001.bin", lambda path: path.unlink(), "file is missing"),
}


@pytest.mark.parametrize("opened_before", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_or_quarantined(tmp_path, name, opened_before):
    file, damage, message = DAMAGE[name]
    documents = make_documents(40)
    write_shards(tmp_path, documents, max_documents=16)
    if opened_before:
        ShardSet.open(tmp_path, "train")
    damage(tmp_path / file)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{file}: .*{message}.*prepare the corpus again"):
            ShardSet.open(tmp_path, "train")
    shards = ShardSet.open(tmp_path, "train", "quarantine")
    assert list(shards.quarantined) == ["train-00001"] and file in shards.quarantined["train-00001"]
    # the numbers of the other documents do not move
    assert len(shards) == 40 and (shards.lengths[16:32] == 0).all() and (shards.sources[16:32] == -1).all()
    for number in [*range(16), *range(32, 40)]:
        np.testing.assert_array_equal(shards.tokens(number), documents[number].tokens)
    assert shards.num_tokens == shards.lengths.sum()


def test_all_shards_damaged_stops_even_with_quarantine(tmp_path):
    write_shards(tmp_path, make_documents(5))
    (tmp_path / "train-00000.bin").unlink()
    with pytest.raises(ValueError, match="every train shard is damaged"):
        ShardSet.open(tmp_path, "train", "quarantine")


def test_fingerprint_names_the_contents(tmp_path):
    documents = make_documents(30)
    first = open_shards(tmp_path / "a", documents).fingerprint
    assert open_shards(tmp_path / "b", documents).fingerprint == first
    assert open_shards(tmp_path / "c", make_documents(30, seed=1)).fingerprint != first
    (tmp_path / "a" / "train-00001.bin").unlink()
    assert ShardSet.open(tmp_path / "a", "train", "quarantine").fingerprint != first


def test_second_start_hashes_nothing(tmp_path, monkeypatch):
    open_shards(tmp_path, make_documents(40))
    hashed = []
    monkeypatch.setattr(shards_module, "sha256_of", lambda path: hashed.append(path.name) or "")
    ShardSet.open(tmp_path, "train")
    assert hashed == []
    os.utime(tmp_path / "train-00001.bin")
    with pytest.raises(ValueError, match=r"train-00001\.bin"):
        ShardSet.open(tmp_path, "train")
    assert hashed == ["train-00001.bin"]


def test_vocabulary_beyond_the_declared_is_refused(tmp_path):
    write_shards(tmp_path, make_documents(40, vocab_size=900))
    ShardSet.open(tmp_path, "train", vocab_size=900)
    with pytest.raises(ValueError, match=r"train-00000\.bin: holds token 89\d, but the declared vocabulary has 800"):
        ShardSet.open(tmp_path, "train", "quarantine", vocab_size=800)


def test_manifest_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: file is missing"):
        ShardSet.open(tmp_path, "train")
    write_shards(tmp_path, make_documents(5))
    with pytest.raises(ValueError, match=r"no shards for split 'validation'; it has \['train'\]"):
        ShardSet.open(tmp_path, "validation")
    with pytest.raises(ValueError, match="on_damaged_shard: 'ignore'"):
        ShardSet.open(tmp_path, "train", "ignore")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(ShardSet.open(tmp_path, "train", manifest=manifest)) == 5
    (tmp_path / "manifest.json").write_text('{"shards": {}}')
    with pytest.raises(ValueError, match="key 'sources' is missing"):
        ShardSet.open(tmp_path, "train")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        ShardSet.open(tmp_path, "train")


def test_open_shards_hold_no_file_descriptors(tmp_path):
    write_shards(tmp_path, make_documents(60), max_documents=3)
    before = len(os.listdir("/proc/self/fd"))
    shards = ShardSet.open(tmp_path, "train")
    assert len(shards.shards) == 20
    assert len(os.listdir("/proc/self/fd")) <= before + 1
