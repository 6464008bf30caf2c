"""Benchmarks: padded contenders hold the packed documents, tiny cases run and record, committed rows are whole."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as dispatcher
from benchmarks import midtrain
from benchmarks.ledger import RESULTS
from osim_core.config import DataConfig, LayoutConfig
from osim_core.corpus.loader import PackedLoader
from osim_core.corpus.shards import ShardSet
from tests.support.documents import make_documents, write_shards
from tests.support.models import TINY_QWEN3, random_rows

ROWS = random_rows(rows=3, length=128, vocab_size=96)


def documents() -> list[midtrain.Document]:
    return midtrain.documents_of(ROWS)


@pytest.mark.parametrize("width", [None, 64])
def test_a_padded_batch_holds_the_packed_documents_and_padding_weighs_nothing(width):
    batch = midtrain.pad(documents(), width)
    wide = width or max(len(document.tokens) for document in documents())
    assert set(batch.cu_seqlens.diff().tolist()) == {wide}
    assert torch.equal(batch.positions_T.view(-1, wide), torch.arange(wide).expand(len(documents()), wide))
    padded = [field.view(-1, wide) for field in (batch.tokens_T, batch.labels_T, batch.weights["ce"])]
    for document, tokens, labels, weights in zip(documents(), *padded, strict=True):
        used = len(document.tokens)
        assert torch.equal(tokens[:used], document.tokens) and torch.equal(labels[:used], document.labels)
        assert torch.equal(weights[:used], document.weights)
        assert not weights[used:].any() and not tokens[used:].any()


def test_documents_of_packed_rows_leave_out_the_padding_and_nothing_else():
    real = sum(int(row.cu_seqlens.diff()[row.sources_S >= 0].sum()) for row in ROWS)
    assert sum(len(document.tokens) for document in documents()) == real < 3 * 128
    assert sum(document.weights.sum() for document in documents()) == sum(row.weights["ce"].sum() for row in ROWS)


def test_transformers_labels_stand_on_the_token_that_our_weight_predicts():
    for document, feature in zip(documents(), midtrain.features_of(documents()), strict=True):
        expected = {t + 1: int(document.tokens[t + 1]) for t in document.weights.nonzero().flatten().tolist()}
        assert {t: label for t, label in enumerate(feature["labels"]) if label != -100} == expected
        assert feature["input_ids"] == document.tokens.tolist()


@pytest.mark.parametrize("value", [1.1, float("nan")])
def test_unequal_losses_stop_the_benchmark(value):
    midtrain.check_equal("loss", {midtrain.PACKED: 1.0, midtrain.ROW: 1.0 + 1e-6}, 1e-5)
    with pytest.raises(ValueError, match="padded to row"):
        midtrain.check_equal("loss", {midtrain.PACKED: 1.0, midtrain.ROW: value}, 1e-5)


def test_the_survey_counts_what_the_loader_will_deliver(tmp_path):
    folder = write_shards(tmp_path / "shards", make_documents(60, vocab_size=96, longest=40), vocab_size=96)
    data = DataConfig(cache=str(tmp_path), sequence_length=64, overlong="truncate")
    shards = ShardSet.open(folder, "train")
    counts, longest, padding = midtrain.survey(midtrain.Case("smoke", TINY_QWEN3, data, rows=2, compute=""), shards)
    loader = PackedLoader(
        shards, data, split="train", sequence_length=64, global_batch_rows=2, seed=midtrain.SEED, rank=0, world=1
    )
    steps = [midtrain.documents_of(loader.batch(step)) for step in range(len(counts))]
    assert counts.tolist() == [len(step) for step in steps]
    assert longest.tolist() == [max(len(document.tokens) for document in step) for step in steps]
    tokens = sum(len(document.tokens) for step in steps for document in step)
    assert padding[midtrain.LONGEST] == pytest.approx(1 - tokens / sum(midtrain.pad(step).num_tokens for step in steps))
    assert padding[midtrain.PACKED] == pytest.approx(1 - tokens / (len(steps) * 2 * 64))


def test_an_even_sample_takes_the_middle_of_every_stratum():
    values = np.random.default_rng(0).permutation(90)
    assert values[midtrain.even_sample(values, 3)].tolist() == [15, 45, 75]


def measure(folder: str, model, data) -> dict:
    """On a rank: the contenders, two timed steps of a tiny model."""
    from megatron.core import parallel_state

    from osim_core.parallel.layout import initialize

    initialize(LayoutConfig(), seed=1)
    try:
        case = midtrain.Case("smoke", model, data, rows=2, compute="")
        return midtrain.measure(case, Path(folder), repeats=2, warm_up=1)
    finally:
        parallel_state.destroy_model_parallel()


def test_all_midtrain_contenders_train_on_the_same_documents(workers, tmp_path):
    folder = write_shards(tmp_path / "shards", make_documents(60, vocab_size=96, longest=40), vocab_size=96)
    data = DataConfig(cache=str(tmp_path), sequence_length=64, overlong="truncate")
    model = replace(TINY_QWEN3, num_layers=2)
    (results,) = workers(1).run(measure, folder=str(folder), model=model, data=data)
    assert list(results) == [midtrain.PACKED, midtrain.LONGEST, midtrain.ROW, midtrain.TRAINER]
    packed, longest, row, trainer = results.values()
    assert packed["padding_share"] < longest["padding_share"] <= row["padding_share"]
    assert longest["padding_share"] == trainer["padding_share"]
    for result in results.values():
        assert result["first_loss"] == pytest.approx(packed["first_loss"], rel=1e-5)
        assert result["runs"] == 2 and result["tokens_per_second_p20"] <= result["tokens_per_second_p80"]
        assert result["tokens_per_step"] == packed["tokens_per_step"] > 0


def run_benchmark(name: str, arguments: list[str]) -> int:
    """On a rank, because benchmarks import megatron-core behind the device module."""
    return dispatcher.main([name, *arguments])


@pytest.mark.parametrize(
    ("name", "arguments", "rows"),
    [
        ("packing", ["--documents", "2000", "--capacities", "256", "--repeats", "1", "--skip-trl"], 1),
        ("loader", ["--tokens", "60000", "--length", "512", "--passes", "1"], 4),
    ],
)
def test_a_tiny_case_runs_and_records_its_rows(workers, tmp_path, name, arguments, rows):
    out = tmp_path / "rows.jsonl"
    assert workers(1).run(run_benchmark, name=name, arguments=[*arguments, "--out", str(out)]) == [0]
    recorded = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(recorded) == rows and {row["op"] for row in recorded} == {name}


@pytest.mark.parametrize("name", dispatcher.benchmarks())
def test_every_benchmark_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        dispatcher.main([name, "--help"])
    assert stopped.value.code == 0 and "--out" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_say_what_was_measured_on_what(path):
    assert path.stem in dispatcher.benchmarks()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        assert row["op"] == path.stem and row["date"] and row["commit"]
        assert row["hardware"]["cpu"] and row["hardware"]["cores"] >= 1 and "gpu" in row["hardware"]
        assert {"python", "torch"} <= row["versions"].keys()
        assert {"dtype"} <= row["case"].keys()
        assert row["result"]["p50_s"] > 0 if "p50_s" in row["result"] else len(row["result"]) > 1
        figures = [value for value in row["result"].values() if isinstance(value, int | float)]
        assert figures and all(math.isfinite(value) for value in figures)
