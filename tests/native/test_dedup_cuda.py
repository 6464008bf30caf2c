"""Sketches on a GPU: the device text, run by emulated warps here, equals csrc/native bit for bit in any
order of its threads, and its barriers are necessary. With a GPU, the GPU too.
"""

import json
import random
import re
import shutil
import subprocess
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.dialogue_corpus import make_corpus
from osim_core import _dedup
from osim_core.corpus.dedup import Sketches, cuda, find_duplicates
from osim_core.corpus.dedup import __main__ as command
from osim_core.corpus.dedup.cuda import Columns, CudaSketcher, batches, copy_bytes, order_rows

CSRC = Path(__file__).parent.parent.parent / "csrc"
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("osim_core._cuda") is None, reason="needs an NVIDIA GPU and _cuda"
)
BARRIERS = ("kTokenBorders", "kTokens", "kShingles", "kCarriedBytes", "kLanes")  # enum Barrier of warp_sketch.hpp
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CHUNK = 512


def native(texts: list[bytes], threshold: float = 0.8) -> Sketches:
    data, offsets = joined(texts)
    return Sketches(*_dedup.sketch(data, offsets, threshold, 1, signatures=True))


def joined(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def assert_equal(found: Sketches, expected: Sketches) -> None:
    for name in Sketches.__slots__:
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


class Emulation:
    """tests/native/warp_sketch.cpp, built from the headers in `common`: a process that answers one call at a time."""

    def __init__(self, folder: Path, common: Path = CSRC / "common", flags: tuple[str, ...] = SANITIZED) -> None:
        program = folder / "warp_sketch"
        source = Path(__file__).parent / "warp_sketch.cpp"
        command = ["g++", "-std=c++20", *flags, "-Wall", "-Wextra", "-Werror", f"-I{common}", source, "-o", program]
        subprocess.run(list(map(str, command)), check=True)
        self.program = program
        self.process = None

    def __call__(self, texts: list[bytes], threshold: float = 0.8, seed: int = 0, omitted: int = -1) -> Sketches:
        columns, rows = self.columns(*joined(texts), threshold, seed, omitted)
        whole = Columns(len(texts), signatures=True)
        whole.take(0, len(texts), rows, columns)
        return whole.sketches()

    def columns(
        self, data: np.ndarray, offsets: np.ndarray, threshold: float = 0.8, seed: int = 0, omitted: int = -1
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """What _cuda.sketch_texts returns, and the long rows, ascending. Raises EOFError if the process ends on the
        way, as the sanitizers make it."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [self.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        count, lanes, bands = len(offsets) - 1, _dedup.LANES, _dedup.BANDS
        wide_from = int(np.ceil(threshold * _dedup.WIDE_SHINGLES))
        request = np.array([seed, omitted, wide_from, count], np.int64)
        try:
            self.process.stdin.write(request.tobytes() + offsets.tobytes() + data.tobytes())
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        columns = [
            self.read(np.uint64, count, 2),
            self.read(np.uint8, count),
            self.read(np.uint32, bands, count),
            self.read(np.uint64, count, lanes // 16),
            self.read(np.uint16, count, lanes),
        ]
        (wide,) = self.read(np.int64, 1)
        rows = self.read(np.uint32, wide).astype(np.int32)
        return [*columns, self.read(np.uint32, wide, bands)], rows

    def read(self, dtype: type, *shape: int) -> np.ndarray:
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        data = self.process.stdout.read(wanted)
        if len(data) < wanted:
            self.process.wait()
            raise EOFError("the emulation has ended")
        return np.frombuffer(data, dtype).reshape(shape)

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run the device text on the CPU")
    emulation = Emulation(tmp_path_factory.mktemp("warp_sketch"))
    yield emulation
    emulation.close()


def words(count: int, different: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(different)}" for _ in range(count)).encode()


def border_texts() -> list[bytes]:
    """Tokens that begin and end around the borders of blocks, chunks and what a chunk carries into the next."""
    texts = [b"", b"!", b"a", b"a b", b"a b c d", b"a b c d e", b"one two three four five six", b" " * 600, b"." * 17]
    texts += [b"x" * n for n in (15, 16, 17, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5_000)]
    texts += [
        b"a" * i + b" " + b"b" * (CHUNK - 12 - i) + b" " + b"c" * (30 + i) + b" d e f g" for i in range(0, 500, 7)
    ]
    texts += [b"q " * n + b"z" * 200 + " é".encode() + b" y" * 30 for n in range(205, 257)]
    for character in ("é", "漢", "ท", "𠀀", "😂", "’", "Ж", "İ"):  # two to four bytes, of every kind, across borders
        texts += [("x " * (i % 2) + "z" * i + (character + "A") * 140).encode() for i in range(20)]
    texts += [("y" * i + "漢字かな" * 90 + "z" * i + "日本").encode() for i in range(17)]
    for length in range(CHUNK, 3 * CHUNK, 61):  # that end where a chunk does, in a token
        begin = sum(map(len, texts)) % 16
        texts += [(b"a b c d e f " * CHUNK)[: CHUNK - begin - 4] + b"last", b"k" * (length % 16)]
    return texts


def long_texts() -> list[bytes]:
    """Numbers of distinct shingles around those that ask for 32-bit lanes as well (820) and alone (1,025)."""
    counted = [words(4 + n, 10**9, n) for n in (818, 819, 820, 821, 1_023, 1_024, 1_025, 1_026)]
    counted += [words(4 + n, 10**9) + b" a b c d zeugnid" * 40 for n in (805, 811, 812, 813)]
    return [*counted, words(5_000, 3_000), words(5_000, 3), words(1_200, 5), words(3_000, 4), words(2_000, 8)]


def full_rounds() -> list[bytes]:
    """A text that has 1,024 distinct shingles where a round of tokens ends, and then more: its first chunk holds 100
    tokens, each other one 64."""
    letters = random.Random(5).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=48)
    return [" ".join(letters + [f"{n:07}" for n in range(1_010)]).encode()]


def malformed_texts() -> list[bytes]:
    rng = random.Random(3)
    pieces = ["é", "漢", "𠀀", "a", " ", "Ж"]
    texts = []
    for _ in range(300):
        text = bytearray("".join(rng.choice(pieces) for _ in range(rng.randrange(200))).encode())
        for _ in range(rng.randrange(8)):
            if text:
                text[rng.randrange(len(text))] = rng.choice(
                    [0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xED, 0xF0, 0xF4, 0xFF, 0x41]
                )
        texts.append(bytes(text[: rng.randrange(len(text) + 1)]))
    return texts


CORPORA = {
    "dialogues": lambda: [text.encode() for text in make_corpus(600)],
    "borders": border_texts,
    "long": long_texts,
    "full rounds": full_rounds,
    "malformed": malformed_texts,
}


@pytest.mark.parametrize("seed", [0, 1], ids=["in order", "shuffled"])
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_warp_gives_the_columns_of_the_cpu(emulated, corpus, seed):
    texts = CORPORA[corpus]()
    assert_equal(emulated(texts, seed=seed), native(texts))


def test_shingle_zero_counts_once_although_zero_marks_a_free_slot():
    assert _dedup.shingles(b"a b c d zeugnid").tolist() == [0]
    distinct = [np.unique(_dedup.shingles(text)).size for text in long_texts() if b"zeugnid" in text]
    assert min(distinct) < 820 <= max(distinct) < 820 + 39


@pytest.mark.parametrize("threshold", [0.7, 1.0])
def test_the_threshold_decides_the_widths_as_on_the_cpu(emulated, threshold):
    texts = [*long_texts(), words(4 + 716, 10**9), words(4 + 717, 10**9)]
    expected = native(texts, threshold)
    assert set(expected.widths) == {1, 2, 3}
    assert_equal(emulated(texts, threshold), expected)


def test_a_text_of_two_megabytes(emulated):
    texts = [words(310_000, 40_000)[:2_000_000], b"x" * 2_000_000, "漢".encode() * 300_000]
    assert_equal(emulated(texts), native(texts))


kinds = st.sampled_from("aZ9_ .'\né漢ท한😂’ЖİΣ\u0301\u00a0𠀀")
texts_of_any_kind = st.one_of(
    st.binary(max_size=100),
    st.lists(st.binary(max_size=4), max_size=300).map(b"".join),
    st.text(kinds, max_size=700).map(str.encode),
    st.lists(st.integers(1, 90), max_size=30).map(lambda lengths: b" ".join(b"k" * n for n in lengths)),
    st.lists(st.sampled_from([b"\xe6", b"\xbc", b"\xa2", b"\xf0\xa0", b"A", b" ", "é".encode()]), max_size=600).map(
        b"".join
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts_of_any_kind, max_size=6), st.integers(0, 3))
@example([b"", b"\xe6\xbc"], 0)
@example([b"x", "漢".encode()[:2], b"\xa2a b c d e"], 0)
def test_any_bytes_at_any_offset(emulated, texts, seed):
    assert_equal(emulated(texts, seed=seed), native(texts))


@given(texts_of_any_kind)
def test_tokens_take_two_bytes_each_which_tells_long_texts_by_their_bytes(text):
    """csrc/common/warp_sketch.hpp, least_wide_bytes: shorter texts are sketched without counting."""
    assert _dedup.tokens(text).size <= (len(text) + 1) // 2


def test_no_text_at_all(emulated):
    assert_equal(emulated([]), native([]))


@pytest.mark.parametrize("barrier", range(len(BARRIERS)), ids=BARRIERS)
def test_without_any_one_of_its_barriers_a_warp_goes_wrong(emulated, barrier):
    """In some order of the threads it gives other bits, or touches what the sanitizers stop."""
    texts = [*CORPORA["dialogues"]()[:50], *border_texts()[20:120:5], words(900, 10**9)]
    expected = native(texts)
    with pytest.raises((AssertionError, EOFError)):
        for seed in range(1, 20):
            assert_equal(emulated(texts, seed=seed, omitted=barrier), expected)


# the host's side


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 500), st.integers(1, 9))
def test_batches_cover_the_rows_within_their_limits(lengths, most_bytes, most_texts):
    offsets = np.concatenate([[7], 7 + np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    runs = list(batches(offsets, most_bytes, most_texts))
    assert [row for first, last in runs for row in range(first, last)] == list(range(len(lengths)))
    for first, last in runs:
        assert 1 <= last - first <= most_texts
        assert offsets[last] - offsets[first] <= most_bytes or last - first == 1
        after = min(last + 1, len(lengths))  # and not one row less than fits
        assert last == len(lengths) or last - first == most_texts or offsets[after] - offsets[first] > most_bytes


def test_long_rows_go_first_the_longest_of_them_ahead():
    offsets = np.cumsum([0, 5, 2_000, 0, 1_647, 1_646, 3_000, 2_000])
    rows, long_rows = order_rows(offsets, 1_647)
    assert long_rows.tolist() == [5, 1, 6, 3] and rows.tolist() == [5, 1, 6, 3, 0, 2, 4]
    assert rows.dtype == long_rows.dtype == np.int32


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_copies_by_threads_are_complete(threads):
    source = np.random.default_rng(0).integers(0, 256, 1_001, dtype=np.uint8)
    target = np.zeros_like(source)
    copy_bytes(target, source, threads)
    assert np.array_equal(target, source)


def test_batches_give_the_columns_of_one_call(emulated):
    """All of CudaSketcher but the copies and streams: batches, each from byte 0, put together in another order."""
    texts = [*CORPORA["dialogues"]()[:100], *long_texts()[::5], *border_texts()[::9], *long_texts()[3:9]]
    data, offsets = joined(texts)
    runs = list(batches(offsets, 40_000))
    assert len(runs) > 5
    columns = Columns(len(texts), signatures=True)
    for first, last in reversed(runs):
        begin = offsets[first]
        columns.take(
            first, last, *reversed(emulated.columns(data[begin : offsets[last]], offsets[first : last + 1] - begin))
        )
    assert_equal(columns.sketches(), native(texts))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("roles", [False, True])
def test_texts_decoded_for_the_gpu_are_those_that_the_cpu_sketches(threads, roles):
    texts = [*make_corpus(700), "", 'a "quoted" one,\ttabs \\ and \u6f22']
    raw = [json.dumps(text)[1:-1].encode() for text in texts]
    chunk, begins = joined([b'"' + text for text in raw])
    begins, lengths = begins[:-1] + 1, np.array([len(text) for text in raw], np.uint32)
    prompts = np.zeros(0, np.uint64)
    data, offsets = _dedup.decode_lines(chunk, begins, lengths, roles, prompts, threads)
    if not roles:
        assert [bytes(data[a:b]).decode() for a, b in pairwise(offsets)] == texts
    columns, size = _dedup.sketch_lines(chunk, begins, lengths, roles, prompts, 0.8, 1, signatures=True)
    assert size == data.size == offsets[-1]
    assert_equal(Sketches(*_dedup.sketch(data, offsets, 0.8, 1, signatures=True)), Sketches(*columns))


MUTANTS = {
    "warp_sketch.hpp": [
        ("const std::uint32_t open = reading.last_byte & 1;", "const std::uint32_t open = 0;"),
        ("reading.last_byte = warp_.shift_up(before_, reading.last_byte);",
         "reading.last_byte = warp_.shift_up(before_, 0u);"),
        ("base <= length_; base", "base < length_; base"),
        ("if (thread < kCarriedBytes / 4) {", "if (thread < kCarriedBytes / 8) {"),
        ("open_bytes <= kCarriedBytes ?", "open_bytes <= kCarriedBytes + 16 ?"),
        ("for (int i = (thread ^ before) & 1;", "for (int i = thread & 1;"),
        ("at + 1 == shingles && padded % 4 != 0", "at + 2 == shingles && padded % 4 != 0"),
        ("kShingleTokens - 1;", "kShingleTokens - 2;"),
        ("(single << 1 | before_[thread] >> 1)", "(single << 1)"),
        ("if (shingle == 0) {", "if (shingle == 1) {"),
        ("distinct_ <= kWideShingles;", "distinct_ < kWideShingles;"),
        ("(word << 1 | (before_[thread] & 1)) & 0xFFFF", "(word << 1) & 0xFFFF"),
    ],
    "text_block.hpp": [
        ("while (offset > -3 &&", "while (offset > -2 &&"),
        ("at + offset > 0 &&", "at + offset > 1 &&"),
        ("first_bits(length - at) & ~first_bits(-at)", "first_bits(length - at)"),
        ("first_bits(length - at) & ~first_bits(-at)", "~first_bits(-at)"),
        ("classes.lead |= offset >= 0", "classes.lead |= offset > 0"),
        ("if (to >= 0 && to < kBlockBytes) {", "if (to >= 0 && to < kBlockBytes - 1) {"),
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "old", "new"), [(header, *mutant) for header, mutants in MUTANTS.items() for mutant in mutants]
)
def test_a_mutant_of_the_device_text_is_noticed(header, old, new, tmp_path):
    common = tmp_path / "common"
    shutil.copytree(CSRC / "common", common)
    source = (common / header).read_text()
    assert source.count(old) == 1, old
    (common / header).write_text(source.replace(old, new))
    mutant = Emulation(tmp_path, common)
    try:
        with pytest.raises((AssertionError, EOFError)):
            for corpus in CORPORA.values():
                texts = corpus()
                assert_equal(mutant(texts), native(texts))
    finally:
        mutant.close()


# the GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_device_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^dedup: device cuda[^\n]*use device cpu$"):
        find_duplicates(["one text"], device="cuda")
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "one text"}\n')
    assert command.main([str(source), "--out", str(tmp_path / "out.parquet"), "--device", "cuda"]) == 2
    assert re.fullmatch(r"dedup: [^\n]*device cuda[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "out.parquet").exists()


@needs_gpu
@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("threshold", [0.7, 0.8, 1.0])
def test_the_gpu_gives_the_columns_of_the_cpu(corpus, threshold):
    texts = CORPORA[corpus]()
    data, offsets = joined(texts)
    assert_equal(CudaSketcher(threshold, signatures=True)(data, offsets), native(texts, threshold))


@needs_gpu
def test_the_gpu_takes_many_batches_and_huge_texts(monkeypatch):
    texts = [text.encode() for text in make_corpus(20_000)] + [words(310_000, 40_000), b"x" * 2_000_000]
    data, offsets = joined(texts)
    monkeypatch.setattr(cuda, "batches", lambda offsets: batches(offsets, 1 << 20))
    assert_equal(CudaSketcher(0.8, signatures=True, threads=2)(data, offsets), native(texts))


@needs_gpu
@settings(max_examples=100, deadline=None)
@given(st.lists(texts_of_any_kind, max_size=50))
def test_the_gpu_takes_any_bytes(texts):
    assert_equal(CudaSketcher(0.8, signatures=True)(*joined(texts)), native(texts))


@needs_gpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": torch.zeros(17, dtype=torch.uint8)}, "data: expected 16-byte aligned memory and a multiple of 16"),
        ({"data": torch.zeros(16)}, "data: expected Byte, got Float"),
        ({"rows": torch.zeros(3, dtype=torch.int32)}, "one offset more than there are rows"),
        ({"long_texts": 3}, "no more long texts than rows"),
    ],
)
def test_the_gpu_refuses_what_it_cannot_read(change, message):
    from osim_core import _cuda

    arguments = {
        "data": torch.zeros(16, dtype=torch.uint8),
        "offsets": torch.tensor([0, 5, 9]),
        "rows": torch.tensor([0, 1], dtype=torch.int32),
        "long_texts": 0,
    } | change
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        _cuda.sketch_texts(**on_gpu, threshold=0.8, signatures=False)
    with pytest.raises(ValueError, match="data: expected a CUDA tensor, got one on cpu"):
        _cuda.sketch_texts(**arguments, threshold=0.8, signatures=False)


@needs_gpu
def test_the_command_writes_the_same_file_on_either_device(tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_corpus(5_000)))
    for device in ("cpu", "cuda"):
        command.main([str(source), "--out", str(tmp_path / device), "--device", device, "--mask-roles"])
    assert (tmp_path / "cuda").read_bytes() == (tmp_path / "cpu").read_bytes()


@needs_gpu
def test_the_gpu_finds_the_duplicates_of_the_cpu():
    texts = make_corpus(20_000)
    mine, theirs = find_duplicates(texts, device="cuda"), find_duplicates(texts)
    assert np.array_equal(mine.survivor, theirs.survivor) and np.array_equal(mine.jaccard, theirs.jaccard)
