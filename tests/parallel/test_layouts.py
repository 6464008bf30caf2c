"""Loss and gradients do not depend on how the model is spread over ranks, nor on packing or micro-batch splits.

The truth is transformers' Qwen3 run on every document alone; one rank is held against it and every layout against
one rank. Gradients are compared tensor by tensor in Hugging Face names.
"""

import itertools

import pytest
import torch

from osim_core.config import LayoutConfig
from tests.parallel.cases import train
from tests.support.models import TINY_QWEN3, random_rows

ROWS = random_rows(rows=4, length=64, vocab_size=TINY_QWEN3.vocab_size)

LAYOUTS = {
    "tp2": (2, LayoutConfig(tensor=2)),
    "tp2-sp": (2, LayoutConfig(tensor=2, sequence_parallel=True)),
    "pp2": (2, LayoutConfig(pipeline=2)),
    "pp2-interleaved": (2, LayoutConfig(pipeline=2, virtual_pipeline=2)),
    "cp2": (2, LayoutConfig(context=2, distributed_optimizer=False)),
    "dp2": (2, LayoutConfig(distributed_optimizer=False)),
    "dp2-distributed-optimizer": (2, LayoutConfig()),
    "dp2-overlap": (2, LayoutConfig(overlap=True)),
    "tp2-pp2-sp": (4, LayoutConfig(tensor=2, pipeline=2, sequence_parallel=True)),
    "tp2-cp2-sp": (4, LayoutConfig(tensor=2, context=2, sequence_parallel=True, distributed_optimizer=False)),
    "cp2-dp2": (4, LayoutConfig(context=2)),
    "pp2-dp2-interleaved": (4, LayoutConfig(pipeline=2, virtual_pipeline=2)),
    "tp2-dp2-recompute": (4, LayoutConfig(tensor=2, sequence_parallel=True, recompute="full")),
    "pp2-cp2-selective": (4, LayoutConfig(pipeline=2, context=2, recompute="selective")),
}


def worst_difference(gradients: dict, truth: dict) -> tuple[float, str]:
    """Largest max|d| / max|g| over tensors, and the tensor's name."""
    assert gradients.keys() == truth.keys()
    return max(
        ((g - truth[name]).abs().max().item() / truth[name].abs().max().item(), name) for name, g in gradients.items()
    )


@pytest.fixture(scope="module")
def one_rank(workers):
    """The reference run: one rank, every row a micro-batch. No distributed optimizer, so all gradients are there."""
    return workers(1).run(
        train, model=TINY_QWEN3, layout=LayoutConfig(distributed_optimizer=False), rows=ROWS, gradients=True
    )[0]


def test_packed_rows_equal_transformers_on_each_document_alone(one_rank):
    from transformers import Qwen3ForCausalLM
    from transformers.models.qwen3 import Qwen3Config

    from tests.support.reference import hugging_face_loss_and_gradients

    loss, gradients = hugging_face_loss_and_gradients(TINY_QWEN3, ROWS, Qwen3Config, Qwen3ForCausalLM)
    assert one_rank["loss"][0] == pytest.approx(loss, abs=2e-6)
    difference, name = worst_difference(one_rank["gradients"], gradients)
    assert difference < 2e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_rank(workers, one_rank, layout):
    size, config = LAYOUTS[layout]
    # the distributed optimizer leaves each data- or context-parallel rank only its shard of the summed gradients
    sharded_gradients = config.distributed_optimizer and size > config.tensor * config.pipeline
    results = workers(size).run(train, model=TINY_QWEN3, layout=config, rows=ROWS, gradients=not sharded_gradients)
    for result in results:
        assert result["loss"] == pytest.approx(one_rank["loss"], abs=5e-6)
        assert result["norm"] == pytest.approx(one_rank["norm"], rel=2e-5)
        for mine, truth in zip(result["by_source"], one_rank["by_source"], strict=True):
            assert mine == pytest.approx(truth, abs=5e-6)
    if not sharded_gradients:
        difference, name = worst_difference(results[0]["gradients"], one_rank["gradients"])
        assert difference < 1e-5, name


@pytest.mark.parametrize("layout", ["tp2-sp", "pp2", "cp2", "dp2-distributed-optimizer"])
def test_bf16_layout_equals_one_rank_within_its_precision(workers, layout):
    size, config = LAYOUTS[layout]
    runs = [
        workers(n).run(train, model=TINY_QWEN3, layout=c, rows=ROWS, precision="bf16")[0]
        for n, c in ((1, LayoutConfig()), (size, config))
    ]
    # bf16 keeps 8 bits: activations differ by 2^-8 relative, a mean over hundreds of tokens by much less
    assert runs[1]["loss"] == pytest.approx(runs[0]["loss"], abs=4e-3)
    assert runs[1]["norm"] == pytest.approx(runs[0]["norm"], rel=2e-2)


def test_loss_does_not_depend_on_how_rows_are_grouped(workers, one_rank):
    """The same documents in two rows twice as long, in another order: same loss, same gradients."""
    from tests.support.models import merge_rows

    merged = [merge_rows(ROWS[2], ROWS[0]), merge_rows(ROWS[1], ROWS[3])]
    result = workers(1).run(
        train, model=TINY_QWEN3, layout=LayoutConfig(distributed_optimizer=False), rows=merged, gradients=True
    )[0]
    assert result["loss"] == pytest.approx(one_rank["loss"], abs=2e-6)
    difference, name = worst_difference(result["gradients"], one_rank["gradients"])
    assert difference < 1e-5, name


def test_every_order_of_micro_batches_gives_the_same_loss(workers, one_rank):
    for order in itertools.islice(itertools.permutations(range(4)), 5, 20, 7):
        rows = [ROWS[i] for i in order]
        result = workers(1).run(train, model=TINY_QWEN3, layout=LayoutConfig(), rows=rows, steps=2)[0]
        assert result["loss"] == pytest.approx(one_rank["loss"][:2], abs=2e-6)


def test_overlap_of_documents_would_be_noticed(one_rank):
    """The planted fault: merging two documents' borders changes the loss by far more than the tolerances above."""
    from dataclasses import replace

    from transformers import Qwen3ForCausalLM
    from transformers.models.qwen3 import Qwen3Config

    from tests.support.reference import hugging_face_loss_and_gradients

    borders = ROWS[0].cu_seqlens
    leaky = [
        replace(
            ROWS[0],
            cu_seqlens=torch.cat([borders[:1], borders[2:]]),
            sources_S=ROWS[0].sources_S[1:],
            documents_S=ROWS[0].documents_S[1:],
        ),
        *ROWS[1:],
    ]
    loss, _ = hugging_face_loss_and_gradients(TINY_QWEN3, leaky, Qwen3Config, Qwen3ForCausalLM)
    assert abs(loss - one_rank["loss"][0]) > 1e-4
