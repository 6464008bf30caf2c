"""A checkpoint is only continued on the shards and with the model that it was trained with; all ranks say the same."""

from tests.support.models import TINY_QWEN3, random_rows
from tests.update.cases import refusals

ROWS = random_rows(rows=1, length=64, vocab_size=TINY_QWEN3.vocab_size)


def test_other_shards_another_model_and_ranks_that_differ_are_refused(workers, tmp_path):
    first, second = workers(2).run(refusals, rows=ROWS, folder=tmp_path)
    assert first == second
    shards, model, ranks = first
    assert "step-00000002: was trained on other shards than these" in shards and "quarantined" in shards
    assert "step-00000002: holds another model: rope_theta is 1000000.0 there and 5.0 in this config" in model
    assert ranks == "training shards differ between rank 0 and rank 1; give all nodes the same data"
