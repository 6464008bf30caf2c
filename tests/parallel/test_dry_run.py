"""The dry run counts what megatron-core really builds, and says what fits.

It runs in a process of its own: it makes fake process groups, and the device module it installs is for good.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch

from configs import QWEN3_8B, SMOLLM2_135M
from osim_core.config import (
    DataConfig,
    LayoutConfig,
    MidtrainConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from osim_core.parallel.dry_run import DryRunReport, count_parameters, dry_run
from osim_core.parallel.footprint import (
    GIB,
    bubble_share,
    chunks_in_flight,
    communication,
    layer_activations,
    memory,
)
from tests.support.models import TINY_QWEN3, random_rows

# parameters in the published safetensors files, so a count that does not come from this code
PUBLISHED = [(QWEN3_8B, 2, 8_190_735_360), (SMOLLM2_135M, 3, 134_515_008)]


def config(model: ModelConfig, rows: int = 8, length: int = 64, precision: str = "bf16", **layout) -> MidtrainConfig:
    return MidtrainConfig(
        name="test",
        model=model,
        data=DataConfig(sequence_length=length),
        layout=LayoutConfig(**layout),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(steps=1, global_batch_rows=rows, precision=precision),
    )


@pytest.fixture(scope="module")
def elsewhere():
    """elsewhere(function, *arguments) -> its result, from a fresh process that imports megatron-core once."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=240)


@pytest.mark.parametrize(("model", "tensor", "published"), PUBLISHED, ids=["qwen3-8b", "smollm2-135m"])
def test_parameters_are_the_published_ones(elsewhere, model, tensor, published):
    assert elsewhere(count_parameters, config(model), 0, 1) == published


@pytest.mark.parametrize(("model", "tensor", "published"), PUBLISHED, ids=["qwen3-8b", "smollm2-135m"])
def test_tensor_and_pipeline_ranks_add_up_to_the_model(elsewhere, model, tensor, published):
    """Norms are on every tensor rank, a tied embedding on both outer stages, everything else once."""
    split = config(model, tensor=tensor, pipeline=2, sequence_parallel=True)
    ranks = [elsewhere(count_parameters, split, rank, 2 * tensor) for rank in range(2 * tensor)]
    norms = model.num_layers * (2 * model.hidden_size + 2 * model.head_dim * model.qk_norm) + model.hidden_size
    twice = model.vocab_size * model.hidden_size if model.tied_embeddings else 0
    assert sum(ranks) == published + (tensor - 1) * norms + twice


def test_qwen3_8b_on_8_64_and_1024_ranks(elsewhere):
    runs = {
        8: config(QWEN3_8B, rows=8, length=16_384, tensor=2, sequence_parallel=True, recompute="full"),
        64: config(QWEN3_8B, 32, 16_384, "fp8", tensor=2, sequence_parallel=True, recompute="full"),
        1024: config(
            QWEN3_8B, 256, 32_768, tensor=2, pipeline=4, virtual_pipeline=3, context=2, sequence_parallel=True
        ),
    }
    for world_size, wanted in runs.items():
        report: DryRunReport = elsewhere(dry_run, wanted, world_size)
        assert report.parameters == 8_190_735_360
        layout = wanted.layout
        assert report.data_parallel * layout.tensor * layout.pipeline * layout.context == world_size
        assert report.tokens_per_step == wanted.train.global_batch_rows * wanted.data.sequence_length
        assert report.fits and not report.advice, report.summary()
        assert [rank.stage for rank in report.ranks] == ([0] if layout.pipeline == 1 else [0, 2, 3])
    assert [rank.rank for rank in report.ranks] == [0, 512, 768]
    layer = (2 * 32 + 2 * 8) * 128 * 4096 + 3 * 4096 * 12_288
    assert report.ranks[0].parameters == 9 * (layer // 2 + 2 * 4096 + 2 * 128) + 151_936 * 4096 // 2


def test_what_does_not_fit_is_said_with_a_change_that_does(elsewhere):
    greedy = config(QWEN3_8B, rows=8, length=16_384, distributed_optimizer=False)
    report: DryRunReport = elsewhere(dry_run, greedy, 8)
    assert not report.fits
    assert "DOES NOT FIT" in report.summary() and "optimizer 91.5 GiB" in report.summary()
    assert "--layout.distributed-optimizer True --layout.recompute full" in report.advice[0]
    mended = replace(greedy, layout=LayoutConfig(distributed_optimizer=True, recompute="full"))
    assert elsewhere(dry_run, mended, 8).fits
    assert not elsewhere(dry_run, mended, 8, 40.0).fits  # the same on a 40 GiB device


@pytest.mark.parametrize(
    ("change", "world_size", "words"),
    [
        ({"tensor": 2}, 3, "world size 3"),
        ({"tensor": 16}, 16, "num_heads 8"),
        ({"tensor": 8}, 8, "num_kv_heads 4"),
        ({"pipeline": 3}, 3, "num_layers 4"),
        ({"length": 66, "context": 2}, 2, "sequence_length 66"),
        ({"length": 512}, 1, "max_position_embeddings 256"),
        ({"rows": 6}, 4, "global_batch_rows 6"),
    ],
)
def test_a_layout_that_does_not_divide_is_one_clear_line(elsewhere, change, world_size, words):
    with pytest.raises(ValueError, match=words) as caught:
        elsewhere(dry_run, config(TINY_QWEN3, **change), world_size)
    assert "\n" not in str(caught.value)


def saved_bytes(wanted: MidtrainConfig) -> int:
    """Bytes of distinct storages that a real forward pass of one row saves for backward, weights left out."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from osim_core.parallel import device

    device.install()
    from megatron.core import parallel_state, tensor_parallel

    from osim_core.model.build import build_model
    from osim_core.model.packed_row import PackedRow

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    try:
        (chunk,) = build_model(wanted.model, wanted.layout, wanted.train.precision)
        weights = set()
        for parameter in chunk.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
            weights.add(parameter.untyped_storage().data_ptr())
        (batch,) = random_rows(1, wanted.data.sequence_length, wanted.model.vocab_size)
        row = PackedRow.of(batch, wanted.model, torch.device("cpu"))
        outside = {tensor.untyped_storage().data_ptr() for tensor in (row.cos_LD, row.sin_LD, batch.tokens_T)}
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights | outside:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        kept = []  # the graph stays alive, so no storage is freed and counted twice
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept.append(chunk(batch.tokens_T[None], batch.positions_T[None], None, packed_seq_params=row, labels=None))
        return sum(storages.values())
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_activation_formula_against_a_real_forward_pass(elsewhere, recompute):
    """Per layer, from the difference of a 4- and a 2-layer model in fp32. With full recomputation the formula is
    exact. Without, the CPU's plain norms and SwiGLU save more than the fused ones the formula is for."""
    wanted = config(TINY_QWEN3, length=128, precision="fp32", recompute=recompute)
    shallow = replace(wanted, model=replace(TINY_QWEN3, num_layers=2))
    measured = (elsewhere(saved_bytes, wanted) - elsewhere(saved_bytes, shallow)) / 2
    formula = layer_activations(wanted, frozenset({"full"} if recompute == "full" else ()))
    if recompute == "full":
        assert measured == pytest.approx(formula, rel=0.01)
    else:
        assert formula <= measured <= 1.6 * formula


def test_memory_is_split_as_the_layout_says():
    whole = config(QWEN3_8B, rows=64, length=8192)
    alone = memory(whole, 1, 0, frozenset(), 64)
    assert alone.weights == 2 * 8_190_735_360
    assert alone.gradients == 4 * 8_190_735_360
    assert alone.optimizer == 12 * 8_190_735_360
    assert memory(whole, 8, 0, frozenset(), 8).optimizer == alone.optimizer / 8
    unsharded = replace(whole, layout=LayoutConfig(distributed_optimizer=False))
    assert memory(unsharded, 8, 0, frozenset(), 8).optimizer == alone.optimizer
    single = replace(whole, train=replace(whole.train, precision="fp32"))
    assert memory(single, 1, 0, frozenset(), 64).optimizer == 8 * 8_190_735_360  # weights are their own master
    with_sp = config(QWEN3_8B, rows=64, length=8192, tensor=4, sequence_parallel=True)
    without = config(QWEN3_8B, rows=64, length=8192, tensor=4)
    none = frozenset()
    assert layer_activations(with_sp, none) == pytest.approx(layer_activations(whole, none) / 4)
    extra = layer_activations(without, none) - layer_activations(with_sp, none)
    assert extra == 8192 * 4 * 4096 * 2 * (1 - 1 / 4)  # two norms' inputs and outputs, no longer split


def test_pipeline_holds_and_waits_as_published():
    plain, interleaved = LayoutConfig(pipeline=4), LayoutConfig(pipeline=4, virtual_pipeline=2)
    assert [chunks_in_flight(plain, stage, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert chunks_in_flight(plain, 0, 2) == 2  # never more than there are
    assert [chunks_in_flight(interleaved, stage, 16) for stage in range(4)] == [11, 9, 7, 5]
    assert bubble_share(plain, 12) == 3 / 15
    assert bubble_share(interleaved, 12) == 3 / 27
    assert bubble_share(LayoutConfig(), 5) == 0


def test_communication_of_each_kind():
    """Hand-computed for one layer-sized case: l 128 tokens, D 64, bf16, 4 layers, 2 micro-batches."""
    hidden = 128 * 64 * 2
    tensor = config(TINY_QWEN3, length=128, tensor=2)
    assert communication(tensor, 1, 0, frozenset(), 2) == {"tensor": 2 * hidden / 2 * (4 * 8 + 4)}
    sharded = config(TINY_QWEN3, length=128, tensor=2, sequence_parallel=True)
    assert communication(sharded, 1, 0, frozenset(), 2) == {"tensor": 2 * hidden / 2 * (4 * 10 + 3)}
    pipeline = config(TINY_QWEN3, length=128, pipeline=4)
    sent = [communication(pipeline, 1, stage, frozenset(), 2)["pipeline"] for stage in range(4)]
    assert sent == [2 * hidden, 4 * hidden, 4 * hidden, 2 * hidden]
    context = config(TINY_QWEN3, length=128, context=2)
    keys_values = 2 * 128 * 4 * 16 * 2
    assert communication(context, 1, 0, frozenset(), 2)["context"] == 2 * 4 * 2 * keys_values / 2
    data = config(TINY_QWEN3, length=128)
    elements = memory(data, 1, 0, frozenset(), 1).weights / 2
    assert communication(data, 4, 0, frozenset(), 2) == {"data": 3 / 4 * elements * (4 + 2)}
    assert communication(data, 1, 0, frozenset(), 2) == {}


def test_table_reads_as_text(elsewhere):
    from rich.console import Console

    report: DryRunReport = elsewhere(dry_run, config(TINY_QWEN3, tensor=2, pipeline=2), 4)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    for words in ("stage 0 (rank 0)", "stage 1 (rank 2)", "sent per step: pipeline", "fits:", "bubble 11.1%"):
        assert words in text
    assert f"{report.ranks[0].parameters:,}" in text
    assert report.largest.memory.total < 80 * GIB
