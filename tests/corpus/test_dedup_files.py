"""Deduplication of files: one or many, in chunks, against a store, with priorities; and what it says about bad rows."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.dialogue_corpus import make_corpus
from osim_core.corpus.dedup import find_duplicates, store
from osim_core.corpus.dedup.__main__ import main
from osim_core.corpus.dedup.run import Settings, deduplicate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return make_corpus(3_000)


@pytest.fixture(scope="module")
def clusters(corpus):
    return find_duplicates(corpus)


def write_rows(path: Path, texts: list[str], **fields: list) -> Path:
    """A row a text, with its number as "id" and the values of other fields."""
    others = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)] or [{}] * len(
        texts
    )
    rows = [{"id": i, "text": text} | other for i, (text, other) in enumerate(zip(texts, others, strict=True))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


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


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("osim_core.corpus.dedup.reading.CHUNK_BYTES", 100_000)


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


def test_steps_in_any_order_end_in_the_same_clusters(corpus, clusters, tmp_path, small_chunks):
    """Four files come to a store one after the other, in another order than that of the rows, on one or two threads."""
    cuts = [0, 500, 1_100, 2_300, 3_000]
    spans = list(itertools.pairwise(cuts))
    steps = [spans[2], spans[0], spans[3], spans[1]]
    for number, (a, b) in enumerate(steps):
        path = write_rows(tmp_path / f"{number}.jsonl", corpus[a:b])
        settings = Settings(store=tmp_path / "store", threads=1 + number % 2)
        deduplicate(path, tmp_path / f"{number}.parquet", settings)
    paths = [tmp_path / f"{number}.jsonl" for number in range(4)]
    deduplicate(paths, tmp_path / "all.parquet", settings)  # every sketch is known: only clusters again
    came = np.concatenate([np.arange(a, b) for a, b in steps])
    once = find_duplicates([corpus[i] for i in came]).survivor
    assert read(tmp_path / "all.parquet")["cluster"] == once.tolist()
    assert read(tmp_path / "3.parquet")["cluster"] == once[-600:].tolist()
    together = clusters.survivor[came]  # the same rows share a cluster, whoever names it
    pairs = set(zip(once.tolist(), together.tolist(), strict=True))
    assert len(pairs) == np.unique(once).size == np.unique(together).size


def test_many_files_are_one_corpus(corpus, clusters, tmp_path, small_chunks):
    cuts = [0, 700, 701, 701, 2_000, 3_000]  # one has a single row, one none
    paths = [write_rows(tmp_path / f"{n}.jsonl", corpus[a:b]) for n, (a, b) in enumerate(itertools.pairwise(cuts))]
    figures = deduplicate(paths, tmp_path / "out.parquet", Settings(threads=2))
    table = read(tmp_path / "out.parquet")
    assert table["row"] == list(range(3_000))
    assert table["cluster"] == clusters.survivor.tolist() and table["keep"] == clusters.keep.tolist()
    assert table["jaccard"] == clusters.jaccard.tolist()
    assert [(f["first_row"], f["rows"]) for f in figures["files"]] == [(a, b - a) for a, b in itertools.pairwise(cuts)]
    assert [f["path"] for f in figures["files"]] == list(map(str, paths))
    with pytest.raises(ValueError, match="named twice"):
        deduplicate([paths[0], tmp_path / "." / "0.jsonl"], tmp_path / "out.parquet", Settings())


def test_long_texts_meet_over_parts_and_files(tmp_path, small_chunks):
    rng = np.random.default_rng(0)
    texts = []
    for length in (30, 900, 1_300, 5_000, 1_100, 60, 8_000, 1_020):  # 16-bit lanes, both, 32-bit lanes
        words = [f"w{i}" for i in rng.integers(0, 50_000, length)]
        texts += [" ".join(words), " ".join([*words, "and", "more"])]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    paths = [write_rows(tmp_path / "1.jsonl", texts[:6]), write_rows(tmp_path / "2.jsonl", texts[6:])]
    deduplicate(paths, tmp_path / "out.parquet", Settings())
    once = find_duplicates(texts)
    assert read(tmp_path / "out.parquet")["cluster"] == once.survivor.tolist() and once.keep.sum() == 8


def test_a_source_that_was_cut_short_is_sketched_anew(corpus, clusters, tmp_path, small_chunks):
    source = write_rows(tmp_path / "in.jsonl", corpus)
    settings = Settings(store=tmp_path / "store")

    def stop_midway(stage: str, done: int, total: int) -> None:
        if stage == "sketch" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deduplicate(source, tmp_path / "out.parquet", settings, stop_midway)
    assert len(list((tmp_path / "store").iterdir())) > 5 and not (tmp_path / "out.parquet").exists()
    deduplicate(source, tmp_path / "out.parquet", settings)
    assert read(tmp_path / "out.parquet")["cluster"] == clusters.survivor.tolist()


def test_bad_rows_keep_their_numbers_over_files(tmp_path):
    text = "one good row of several words"
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'\n{{"text": 1}}\n{{"text": "{text}"}}\n{{"text": "{name} only"}}\n')
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    figures = deduplicate(paths, tmp_path / "out.parquet", Settings(bad_rows="quarantine"))
    assert read(tmp_path / "out.parquet")["cluster"] == [-1, 1, 2, -1, 1, 5]
    assert read(tmp_path / "out.parquet")["keep"] == [False, True, True, False, False, True]
    assert figures["documents"] == 4 and figures["kept"] == 3 and figures["quarantined"] == 2
    lines = (tmp_path / "out.parquet.quarantine.jsonl").read_text().splitlines()
    assert [(Path(b["file"]).name, b["row"], b["line"]) for b in map(json.loads, lines)] == [
        ("a.jsonl", 0, 2),
        ("b.jsonl", 3, 2),
    ]


def test_the_file_goes_on_where_the_store_has_bad_rows(tmp_path):
    """Cluster numbers are rows of all files, those with bad rows included."""
    text = '{"text": "one good row of several words"}\n'
    (tmp_path / "old.jsonl").write_text("[]\n" + text)
    (tmp_path / "new.jsonl").write_text('{"text": "another"}\n' + text)
    settings = Settings(bad_rows="quarantine", store=tmp_path / "store")
    deduplicate(tmp_path / "old.jsonl", tmp_path / "old.parquet", settings)
    deduplicate(tmp_path / "new.jsonl", tmp_path / "new.parquet", settings)
    assert read(tmp_path / "old.parquet")["cluster"] == [-1, 1]
    assert read(tmp_path / "new.parquet") == {
        "row": [0, 1],
        "cluster": [2, 1],
        "keep": [True, False],
        "jaccard": [1.0, 1.0],
    }


# ---- who survives


def test_the_source_of_highest_priority_survives_then_the_lowest_row(corpus, clusters, tmp_path, small_chunks):
    names = ["books", "chats", 'caf\u00e9 "talk"']
    source = np.random.default_rng(0).integers(0, 3, len(corpus))
    path = write_rows(tmp_path / "in.jsonl", corpus, source=[names[s] for s in source])
    priorities = {names[2]: -5, names[0]: 7, "*": 8}
    deduplicate(path, tmp_path / "out.parquet", Settings(priority_field="source", priorities=priorities))
    survivor = np.array(read(tmp_path / "out.parquet")["cluster"])
    rank = np.array([7, 8, -5])[source]
    for first in np.flatnonzero(clusters.keep):
        members = np.flatnonzero(clusters.survivor == first)
        assert set(survivor[members]) == {min(members, key=lambda row: (rank[row], row))}
    assert (survivor == find_duplicates(corpus, priorities=rank).survivor).all()


def test_a_store_knows_sources_not_their_priorities(corpus, tmp_path, small_chunks):
    names = [f"s{i % 3}" for i in range(len(corpus))]
    old = write_rows(tmp_path / "old.jsonl", corpus[:2_000], source=names[:2_000])
    new = write_rows(tmp_path / "new.jsonl", corpus[2_000:], source=names[2_000:])
    settings = Settings(store=tmp_path / "store", priority_field="source", priorities={"s0": 0, "s1": 1, "s2": 2})
    deduplicate(old, tmp_path / "old.parquet", settings)
    turned = dataclasses.replace(settings, priorities={"s0": 2, "s1": 1, "s2": 0})
    deduplicate(new, tmp_path / "new.parquet", turned)
    rank = np.array([2, 1, 0] * 1_000)
    assert (
        read(tmp_path / "new.parquet")["cluster"] == find_duplicates(corpus, priorities=rank).survivor[2_000:].tolist()
    )
    with pytest.raises(ValueError, match="'s0', which has no priority"):
        deduplicate(new, tmp_path / "new.parquet", dataclasses.replace(settings, priorities={"s1": 1, "s2": 0}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a"}', "row 1 (line 2): no field 'source'"),
        ('{"text": "a", "source": null}', "row 1 (line 2): 'source' is null"),
        ('{"text": "a", "source": "c"}', "row 1 (line 2): 'source' is 'c', which has no priority"),
        ('{"source": "c"}', "row 1 (line 2): no field 'text'"),
    ],
)
def test_rows_without_a_priority_are_bad_rows(row, message, tmp_path):
    (tmp_path / "in.jsonl").write_text(f'{{"source": "b", "text": "a"}}\n{row}\n{{"source": "a", "text": "a"}}\n')
    settings = Settings(priority_field="source", priorities={"a": 0, "b": 1})
    with pytest.raises(ValueError) as stopped:
        deduplicate(tmp_path / "in.jsonl", tmp_path / "out.parquet", settings)
    assert message in str(stopped.value)
    settings = dataclasses.replace(settings, bad_rows="quarantine")
    deduplicate(tmp_path / "in.jsonl", tmp_path / "out.parquet", settings)
    assert read(tmp_path / "out.parquet")["cluster"] == [2, -1, 2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"priority_field": "source"}, "go together"),
        ({"priorities": {"a": 1}}, "go together"),
        ({"priority_field": "text", "priorities": {"a": 1}}, "both the text and the priority"),
        ({"priority_field": "source", "priorities": {"a": "1"}}, "whole number of 32 bits, got '1'"),
        ({"longest_row": 0}, "longest_row 0"),
    ],
)
def test_settings_of_files_that_cannot_work_are_refused(setting, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        deduplicate(tmp_path / "in.jsonl", tmp_path / "out.parquet", Settings(**setting))


def test_a_damaged_or_foreign_store_is_named(corpus, tmp_path):
    settings = Settings(store=tmp_path / "store")
    source = write_rows(tmp_path / "in.jsonl", corpus[:200])
    deduplicate(source, tmp_path / "out.parquet", settings)
    path, _ = sorted((tmp_path / "store").iterdir())  # the second one only says that the file ended
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


def test_the_command_line(tmp_path, capsys):
    one = write_rows(tmp_path / "1.jsonl", ["a b c d e f"], source=["chats"])
    two = write_rows(tmp_path / "2.jsonl", ["A B C D E F!", "something else that is here"], source=["books", "chats"])
    (tmp_path / "first.json").write_text('{"books": 1, "*": 2}')
    out = tmp_path / "o.parquet"
    for priorities in ("books,chats", str(tmp_path / "first.json")):
        arguments = [str(one), str(two), "--out", str(out), "--priority-field", "source", "--priorities", priorities]
        assert main(arguments) == 0
        printed = capsys.readouterr()
        assert {"documents", "bytes", "cpu_seconds", "wall_seconds", "peak_rss_mb"} <= json.loads(printed.out).keys()
        assert read(out)["cluster"] == [1, 1, 2]
        assert "dedup sketch" in printed.err and "dedup cluster: 21/21" in printed.err
    for arguments, message in (
        ([str(one), "--out", str(tmp_path / "no" / "o")], "no such folder"),
        ([str(one), "--out", str(out), "--priority-field", "source", "--priorities", "a,,b"], "empty or there twice"),
        ([str(one), "--out", str(out), "--priority-field", "source", "--priorities", "no.json"], "no.json"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_the_command_runs_as_a_module(tmp_path):
    source = write_rows(tmp_path / "in.jsonl", ["a b c d e f", "A B C D E F!"])
    line = [sys.executable, "-m", "osim_core.corpus.dedup", str(source), "--out", str(tmp_path / "o.parquet")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout)["kept"] == 1
