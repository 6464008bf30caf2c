"""Start this rank: process groups, parallel layout, seeds. The same call serves torchrun on H100s (NCCL) and on a
laptop (gloo); megatron-core's parallel_state holds the groups afterwards.
"""

import os

import torch

from osim_core.config import LayoutConfig, ModelConfig
from osim_core.parallel import device, quiet


def model_ranks(layout: LayoutConfig) -> int:
    """Ranks that one copy of the model needs."""
    return layout.tensor * layout.pipeline * layout.context


def check_layout(layout: LayoutConfig, model: ModelConfig, world_size: int, rows: int, sequence_length: int) -> int:
    """Validate a layout against a world size and a model; returns the data-parallel size.

    Raises ValueError naming the numbers that do not divide and what to change.
    """
    for name, value in (
        ("layout.tensor", layout.tensor),
        ("layout.pipeline", layout.pipeline),
        ("layout.virtual_pipeline", layout.virtual_pipeline),
        ("layout.context", layout.context),
        ("train.global_batch_rows", rows),
        ("data.sequence_length", sequence_length),
    ):
        if value < 1:
            raise ValueError(f"{name}: {value} is not a positive number")
    if world_size % model_ranks(layout):
        raise ValueError(
            f"layout: world size {world_size} is not a multiple of tensor {layout.tensor} x pipeline "
            f"{layout.pipeline} x context {layout.context} = {model_ranks(layout)}; change --nproc-per-node or "
            "--layout.*"
        )
    data = world_size // model_ranks(layout)
    stages = layout.pipeline * layout.virtual_pipeline
    divisions = (
        ("model.num_heads", model.num_heads, "layout.tensor", layout.tensor),
        ("model.num_kv_heads", model.num_kv_heads, "layout.tensor", layout.tensor),
        ("model.ffn_hidden_size", model.ffn_hidden_size, "layout.tensor", layout.tensor),
        ("model.vocab_size", model.vocab_size, "layout.tensor", layout.tensor),
        ("model.num_layers", model.num_layers, "layout.pipeline x layout.virtual_pipeline", stages),
        ("train.global_batch_rows", rows, "the data-parallel size", data),
    )
    for name, value, by, divisor in divisions:
        if value % divisor:
            raise ValueError(f"layout: {name} {value} is not a multiple of {by} {divisor}; change one of them")
    if model.num_heads % model.num_kv_heads:
        raise ValueError(f"model: num_heads {model.num_heads} is not a multiple of num_kv_heads {model.num_kv_heads}")
    chunk = (2 * layout.context if layout.context > 1 else 1) * (layout.tensor if layout.sequence_parallel else 1)
    if sequence_length % chunk:
        raise ValueError(
            f"layout: data.sequence_length {sequence_length} is not a multiple of {chunk}, which "
            f"context {layout.context} and sequence parallelism over {layout.tensor} ranks ask for"
        )
    if layout.sequence_parallel and layout.tensor == 1:
        raise ValueError("layout: sequence_parallel needs tensor > 1; set --layout.sequence-parallel False")
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        raise ValueError("layout: virtual_pipeline needs pipeline > 1")
    if layout.virtual_pipeline > 1 and (rows // data) % layout.pipeline:
        raise ValueError(
            f"layout: the interleaved schedule needs train.global_batch_rows / data-parallel = "
            f"{rows // data} micro-batches to be a multiple of layout.pipeline {layout.pipeline}"
        )
    return data


def initialize(layout: LayoutConfig, seed: int) -> None:
    """Join the job torchrun started and build megatron-core's groups. Collective; call once, after check_layout.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them; without them this is a
    job of one rank.
    """
    quiet.silence()
    device.install()
    from megatron.core import parallel_state, tensor_parallel

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not torch.distributed.is_initialized():
        if "RANK" in os.environ:
            torch.distributed.init_process_group(device.backend())
        else:
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(device.backend(), store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def world_size() -> int:
    """Ranks of the job torchrun started (1 without torchrun); valid before initialize()."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's global rank; valid before initialize()."""
    return int(os.environ.get("RANK", 0))


def shutdown() -> None:
    """Leave the job: destroy megatron-core's groups and the default group."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
