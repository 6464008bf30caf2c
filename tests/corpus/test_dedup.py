"""Clusters of near-duplicates: exactly the verified pairs, whatever the order, the threads or the number of files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.dialogue_corpus import EDITS, corpus_digest, make_corpus, true_pairs
from osim_core import _dedup
from osim_core.corpus.dedup import find_duplicates, store
from osim_core.corpus.dedup.run import Settings, deduplicate

ROOT = Path(__file__).parent.parent.parent


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


def write_rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


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


def test_every_cluster_keeps_one_row(corpus, clusters):
    # text-dedup 0.4.1 compares cluster numbers with row numbers and loses both copies of B here
    letters = [f"{c} " * 3 + "and some more words after it" for c in "DCAAABB"]
    assert find_duplicates(letters).keep.tolist() == [True, True, True, False, False, True, False]
    assert clusters.keep.sum() == len(partition(clusters.survivor))


def test_short_texts_are_duplicates_only_if_equal():
    # gaoya and tors give texts below one shingle the same empty signature, and so one cluster
    texts = ["ok", "OK!", "ok thanks", "no", "", "", "😂😂", "😂", "thanks ok", "a b c d", "a b c e"]
    assert find_duplicates(texts).survivor.tolist() == [0, 0, 2, 3, 4, 4, 6, 7, 8, 9, 10]


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
    assert result.statistics.candidates <= 2 * 21 * len(texts) and result.statistics.verified < 4 * len(texts)


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


def test_shared_prompts_and_role_tags_do_not_make_duplicates(tmp_path):
    prompt = "System: " + " ".join(f"rule{i}" for i in range(150))
    said = [" ".join(f"w{i}x{j}" for j in range(12)) for i in range(40)]
    texts = [f"{prompt}\nUser: {words}" for words in said]
    texts.append(f"Human: {said[7]}")  # the same words without the prompt, under another role
    source = write_rows(tmp_path / "in.jsonl", texts)
    deduplicate(source, tmp_path / "out.parquet", Settings())
    assert sum(pq.read_table(tmp_path / "out.parquet")["keep"].to_pylist()) == 2
    deduplicate(source, tmp_path / "out.parquet", Settings(mask_roles=True, mask_prompts=40))
    assert pq.read_table(tmp_path / "out.parquet")["cluster"].to_pylist() == [*range(40), 7]
    deduplicate(source, tmp_path / "out.parquet", Settings(mask_prompts=41))
    assert sum(pq.read_table(tmp_path / "out.parquet")["keep"].to_pylist()) == 2
    with pytest.raises(ValueError, match="does not go with a store"):
        deduplicate(source, tmp_path / "out.parquet", Settings(mask_prompts=40, store=tmp_path / "store"))


# ---- files


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("osim_core.corpus.dedup.run.CHUNK_BYTES", 100_000)


def test_a_file_gives_the_clusters_of_its_texts(corpus, clusters, tmp_path, small_chunks):
    source = write_rows(tmp_path / "in.jsonl", corpus)
    figures = deduplicate(source, tmp_path / "out.parquet", Settings(threads=2))
    table = pq.read_table(tmp_path / "out.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "int64", "bool", "float"]
    assert table["row"].to_pylist() == list(range(len(corpus)))
    assert table["cluster"].to_pylist() == clusters.survivor.tolist()
    assert table["keep"].to_pylist() == clusters.keep.tolist()
    assert table["jaccard"].to_pylist() == clusters.jaccard.tolist()
    assert figures["documents"] == len(corpus) and figures["kept"] == clusters.keep.sum()
    assert figures["bytes"] == sum(len(text.encode()) for text in corpus)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]


def test_files_one_by_one_give_the_clusters_of_one_run(corpus, clusters, tmp_path, small_chunks):
    settings = Settings(store=tmp_path / "store")
    cut = len(corpus) // 3
    old, new = write_rows(tmp_path / "old.jsonl", corpus[:cut]), write_rows(tmp_path / "new.jsonl", corpus[cut:])
    deduplicate(old, tmp_path / "old.parquet", settings)
    deduplicate(new, tmp_path / "new.parquet", settings)
    table = pq.read_table(tmp_path / "new.parquet")
    assert table["cluster"].to_pylist() == clusters.survivor[cut:].tolist()
    assert table["keep"].to_pylist() == clusters.keep[cut:].tolist()
    first = find_duplicates(corpus[:cut])
    assert pq.read_table(tmp_path / "old.parquet")["cluster"].to_pylist() == first.survivor.tolist()


def test_a_damaged_or_foreign_store_is_named(corpus, tmp_path):
    settings = Settings(store=tmp_path / "store")
    source = write_rows(tmp_path / "in.jsonl", corpus[:200])
    deduplicate(source, tmp_path / "out.parquet", settings)
    (path,) = (tmp_path / "store").iterdir()
    part = store.read_part(path)
    assert part.header["parameters"]["lanes"] == 128 and part.column("signatures").shape == (200, 128)
    with pytest.raises(ValueError, match=r"made with .*'mask_roles': False"):
        deduplicate(source, tmp_path / "again.parquet", Settings(store=tmp_path / "store", mask_roles=True))
    whole = path.read_bytes()
    for at, message in ((part.offset("hashes") + 5, "column hashes is damaged"), (3, "not a signature file")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=message):
            deduplicate(source, tmp_path / "again.parquet", settings)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="bytes instead of"):
        deduplicate(source, tmp_path / "again.parquet", settings)
    assert not (tmp_path / "again.parquet").exists()


BAD = [
    (b'{"text": "caf\xe9"}', "row 1 (line 3): not valid UTF-8"),
    (b'{"text": null}', "row 1 (line 3): 'text' is null"),
    (b'{"body": "a"}', "row 1 (line 3): no field 'text'"),
    (b'{"text": 7}', "row 1 (line 3): 'text' is not a string"),
    (b'{"text": "cut sho', "row 1 (line 3): not valid JSON"),
    (b'["text"]', "row 1 (line 3): not a JSON object"),
    (b'{"text": "' + b"long " * 50_000 + b'"}', "row 1 (line 3): the row is longer than 200000 bytes"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[m.split(": ")[1] for _, m in BAD])
def test_bad_rows_are_named_or_quarantined(line, message, tmp_path, small_chunks):
    good = b'{"text": "one good row of several words"}'
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([good, b"", line, good]))
    settings = Settings(longest_row=200_000)
    with pytest.raises(ValueError) as stopped:
        deduplicate(tmp_path / "in.jsonl", tmp_path / "out.parquet", settings)
    assert message in str(stopped.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    settings = Settings(longest_row=200_000, bad_rows="quarantine")
    figures = deduplicate(tmp_path / "in.jsonl", tmp_path / "out.parquet", settings)
    assert figures["documents"] == 2 and figures["quarantined"] == 1
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["cluster"] == [0, -1, 0] and table["keep"] == [True, False, False]
    assert table["jaccard"] == [1.0, None, 1.0]
    listed = json.loads((tmp_path / "out.parquet.quarantine.jsonl").read_text())
    assert listed["row"] == 1 and listed["line"] == 3 and listed["reason"] in message


def test_the_command_line(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ["a b c d e f", "A B C D E F!", "something else that is here"])
    command = [sys.executable, "-m", "osim_core.corpus.dedup", str(source), "--out"]
    done = subprocess.run([*command, str(tmp_path / "o.parquet")], capture_output=True, text=True, cwd=ROOT, check=True)
    figures = json.loads(done.stdout)
    assert {"documents", "bytes", "cpu_seconds", "wall_seconds", "peak_rss_mb"} <= figures.keys()
    assert pq.read_table(tmp_path / "o.parquet")["cluster"].to_pylist() == [0, 0, 2]
    done = subprocess.run([*command, str(tmp_path / "no" / "o")], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no such folder" in done.stderr
