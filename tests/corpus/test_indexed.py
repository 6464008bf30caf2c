"""Megatron's .bin/.idx: our reader reads its files, its reader reads ours, and broken files are named."""

import numpy as np
import pytest

from osim_core.corpus.indexed import IndexedTokens, IndexedWriter, token_dtype

SEQUENCES = [np.arange(n) * 7 % 977 for n in (5, 1, 130, 17, 1024, 3)]


def write(prefix, sequences=SEQUENCES, dtype=np.uint16):
    with IndexedWriter(prefix, dtype) as writer:
        for sequence in sequences:
            writer.add(sequence)
        writer.publish()
    return prefix


@pytest.mark.parametrize("vocab_size", [1000, 151_936])
def test_megatron_reads_ours_and_we_read_megatrons(tmp_path, vocab_size):
    from osim_core.parallel.device import install

    install()
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

    dtype = token_dtype(vocab_size)
    assert dtype == DType.optimal_dtype(vocab_size)
    scale = vocab_size // 1000
    sequences = [sequence * scale for sequence in SEQUENCES]

    theirs = IndexedDataset(str(write(tmp_path / "ours", sequences, dtype)))
    assert len(theirs) == len(sequences)
    for index, sequence in enumerate(sequences):
        np.testing.assert_array_equal(theirs[index], sequence)
    np.testing.assert_array_equal(theirs.document_indices, np.arange(len(sequences) + 1))
    np.testing.assert_array_equal(theirs.get(2, offset=11, length=40), sequences[2][11:51])

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype.type)
    for sequence in sequences[:4]:
        builder.add_document(torch.tensor(sequence), [len(sequence)])
    builder.add_document(torch.tensor(np.concatenate(sequences[4:])), [len(s) for s in sequences[4:]])
    builder.finalize(str(tmp_path / "theirs.idx"))
    ours = IndexedTokens(tmp_path / "theirs")
    assert len(ours) == len(sequences) and ours.dtype == dtype
    for index, sequence in enumerate(sequences):
        np.testing.assert_array_equal(ours.tokens(index), sequence)
    assert ours.borders.tolist() == [0, 1, 2, 3, 4, 6]  # the last document holds two sequences


def test_files_equal_megatrons_byte_for_byte(tmp_path):
    from osim_core.parallel.device import install

    install()
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for sequence in SEQUENCES:
        builder.add_document(torch.tensor(sequence), [len(sequence)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_parts_of_a_sequence_are_views(tmp_path):
    tokens = IndexedTokens(write(tmp_path / "x"))
    np.testing.assert_array_equal(tokens.tokens(2, 100, 130), SEQUENCES[2][100:])
    assert tokens.tokens(2, 4, 4).size == 0
    with pytest.raises(ValueError, match="read-only"):
        tokens.tokens(2)[0] = 1


def test_unpublished_files_leave_nothing(tmp_path):
    with pytest.raises(KeyError), IndexedWriter(tmp_path / "x", np.uint16) as writer:
        writer.add(SEQUENCES[0])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 10, 33, 34, 60, -1])
def test_truncated_index_is_named(tmp_path, keep):
    path = write(tmp_path / "x").with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.idx: truncated"):
        IndexedTokens(tmp_path / "x")


@pytest.mark.parametrize("keep", [0, 1, 501, -1])
def test_truncated_tokens_are_named(tmp_path, keep):
    path = write(tmp_path / "x").with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.bin: \d+ bytes, but"):
        IndexedTokens(tmp_path / "x")


@pytest.mark.parametrize("at, byte", [(0, b"X"), (9, b"\x02"), (17, b"\x07"), (17, b"\x63")])
def test_foreign_index_is_named(tmp_path, at, byte):
    path = write(tmp_path / "x").with_suffix(".idx")
    data = bytearray(path.read_bytes())
    data[at : at + 1] = byte
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.idx: not a Megatron index"):
        IndexedTokens(tmp_path / "x")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file_is_named(tmp_path, suffix):
    write(tmp_path / "x").with_suffix(suffix).unlink()
    with pytest.raises(ValueError, match=rf"x\{suffix}: file is missing"):
        IndexedTokens(tmp_path / "x")
