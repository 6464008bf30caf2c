"""recipes/corpus.py on a planted corpus: everything planted is found, everything else arrives, every row is in the
audit; the bytes depend on nothing but the inputs; a kill costs the part it hits.
"""

import json
import multiprocessing
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from osim_core.config import CorpusConfig, DataConfig, DecontaminateConfig, DedupConfig, FilterConfig, PackConfig
from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.executor import Local, Ray
from osim_core.corpus.prepare import prepare
from osim_core.corpus.shards import ShardSet
from osim_core.corpus.stages import token_store
from osim_core.corpus.stages.inputs import find_inputs
from osim_core.corpus.stages.read import ReadJob, read
from tests.corpus.planted import ITEMS, built, contents, plant, watched

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def corpus(config):
    return built(config)


@pytest.fixture(scope="module")
def manifest(corpus):
    return json.loads((corpus.folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def audit(corpus):
    return pq.read_table(corpus.folder / "audit").to_pylist()


def of(audit, source, ended=None):
    return [row for row in audit if row["source"] == source and ended in (None, row["ended"])]


def number_of(row):
    """The row of an own file or of wildchat, from its id; the planted file counts lines from 1."""
    return int(row["id"].split(":")[1].split("/")[0]) - 1


def test_everything_that_was_read_is_in_the_audit_once(audit):
    read = Counter(row["source"] for row in audit if row["ended"] != "read")
    assert read == {"convokit_friends": 60, "wildchat": 40, "helpdesk": 60, "street": 50}
    assert len({row["id"] for row in audit}) == len(audit)
    assert [(number_of(row) + 1, row["reason"]) for row in of(audit, "street", "filter")] == [(49, "length: too short")]


def test_planted_duplicates_go_and_the_source_declared_first_survives(audit, manifest):
    gone = {(row["source"], number_of(row)) for row in audit if row["ended"] == "dedup"}
    assert gone == {("helpdesk", n) for n in range(5)} | {("helpdesk", n) for n in range(14, 18)}
    assert manifest["duplicates"] == {"helpdesk": 9} and manifest["clusters"]["sizes"]["2"] == 9
    assert manifest["clusters"]["identical"] == 5
    by_row = {row["row"]: row for row in audit if row["row"] is not None}
    for row in audit:
        if row["ended"] == "dedup":
            kept = by_row[row["cluster"]]
            assert kept["ended"] != "dedup" and kept["cluster"] == row["cluster"]
            assert kept["source"] == ("wildchat" if number_of(row) < 5 else "helpdesk")
            assert row["jaccard"] == 1.0 if number_of(row) < 5 else 0.8 <= row["jaccard"] < 1.0


def test_priorities_decide_who_survives(config):
    corpus = built(config, dedup=DedupConfig(priorities=("helpdesk",)))
    audit = pq.read_table(corpus.folder / "audit").to_pylist()
    assert {number_of(row) for row in of(audit, "wildchat", "dedup")} == set(range(5))


def test_planted_benchmark_items_go_however_they_are_wrapped(audit, manifest):
    found = {(row["source"], number_of(row)): row["reason"] for row in audit if row["ended"] == "decontaminate"}
    assert set(found) == {("wildchat", 5), ("helpdesk", 20), ("helpdesk", 21)}
    assert found["helpdesk", 20] == "holds bench: bench/1"
    contamination = manifest["contamination"]
    assert contamination["benchmarks"] == {"bench": {"items": 3, "items_found": 3, "items_too_short": 0}}
    assert contamination["items"]["bench/0"]["sources"] == {"wildchat": 1}
    assert contamination["sources"]["helpdesk"]["dropped"] == 2
    assert sum(counts["flagged"] for counts in contamination["sources"].values()) == 3


def test_bad_rows_are_named_with_file_row_and_reason(audit, manifest, corpus):
    bad = {Path(row["id"]).name: row["reason"] for row in audit if row["ended"] == "read"}
    assert {name: reason.split(":")[0] for name, reason in bad.items()} == {
        "a_helpdesk.jsonl:31": "not UTF-8",
        "a_helpdesk.jsonl:32": "not JSON",
        "a_helpdesk.jsonl:63": "unusable row",
        "a_helpdesk.jsonl:64": "too large",
        "c_cut.parquet": "unreadable file",
    }
    assert "message 1: content must be a string, got null" in bad["a_helpdesk.jsonl:63"]
    (desk,) = (entry for label, entry in manifest["bad_rows"].items() if label.endswith("a_helpdesk.jsonl"))
    assert (desk["rows"], desk["bad_rows"]) == (64, 4)
    lines = [json.loads(line) for path in (corpus.folder / "quarantine").iterdir() for line in path.open()]
    assert len(lines) == 5 and all(line["file"] and line["reason"] for line in lines)


def test_a_part_that_is_done_again_names_each_bad_row_once(tmp_path, config):
    (desk,) = (item for item in find_inputs(config) if "a_helpdesk" in item.name)
    for _ in range(2):  # as after a kill, when bad rows of the first attempt are on disk
        counts = read(ReadJob(desk, config.chunk_bytes, config.roles), tmp_path, "part")
    assert counts["bad"] == {"not JSON": 1, "not UTF-8": 1, "too large": 1, "unusable row": 1}
    assert len((tmp_path / "part.quarantine.jsonl").read_text().splitlines()) == 4


def test_more_bad_rows_than_declared_stop_the_build_in_one_line(config):
    with pytest.raises(ValueError, match=r"a_helpdesk\.jsonl: 6\.2% of it cannot be used.*row 31: not valid UTF-8"):
        built(config, max_bad_share=0.05)
    with pytest.raises(ValueError, match=r"c_cut\.parquet: 100\.0% of it cannot be used"):
        built(config, max_bad_share=0.5)


def documents(corpus, split):
    shards = ShardSet.open(corpus.folder, split)
    return {shards.id(number): shards.document(number) for number in range(len(shards))}


def test_the_audit_says_what_is_in_the_shards(audit, corpus, manifest):
    for split in ("train", "validation"):
        stored = documents(corpus, split)
        told = {row["id"]: row for row in audit if row["split"] == split}
        assert set(stored) == set(told)
        # the two sides of a dialogue say the same words in other roles, and are two documents
        assert len({row["document"] for row in told.values()}) == len(told)
        assert all(len(stored[name].tokens) == row["tokens"] for name, row in told.items())
        counts = [by_split[split] for by_split in manifest["statistics"].values()]
        assert sum(c["documents"] for c in counts) == len(stored)
        assert sum(c["tokens"] for c in counts) == sum(len(document.tokens) for document in stored.values())
        assert sum(c["loss_tokens"] for c in counts) == sum(document.loss_tokens for document in stored.values())
    assert all(not row["ended"] for row in audit if row["split"])


def test_shards_hold_what_was_said(corpus, config):
    """A row of the input, decoded from its tokens: the text in its order, loss on the simulated side."""
    tokenizer = tokenizers.load(corpus.folder / "tokenizer")
    stored = documents(corpus, "train")
    lines = (Path(config.rows[0]) / "a_helpdesk.jsonl").read_bytes().split(b"\n")
    checked = 0
    for name, document in stored.items():
        if "a_helpdesk" in name:
            messages = json.loads(lines[int(name.rpartition(":")[2]) - 1])["messages"]
            text = tokenizer.decode(document.tokens)
            assert all(message["content"] in text for message in messages)
            spoken = "".join(tokenizer.decode(document.tokens[a:b]) for a, b in document.loss_spans)
            expected = "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")
            assert spoken == expected
            checked += 1
    assert checked > 30


def test_nobody_held_out_appears_in_training_and_no_cluster_lies_in_two_splits(config):
    """With duplicates kept, so that there are clusters to lie in two splits."""
    corpus = built(config, dedup=DedupConfig(policy="flag"))
    audit = pq.read_table(corpus.folder / "audit").to_pylist()
    assert not [row for row in audit if row["ended"] == "dedup"]
    rows = [json.loads(line) for line in (Path(config.rows[0]) / "a_helpdesk.jsonl").read_bytes().split(b"\n")[:30]]
    people = {split: set() for split in ("train", "validation")}
    clusters = {split: set() for split in ("train", "validation")}
    texts = {split: set() for split in ("train", "validation")}
    for row in audit:
        if row["split"]:
            clusters[row["split"]].add(row["cluster"])
        if row["split"] and row["source"] == "helpdesk" and number_of(row) < 30:
            people[row["split"]].add(rows[number_of(row)]["group"])
        if row["split"] and row["source"] == "convokit_friends":
            texts[row["split"]].add(row["id"].rpartition("/")[2])
    assert people["validation"] and not people["train"] & people["validation"]
    assert texts["validation"] and not texts["train"] & texts["validation"]
    assert clusters["validation"] and not clusters["train"] & clusters["validation"]
    assert Counter(row["ended"] for row in audit)["split"] > 0


def test_who_is_held_out_is_not_heard_in_training_either(audit):
    """Of friends, conversation n is between p(n % 5) and p(5 + n % 4); nobody trains where a held-out one speaks."""
    sides = {split: [] for split in ("train", "validation", "")}
    for row in of(audit, "convokit_friends"):
        number, person = int(row["id"].split("/")[3][1:]), row["id"].rpartition("/")[2]
        pair = {f"p{number % 5}", f"p{5 + number % 4}"}
        sides[row["split"]].append((person, *(pair - {person})))
    held = {person for person, _ in sides["validation"]}
    assert held and sides["train"]
    assert not [side for side in sides["train"] if held & set(side)]
    assert all(held & set(side) for side in sides[""]), "only for that reason"


def test_masking_keeps_the_row_and_takes_the_loss(config, corpus):
    items = config.decontaminate.against
    masked = built(config, decontaminate=DecontaminateConfig(benchmarks=False, against=items, policy="mask"))
    manifest = json.loads((masked.folder / "manifest.json").read_text())
    audit = pq.read_table(masked.folder / "audit").to_pylist()
    assert not [row for row in audit if row["ended"] == "decontaminate"]
    tokenizer = tokenizers.load(masked.folder / "tokenizer")
    stored = documents(masked, "train") | documents(masked, "validation")
    (name,) = (n for n in stored if "a_helpdesk" in n and n.endswith(":22"))  # bench/2, in turns 1 and 2
    spoken = [tokenizer.decode(stored[name].tokens[a:b]) for a, b in stored[name].loss_spans]
    assert len(spoken) == 1, "of the two turns of the simulated side, the one with the item carries no loss"
    assert not any(text.split()[0] in ITEMS["bench/2"] for text in spoken)
    assert manifest["masked_turns"] >= 3
    with pytest.raises(ValueError, match="loss_on everyone"):
        prepare(DataConfig(corpus=str(masked.folder), loss_on="everyone"))
    assert prepare(DataConfig(corpus=str(masked.folder))) == masked.folder


def test_two_processes_write_the_same_bytes(tmp_path, config, corpus):
    with Local(2) as pool:
        other = built(config, pool, cache=str(tmp_path))
    assert contents(other) == contents(corpus)


def test_a_second_build_only_looks(config, corpus, monkeypatch):
    monkeypatch.setattr(Local, "run", lambda self, function, items: iter(()) if not items else pytest.fail("redone"))
    assert built(config).folder == corpus.folder


def test_documents_are_tokenised_once(config, corpus, monkeypatch):
    """Another row length changes nothing; other filters only drop; and both find every document in the store."""
    asked = []
    encode = token_store.TokenStore.extend

    def counting(self, conversations, renderer):
        fresh = encode(self, conversations, renderer)
        asked.append(fresh)
        return fresh

    monkeypatch.setattr(token_store.TokenStore, "extend", counting)
    tokenizer = str(corpus.folder / "tokenizer")
    first = built(config, tokenizer=tokenizer)
    assert sum(asked) == 0, "the same tokenizer, by another way"
    longer = built(config, tokenizer=tokenizer, pack=PackConfig(sequence_length=512))
    assert longer.folder == first.folder and longer.plan["rows"] < first.plan["rows"]
    asked.clear()
    fewer = built(config, tokenizer=tokenizer, filters=FilterConfig(min_words=60))
    assert fewer.folder != first.folder and asked and sum(asked) == 0


def test_a_filter_leaves_its_mark_in_report_and_audit(config):
    corpus = built(config, filters=FilterConfig(min_words=57))
    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    audit = pq.read_table(corpus.folder / "audit").to_pylist()
    told = {
        row["source"]: row["dropped"] for row in manifest["filters"] if row["filter"] == "length" and row["dropped"]
    }
    seen = Counter(row["source"] for row in audit if row["reason"] == "length: too short")
    assert told == {source: {"too short": count} for source, count in seen.items()} and seen["street"] == 50


def test_filters_that_leave_nothing_end_the_build(config):
    with pytest.raises(ValueError, match=r"no conversation is left by the filters; .*dropped\.parquet says why"):
        built(config, filters=FilterConfig(min_words=10_000))


def test_statistics_of_the_plan_are_those_of_the_shards(corpus):
    shards = ShardSet.open(corpus.folder, "train")
    assert corpus.plan["documents"] == len(shards)
    assert corpus.plan["tokens"] + corpus.plan["dropped_tokens"] >= int(np.sum(shards.lengths))


STAGES = (
    "",
    "read",
    "context",
    "filter",
    "cluster",
    "clean",
    "divide",
    "tokenizer",
    "tokenise",
    "baselines",
    "publish",
    "pack",
)


def test_killed_in_every_stage_it_ends_with_the_same_bytes_and_redoes_nothing(tmp_path, config, corpus, monkeypatch):
    """SIGKILL at a random call of fsync in each stage, one after the other, in ever new processes."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'recipes'}")  # the server imports once, and forks clean processes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.corpus.planted"])
    config = type(config)(**{**vars(config), "cache": str(tmp_path / "data")})
    log, answers, dice = tmp_path / "log", context.Queue(), random.Random(20261124)
    reference = type(config)(**{**vars(config), "cache": str(tmp_path / "other")})
    first = context.Process(target=watched, args=(reference, tmp_path / "other.log", None, answers))
    first.start()
    _, calls = answers.get()
    first.join()
    assert set(STAGES) == set(calls)
    for stage in STAGES:
        killed = context.Process(target=watched, args=(config, log, (stage, dice.randint(1, calls[stage]))))
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, stage
    last = context.Process(target=watched, args=(config, log, None, answers))
    last.start()
    folder, _ = answers.get()
    last.join()
    assert last.exitcode == 0
    assert contents(type(corpus)(folder, {}, ())) == contents(corpus)
    finished = log.read_text().split("\n")[:-1]
    assert sorted(finished) == sorted(set(finished)), "a finished part was done again"
    assert set(finished) <= set((tmp_path / "other.log").read_text().split("\n"))
    assert not list((tmp_path / "data" / "corpus" / "work").rglob("*.partial"))


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path, config, corpus):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert contents(built(config, Ray(), cache=str(tmp_path))) == contents(corpus)
    finally:
        ray.shutdown()


def test_packaged_people_are_held_out_as_prepare_holds_them_out(tmp_path):
    """One rule for both ways to shards: the same plays and debates in the same splits."""
    quick = prepare(DataConfig(sources={"debates": 1.0}, tokenizer_vocab_size=300, cache=str(tmp_path)))
    whole = built(
        CorpusConfig(
            name="debates", packaged=("debates",), tokenizer_vocab_size=300, pack=PackConfig(), cache=str(tmp_path)
        ),
        decontaminate=DecontaminateConfig(benchmarks=False),
    )
    for split in ("train", "validation"):
        shards = ShardSet.open(quick, split)
        expected = {shards.id(number): shards.tokens(number).tolist() for number in range(len(shards))}
        assert {name: found.tokens.tolist() for name, found in documents(whole, split).items()} == expected
