"""The objective: global normalisers, so that it does not matter how rows are grouped."""

from dataclasses import replace

import pytest
import torch

from tests.support.models import merge_rows, random_rows
from tests.update.cases import streams

FIRST, SECOND = random_rows(rows=2, length=48, vocab_size=50)


def test_two_micro_batches_equal_one(workers):
    [two] = workers(1).run(streams, batches=[FIRST, SECOND])
    [one] = workers(1).run(streams, batches=[merge_rows(FIRST, SECOND)])
    weight = float(FIRST.weights["ce"].sum() + SECOND.weights["ce"].sum())
    assert two["totals"] == one["totals"] == {"ce": weight, "policy": 0.0, "kl": 0.0}
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert torch.equal(two["gradient"], one["gradient"])


def test_the_normaliser_sums_over_data_parallel_ranks(workers):
    results = workers(2).run(streams, batches=[FIRST])  # both ranks hold the same row
    assert [r["totals"]["ce"] for r in results] == [2 * float(FIRST.weights["ce"].sum())] * 2


def test_the_scale_of_the_weights_does_not_matter(workers):
    scaled = [replace(row, weights={"ce": 3 * row.weights["ce"]}) for row in (FIRST, SECOND)]
    [plain], [tripled] = (workers(1).run(streams, batches=rows) for rows in ([FIRST, SECOND], scaled))
    assert tripled["loss"] == pytest.approx(plain["loss"], rel=1e-6)


def test_an_unknown_stream_is_named(workers):
    strange = replace(FIRST, weights={"advantage": FIRST.weights["ce"]})
    assert workers(1).run(streams, batches=[strange])[0].startswith("loss stream 'advantage' is unknown; known")


def test_a_step_without_a_weight_is_refused_instead_of_dividing_by_zero(workers):
    empty = replace(FIRST, weights={"ce": torch.zeros(48)})
    assert workers(1).run(streams, batches=[empty, empty])[0].startswith("this step has no token with a loss weight")


def test_one_rank_may_have_no_weight(workers):
    [result] = workers(1).run(streams, batches=[FIRST, replace(SECOND, weights={"ce": torch.zeros(48)})])
    assert result["loss"] > 0 and torch.isfinite(result["gradient"]).all()
