"""Every layout that cannot work is refused in one line that names the numbers and what to change."""

from dataclasses import replace

import pytest

from osim_core.config import LayoutConfig
from osim_core.parallel.layout import check_layout, model_ranks
from tests.support.models import TINY_QWEN3  # 8 heads, 4 key-value heads, 4 layers, FFN 160, vocabulary 96


def check(world=1, rows=8, length=64, model=None, **layout) -> int:
    return check_layout(LayoutConfig(**layout), replace(TINY_QWEN3, **(model or {})), world, rows, length)


def test_what_is_left_of_the_world_is_data_parallel():
    assert check(world=16, tensor=2, pipeline=2, context=2, sequence_parallel=True) == 2
    assert model_ranks(LayoutConfig(tensor=2, pipeline=3, context=4)) == 24


@pytest.mark.parametrize(
    "options, message",
    [
        ({"world": 3, "tensor": 2}, r"world size 3 is not a multiple of tensor 2 x pipeline 1 x context 1 = 2"),
        ({"world": 1, "tensor": 2}, r"world size 1 is not a multiple .* change --nproc-per-node or --layout"),
        ({"world": 8, "tensor": 8}, r"model\.num_kv_heads 4 is not a multiple of layout\.tensor 8"),
        ({"world": 3, "tensor": 3}, r"model\.num_heads 8 is not a multiple of layout\.tensor 3"),
        ({"world": 2, "tensor": 2, "model": {"ffn_hidden_size": 161}}, r"model\.ffn_hidden_size 161"),
        ({"world": 2, "tensor": 2, "model": {"vocab_size": 97}}, r"model\.vocab_size 97"),
        ({"world": 3, "pipeline": 3}, r"model\.num_layers 4 is not a multiple of layout\.pipeline x layout\.virtual"),
        ({"world": 3}, r"train\.global_batch_rows 8 is not a multiple of the data-parallel size 3"),
        ({"model": {"num_kv_heads": 3}}, r"num_heads 8 is not a multiple of num_kv_heads 3"),
        ({"world": 2, "context": 2, "length": 66}, r"data\.sequence_length 66 is not a multiple of 4"),
        ({"world": 2, "tensor": 2, "sequence_parallel": True, "length": 65}, r"data\.sequence_length 65"),
        ({"sequence_parallel": True}, r"sequence_parallel needs tensor > 1; set --layout\.sequence-parallel False"),
        ({"virtual_pipeline": 2}, r"virtual_pipeline needs pipeline > 1"),
        (
            {"world": 2, "pipeline": 2, "virtual_pipeline": 2, "rows": 3},
            r"global_batch_rows / data-parallel = 3 micro-batches to be a multiple of layout\.pipeline 2",
        ),
        ({"tensor": 0}, r"layout\.tensor: 0 is not a positive number"),
        ({"rows": 0}, r"train\.global_batch_rows: 0 is not a positive number"),
        ({"length": -1}, r"data\.sequence_length: -1 is not a positive number"),
    ],
)
def test_a_layout_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(**options)
    assert "\n" not in str(raised.value)
