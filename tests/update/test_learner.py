"""The guard, clipping, weight decay and the count of work."""

import pytest
import torch

from osim_core.config import LayoutConfig
from tests.support.models import TINY_QWEN3, random_rows
from tests.update import cases

ROWS = random_rows(rows=2, length=64, vocab_size=TINY_QWEN3.vocab_size)


@pytest.mark.parametrize("size, layout", [(1, LayoutConfig()), (2, LayoutConfig(tensor=2))], ids=["one", "tp2"])
def test_a_planted_nan_stops_every_rank_before_a_weight_changes_and_dumps_the_batch(workers, tmp_path, size, layout):
    arguments = {"layout": layout, "rows": ROWS, "dump": tmp_path, "on_non_finite": "stop"}
    for result in workers(size).run(cases.update_with_planted_nan, **arguments):
        assert result["raised"].startswith("step 1: loss nan") and "\n" not in result["raised"]
        assert str(tmp_path) in result["raised"] and result["weights_unchanged"]
    dumps = sorted(tmp_path.iterdir())
    assert [path.name for path in dumps] == [f"step1-rank{rank}.pt" for rank in range(size)]
    for path in dumps:
        rows = torch.load(path)
        assert [torch.equal(row["tokens_T"], truth.tokens_T) for row, truth in zip(rows, ROWS, strict=True)] == [
            True
        ] * 2


def test_skip_leaves_every_weight_bit_for_bit_and_says_so(workers, tmp_path):
    arguments = {"layout": LayoutConfig(tensor=2), "rows": ROWS, "dump": tmp_path, "on_non_finite": "skip"}
    for result in workers(2).run(cases.update_with_planted_nan, **arguments):
        assert result == {"raised": None, "updated": False, "weights_unchanged": True}


def test_clipping_equals_torch(workers):
    whole, clipped = (workers(1).run(cases.clip, rows=ROWS, clip_norm=limit)[0] for limit in (0.0, 0.05))
    mine = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in whole["gradients"]]
    for parameter, gradient in zip(mine, whole["gradients"], strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(mine, 0.05).item()
    assert norm > 0.1, "little to clip: the test says nothing"
    assert [whole["norm"], clipped["norm"]] == pytest.approx([norm, norm], rel=1e-5)
    for parameter, gradient in zip(mine, clipped["gradients"], strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-9)


def test_weight_decay_shrinks_matrices_and_spares_norms(workers):
    [result] = workers(1).run(cases.decay, rows=ROWS)
    for name, before in result["before"].items():
        change = result["with"][name] - result["without"][name]
        expected = torch.zeros_like(before) if "norm" in name else -1e-3 * 0.5 * before
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=2e-7, msg=name)
    assert sum("norm" in name for name in result["before"]) == 4 * TINY_QWEN3.num_layers + 1


@pytest.mark.parametrize("size", [1, 2])
def test_work_counts_documents_and_not_padding(workers, size):
    lengths = [n for row in ROWS for n in row.cu_seqlens.diff()[row.sources_S >= 0].tolist()]
    loss_tokens = sum(int((row.weights["ce"] != 0).sum()) for row in ROWS)
    for result in workers(size).run(cases.count, rows=ROWS):
        assert result[:4] == [sum(lengths), sum(n * n for n in lengths), loss_tokens, 128]
        assert result[4] == pytest.approx(10 / 128)  # five slots of each row
