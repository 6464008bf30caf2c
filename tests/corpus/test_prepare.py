"""prepare: reads, splits, renders and writes once; half-built folders are never taken for good."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from osim_core.config import DataConfig
from osim_core.corpus import prepare as module
from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.prepare import prepare
from osim_core.corpus.shards import ShardSet


def rows(count, source="helpdesk", groups=10**9, start=0):
    for i in range(start, start + count):
        words = " ".join(f"word{(i * k) % 97}" for k in range(1, 6))
        yield {
            "data_source": source,
            "group": f"g{i % groups}",
            "messages": [
                {"role": "user", "content": f"{words}?"},
                {"role": "assistant", "content": f"so {words} {i}"},
            ],
        }


def write(path, *parts):
    path.write_text("".join(json.dumps(row) + "\n" for part in parts for row in part))
    return str(path)


@pytest.fixture
def data(tmp_path):
    path = write(tmp_path / "chats.jsonl", rows(300, groups=40), rows(60, "street", start=1000))
    return DataConfig(
        paths=(path,),
        roles={"helpdesk": "swap", "street": "keep"},
        validation_share=0.1,
        shard_documents=100,
        cache=str(tmp_path / "cache"),
    )


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def documents_of(folder, split):
    shards = ShardSet.open(folder, split)
    return {shards.id(i): shards.tokens(i) for i in range(len(shards))}


def changed(data, **fields):
    return DataConfig(**{**vars(data), **fields})


def test_every_row_arrives_once_and_the_manifest_adds_up(data):
    folder = prepare(data)
    manifest = manifest_of(folder)
    documents = {split: documents_of(folder, split) for split in ("train", "validation")}
    assert sum(len(d) for d in documents.values()) == 360
    assert manifest["sources"] == ["helpdesk", "street"]
    for split, by_id in documents.items():
        stated = [counts[split] for counts in manifest["statistics"].values()]
        assert sum(s["documents"] for s in stated) == len(by_id)
        assert sum(s["tokens"] for s in stated) == sum(len(tokens) for tokens in by_id.values())
        shards = ShardSet.open(folder, split)
        masks = sum(int(np.asarray(shards.loss_mask(i)).sum()) for i in range(len(shards)))
        assert sum(s["loss_tokens"] for s in stated) == masks
    assert {len(e["name"]) for e in manifest["shards"]["train"]} and len(manifest["shards"]["train"]) == 4


def test_the_declared_side_is_trained(data):
    folder = prepare(data)
    tokenizer = tokenizers.load(folder / "tokenizer")
    shards = ShardSet.open(folder, "train")
    for i in range(len(shards)):
        helpdesk = shards.source_names[shards.sources[i]] == "helpdesk"
        trained = tokenizer.decode(shards.tokens(i)[np.asarray(shards.loss_mask(i), bool)])
        assert trained.startswith("word" if helpdesk else "so "), (shards.id(i), trained)
        assert trained.endswith("<|im_end|>")


def test_groups_stay_on_one_side(data, tmp_path):
    numbered = {}
    for number, line in enumerate(Path(data.paths[0]).read_text().splitlines(), 1):
        row = json.loads(line)
        numbered[f"{data.paths[0]}:{number}"] = (row["data_source"], row["group"])
    folder = prepare(data)
    sides = [{numbered[name] for name in documents_of(folder, split)} for split in ("train", "validation")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    held = {source: sum(s == source for s, _ in sides[1]) for source in ("helpdesk", "street")}
    assert held == {"helpdesk": 4, "street": 6}  # a tenth of 40 and of 60 groups


def test_a_large_source_is_split_by_hash_and_its_rows_stay_in_order(data, monkeypatch):
    monkeypatch.setattr(module, "SMALL_SOURCE", 100)
    folder = prepare(data)
    sizes = {split: documents_of(folder, split) for split in ("train", "validation")}
    assert 0 < len(sizes["validation"]) < 90
    order = [int(name.rpartition(":")[2]) for name in sizes["train"]]
    large = [n for n in order if n <= 300]
    assert large == sorted(large) and order[: len(large)] == large


def test_the_second_call_reads_nothing(data, monkeypatch):
    folder = prepare(data)
    monkeypatch.setattr(module._Corpus, "build", lambda *_: pytest.fail("built again"))
    assert prepare(data) == folder


def test_two_builds_are_byte_for_byte_equal(data, tmp_path):
    first, second = prepare(data), prepare(changed(data, cache=str(tmp_path / "other")))
    assert first.name == second.name
    assert manifest_of(first) == manifest_of(second)
    for path in first.rglob("*.bin"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"validation_share": 0.2},
        {"shard_documents": 50},
        {"roles": {"*": "keep"}},
        {"sources": {"debates": 1.0}},
    ],
    ids=str,
)
def test_what_changes_the_shards_changes_the_folder(data, change):
    assert prepare(data) != prepare(changed(data, **change))


def test_what_does_not_change_the_shards_does_not(data):
    same = changed(data, sequence_length=64, overlong="drop", prefetch=7, sources={"street": 3.0})
    assert prepare(data) == prepare(same)


def test_an_edited_file_is_read_again(data):
    before = prepare(data)
    with open(data.paths[0], "a") as file:
        file.write(json.dumps(next(rows(1, start=5000))) + "\n")
    after = prepare(data)
    assert after != before
    assert sum(c["documents"] for s in manifest_of(after)["statistics"].values() for c in s.values()) == 361


def test_a_bad_row_leaves_nothing_behind(data, tmp_path):
    with open(data.paths[0], "a") as file:
        file.write('{"data_source": "helpdesk", "messages": [{"role": "user", "content": null}]}\n')
    with pytest.raises(ValueError, match=r"chats.jsonl, line 361, message 0: content must be a string, got null"):
        prepare(data)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def _build_slowly(data):
    prepare(data, report=lambda stage, done, total: time.sleep(0.5) if stage == "render" else None)


def test_a_killed_build_is_never_taken_for_good(data, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_build_slowly, args=(data,))
    process.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*.partial/*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
    assert list((tmp_path / "cache").glob("*.partial"))
    folder = prepare(data)
    assert len(documents_of(folder, "train")) + len(documents_of(folder, "validation")) == 360
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_callers_that_start_together_build_once(data, tmp_path, monkeypatch):
    built = []
    real = module._Corpus.build
    monkeypatch.setattr(module._Corpus, "build", lambda *args: (built.append(1), real(*args))[1])
    with ThreadPoolExecutor(3) as pool:  # a lock file is per opening, so threads meet it as processes do
        folders = list(pool.map(prepare, [data] * 3))
    assert len(set(folders)) == len(built) == 1


def test_a_folder_that_lost_its_manifest_is_built_again(data):
    folder = prepare(data)
    (folder / "manifest.json").unlink()
    assert prepare(data) == folder and (folder / "manifest.json").is_file()


def test_packaged_and_own_sources_together(data):
    folder = prepare(changed(data, sources={"debates": 1.0, "street": 2.0}))
    manifest = manifest_of(folder)
    assert manifest["sources"] == ["debates", "helpdesk", "street"]
    assert all(counts["validation"]["documents"] for counts in manifest["statistics"].values())
    assert "Apache-2.0" in manifest["licences"]["debates"]
    unigram, trigram = manifest["baselines"]["unigram"], manifest["baselines"]["trigram"]
    assert set(unigram) == {"debates", "helpdesk", "street", "all"}
    assert 0 < trigram["all"] < unigram["all"] < np.log(manifest["tokenizer"]["vocab_size"])


def test_a_given_tokenizer_is_kept_beside_the_shards(data, tmp_path):
    given = tokenizers.train((f"word{i} so" for i in range(97)), tmp_path / "given", vocab_size=300)
    folder = prepare(changed(data, tokenizer=str(given.where)))
    assert manifest_of(folder)["tokenizer"]["fingerprint"] == given.fingerprint
    assert tokenizers.load(folder / "tokenizer").fingerprint == given.fingerprint


def test_plain_chatml_is_what_the_kept_tokenizer_says(data, tmp_path):
    given = tokenizers.train((f"word{i} so" for i in range(97)), tmp_path / "given", vocab_size=300)
    (given.where / "chat_template.jinja").write_text("{{ messages | length }}")
    with pytest.raises(ValueError, match=r"prefix-stable|leaves out"):
        prepare(changed(data, tokenizer=str(given.where)))
    folder = prepare(changed(data, tokenizer=str(given.where), chat_format="chatml"))
    assert tokenizers.load(folder / "tokenizer").chat_template == tokenizers.CHATML_TEMPLATE


def test_progress_is_reported_to_the_end(data):
    steps = []
    prepare(data, lambda *step: steps.append(step))
    assert ("render", 360, 360) in steps
    assert all(0 <= done <= total for _, done, total in steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sources": {"chitchatt": 1.0}, "paths": ()},
            "no source 'chitchatt'; packaged sources are chitchat",
        ),
        ({"sources": {"nowhere": 1.0}}, "no source 'nowhere'; there are helpdesk, street"),
        ({"roles": {"helpdesk": "swap"}}, "line 301: data_source 'street' has no declared roles"),
        ({"validation_share": 1.0}, "validation_share: 1.0 is not in"),
        ({"tokenizer": "no/such/folder"}, "tokenizer 'no/such/folder': expected"),
        ({"paths": ("no/such.jsonl",)}, "no/such.jsonl: no such file"),
    ],
    ids=str,
)
def test_a_config_that_cannot_work_is_one_clear_line(data, change, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(changed(data, **change))
    assert "\n" not in str(error.value)
