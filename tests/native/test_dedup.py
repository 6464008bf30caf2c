"""The C++ steps of deduplication against plain Python: tokens, shingles, MinHash lanes, the JSON Lines scanner."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from osim_core import _dedup

SINGLE = "漢字かな天気今日は好カท่า"
ALPHABET = "aAbBzZq09_ éÉñÑöÖ żŻ жЖёЁ σςΣάΆ हि 한국 .,!?-'\n\t\u00a0\u3000。！😂→" + SINGLE


def python_tokens(text: str) -> list[str]:
    """Words and single code points by Python's character database."""
    tokens, inside = [], False
    for c in text:
        if c in SINGLE:
            tokens.append(c)
            inside = False
        elif c == "_" or unicodedata.category(c)[0] in "LMN":
            lowered = c.lower().replace("ς", "σ")
            if inside:
                tokens[-1] += lowered
            else:
                tokens.append(lowered)
            inside = True
        else:
            inside = False
    return tokens


texts = st.one_of(
    st.text(st.sampled_from(ALPHABET), max_size=300),
    st.lists(st.text(st.sampled_from(ALPHABET[:20]), max_size=70), max_size=20).map(" ".join),
    st.lists(st.sampled_from(["word", "word" * 20, "é" * 9, "漢", "a" * 63, " " * 61]), max_size=20).map("".join),
)


@settings(max_examples=500, deadline=None)
@given(texts)
@example("a" * 64)
@example("x" * 63 + "é")
@example(" " * 62 + "漢字a")
@example("É" * 40)
def test_tokens_are_those_of_the_unicode_database(text):
    expected = [_dedup.tokens(token.encode())[0] for token in python_tokens(text)]
    assert _dedup.tokens(text.encode()).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.one_of(texts.map(str.encode), st.binary(max_size=300)))
def test_avx2_and_scalar_agree_on_any_bytes(data):
    if _dedup.SIMD == "scalar":
        pytest.skip("this processor has no AVX2")
    assert _dedup.tokens(data).tolist() == _dedup.tokens(data, scalar=True).tolist()


@given(st.lists(st.text(st.sampled_from("abcdefgh0é"), min_size=1, max_size=20), min_size=2, max_size=50, unique=True))
def test_different_tokens_have_different_hashes(words):
    assert len({int(_dedup.tokens(word.encode())[0]) for word in words}) == len(words)


def test_lower_case_is_pythons_for_latin_greek_and_cyrillic():
    different = []
    for point in [*range(0x80, 0x250), *range(0x370, 0x530), *range(0x1E00, 0x1F00), *range(0xFF00, 0xFF5B)]:
        c = chr(point)
        if unicodedata.category(c)[0] == "L" and len(c.lower()) == 1:
            lowered = _dedup.tokens(c.encode()).tolist() == _dedup.tokens(c.lower().encode()).tolist()
            if not lowered:
                different.append(point)
    # Latin Extended-B's irregular letters, archaic Greek, the capital sharp s: stated in csrc/common/text.hpp
    assert all(0x180 <= point < 0x250 or 0x370 <= point < 0x400 or point == 0x1E9E for point in different)
    assert not set(different) & set(map(ord, "ÀÉÑÖØÞĀČĞŁŃŒŚŠŸŽƠƯǍȘȚΑΒΓΔΣΩΆΈΉΊΌΎΏΪАБЯЁЇЉЏѢҐҚӘẞẢỆỮ")) - {0x1E9E}


def test_shingles_are_runs_of_five_tokens():
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    shingles = _dedup.shingles(" ".join(words).encode())
    assert shingles.size == 3
    for i in range(3):
        assert _dedup.shingles(" ".join(words[i : i + 5]).encode()).tolist() == [shingles[i]]
    assert _dedup.shingles(b"five two three four one")[0] != _dedup.shingles(b"one two three four five")[0]
    assert _dedup.shingles(b"one two three four").size == 0


def test_shingle_hashes_collide_no_more_than_32_bits_must():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(300)]
    text = " ".join(rng.choice(vocabulary, 60_000))
    words = text.split()
    different = len(set(zip(*(words[i:] for i in range(5)), strict=False)))
    expected = different**2 / 2**33  # 0.4
    assert different - np.unique(_dedup.shingles(text.encode())).size <= expected + 4


def test_scalar_lanes_equal_avx2_lanes():
    shingles = np.random.default_rng(0).integers(0, 2**32, 1_009, dtype=np.uint32)
    offsets = np.array([0, 1, 3, 6, 10, 100, 1_009], np.int64)
    for minhash in (_dedup.minhash, _dedup.minhash_wide):
        assert np.array_equal(minhash(shingles, offsets), minhash(shingles, offsets, scalar=True))
    with pytest.raises(ValueError, match="set 0 is empty"):
        _dedup.minhash(shingles, np.array([0, 0], np.int64))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def scan(data: bytes, field: str = "text", longest: int = 1 << 20):
    """(lines, begins, lengths, errors, line count) of one field."""
    chunk = np.frombuffer(data, np.uint8)
    lines, begins, lengths, errors, count = _dedup.scan(chunk, [field.encode()], longest, 1)
    return lines, begins[0], lengths[0], errors[0], count


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4), st.text(), st.booleans(), st.sampled_from([None, 1]))
def test_the_scanner_finds_what_json_finds(row, text, ascii_only, indent):
    row["text"] = text
    line = json.dumps(row, ensure_ascii=ascii_only, separators=(",", ":") if indent is None else (" , ", " : "))
    try:
        data = line.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate, which only escapes can carry
    _, begins, lengths, errors, _ = scan(data)
    assert errors.tolist() == [0]
    raw = data[begins[0] : begins[0] + lengths[0]]
    assert json.loads(b'"' + raw + b'"') == text


@settings(max_examples=500, deadline=None)
@given(values.map(json.dumps), st.data())
def test_the_scanner_refuses_what_json_refuses(value, data):
    line = f'{{"text":"a","v":{value}}}'.encode("utf-8", "replace")
    at = data.draw(st.integers(0, len(line)))
    broken = (
        line[:at] + data.draw(st.sampled_from([b"", b'"', b"{", b"]", b",", b"0", b"\\", b"x", b"\x01"])) + line[at:]
    )
    broken = broken if data.draw(st.booleans()) else line[:at]
    try:
        expected = json.loads(broken, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        expected = None
    if not broken.strip():
        return
    (error,) = scan(broken)[3].tolist()
    assert (error == 2) == (expected is None)


def test_each_kind_of_bad_row_has_its_code():
    rows = [
        b'{"text":"a"}',
        b'{"text":"\xff"}',
        b'{"text":"a"',
        b"[1]",
        b'{"t":"a"}',
        b'{"text":null}',
        b'{"text":3}',
        b"  ",
    ]
    lines, _, _, errors, count = scan(b"\n".join(rows))
    assert errors.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert lines.tolist() == [0, 1, 2, 3, 4, 5, 6] and count == 8
    assert scan(rows[0], longest=5)[3].tolist() == [7]
