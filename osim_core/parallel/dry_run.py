"""Try a config for any number of ranks without any of them: `recipes/midtrain.py CONFIG --dry-run
--world-size 64`.

The layout is checked as at a real start; then the real model of chosen pipeline stages is built with
tensors that hold no data, under torch's fake process group, so megatron-core itself does the splitting and
its parameters are counted, not estimated. Memory and communication are the formulas of footprint.py.
"""

import itertools
import time
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from osim_core.config import MidtrainConfig
from osim_core.observe.throughput import model_flops, weight_counts
from osim_core.parallel import device
from osim_core.parallel.footprint import (
    GIB,
    Memory,
    bubble_share,
    communication,
    memory,
    stage_layers,
    stage_parameters,
)
from osim_core.parallel.layout import check_layout


@dataclass(frozen=True)
class RankReport:
    """One pipeline stage, seen from its first rank. Bytes; `sent` is per optimizer step."""

    rank: int
    stage: int
    layers: int
    parameters: int
    memory: Memory
    sent: dict[str, float]


@dataclass(frozen=True)
class DryRunReport:
    """What `dry_run` found. `advice` lists single changes that make a config fit; empty where it fits
    already.
    """

    config: MidtrainConfig
    world_size: int
    data_parallel: int
    micro_batches: int
    parameters: int
    tokens_per_step: int
    flops_per_token: float
    bubble: float
    ranks: tuple[RankReport, ...]
    device_memory: float
    advice: tuple[str, ...]
    seconds: float

    @property
    def largest(self) -> RankReport:
        return max(self.ranks, key=lambda rank: rank.memory.total)

    @property
    def fits(self) -> bool:
        return self.largest.memory.total <= self.device_memory

    def table(self) -> Group:
        """For a rich console: what runs where, a table with a column per stage looked at, and the verdict."""
        layout = self.config.layout
        virtual = f" x {layout.virtual_pipeline} virtual" if layout.virtual_pipeline > 1 else ""
        title = (
            f"{self.config.name} on {self.world_size:,} ranks: tensor {layout.tensor}, pipeline "
            f"{layout.pipeline}{virtual}, context {layout.context}, data {self.data_parallel}"
        )
        table = Table("per rank")
        for rank in self.ranks:
            table.add_column(f"stage {rank.stage} (rank {rank.rank:,})", justify="right")
        table.add_row("layers", *(f"{rank.layers}" for rank in self.ranks))
        table.add_row("parameters, counted", *(f"{r.parameters:,}" for r in self.ranks), end_section=True)
        for part in vars(self.ranks[0].memory):
            table.add_row(part, *(_size(getattr(rank.memory, part)) for rank in self.ranks))
        table.add_row("memory", *(_size(rank.memory.total) for rank in self.ranks), style="bold", end_section=True)
        for kind in dict.fromkeys(kind for rank in self.ranks for kind in rank.sent):
            table.add_row(f"sent per step: {kind}", *(_size(rank.sent.get(kind, 0)) for rank in self.ranks))
        return Group(Text(title, style="bold"), table, Text(self.summary()))

    def summary(self) -> str:
        """The verdict in a few plain lines."""
        largest = self.largest.memory
        lines = [
            f"{self.parameters:,} parameters; {self.tokens_per_step:,} tokens per step, {self.micro_batches} "
            f"micro-batches of {self.config.data.sequence_length:,} on each data-parallel rank",
            f"at most {self.flops_per_token / 1e9:.3g} GFLOP per token; pipeline bubble {self.bubble:.1%}; "
            f"checked in {self.seconds:.1f} s",
        ]
        if self.fits:
            lines.append(f"fits: {_size(largest.total)} of {_size(self.device_memory)} on the largest rank")
        else:
            parts = sorted(vars(largest).items(), key=lambda item: -item[1])
            biggest = ", ".join(f"{name} {_size(size)}" for name, size in parts[:3])
            lines.append(f"DOES NOT FIT: {_size(largest.total)} of {_size(self.device_memory)} ({biggest})")
            lines += [f"  {advice}" for advice in self.advice]
        return "\n".join(lines)


def dry_run(config: MidtrainConfig, world_size: int, device_memory_gib: float = 80.0) -> DryRunReport:
    """Check `config` on `world_size` ranks and size its first, middle and last pipeline stage.

    Raises ValueError where the layout does not divide the world or the model, where a row is longer than
    the model's positions, and inside a job that torchrun started (the dry run makes process groups of its
    own).
    """
    started = time.perf_counter()
    if dist.is_initialized():
        raise ValueError("--dry-run makes its own process groups; run it as one process, without torchrun")
    data_parallel = _check(config, world_size)
    micro_batches = config.train.global_batch_rows // data_parallel
    recomputed = _recomputed(config)
    device.install()
    pipeline = config.layout.pipeline
    ranks = []
    for stage in sorted({0, pipeline // 2, pipeline - 1}):
        rank = stage * (world_size // pipeline)  # pipeline is the outermost dimension of megatron-core's ranks
        parameters = count_parameters(config, rank, world_size)
        expected, _ = stage_parameters(config, stage)
        assert parameters == expected, f"stage {stage}: {parameters} parameters built, {expected} by formula"
        ranks.append(
            RankReport(
                rank=rank,
                stage=stage,
                layers=stage_layers(config.layout, config.model.num_layers),
                parameters=parameters,
                memory=memory(config, data_parallel, stage, recomputed, micro_batches),
                sent=communication(config, data_parallel, stage, recomputed, micro_batches),
            )
        )
    length, rows = config.data.sequence_length, config.train.global_batch_rows
    limit = device_memory_gib * GIB
    over = max(rank.memory.total for rank in ranks) > limit
    return DryRunReport(
        config=config,
        world_size=world_size,
        data_parallel=data_parallel,
        micro_batches=micro_batches,
        parameters=weight_counts(config.model).total,
        tokens_per_step=length * rows,
        flops_per_token=model_flops(config.model, length, length**2, length) / length,
        bubble=bubble_share(config.layout, micro_batches),
        ranks=tuple(ranks),
        device_memory=limit,
        advice=tuple(_advice(config, world_size, limit)) if over else (),
        seconds=time.perf_counter() - started,
    )


def count_parameters(config: MidtrainConfig, rank: int, world_size: int) -> int:
    """Build the model chunks of one rank without data or peers and count their parameters.

    Fake tensors, unlike the meta device, also cover modules that name their device, so nothing is allocated
    on a machine with GPUs either. FP8 only changes how matrices multiply: the bf16 model has the same
    parameters, and building it needs no Transformer Engine.
    """
    from megatron.core import parallel_state

    from osim_core.model.build import build_model

    layout = config.layout
    virtual = layout.virtual_pipeline if layout.virtual_pipeline > 1 else None
    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=virtual,
            context_parallel_size=layout.context,
            create_gloo_process_groups=False,  # they would wait for peers that do not exist
        )
        with FakeTensorMode():
            chunks = build_model(config.model, layout, precision)
        return sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def _check(config: MidtrainConfig, world_size: int) -> int:
    """The data-parallel size. Raises ValueError as `dry_run` does."""
    length, positions = config.data.sequence_length, config.model.max_position_embeddings
    if length > positions:
        raise ValueError(
            f"data.sequence_length {length} is longer than model.max_position_embeddings {positions}; "
            f"shorten the rows or set model.rope_scaling with the longer context"
        )
    if world_size < 1:
        raise ValueError(f"--world-size {world_size}: give the number of ranks, 1 or more")
    return check_layout(config.layout, config.model, world_size, config.train.global_batch_rows, length)


def _recomputed(config: MidtrainConfig) -> frozenset[str]:
    """The modules that megatron-core recomputes in this config, or {"full"}; from its real configuration."""
    device.install()
    from osim_core.model.build import transformer_config

    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    built = transformer_config(config.model, config.layout, precision)
    if built.recompute_granularity == "full":
        return frozenset({"full"})
    return frozenset(built.recompute_modules) if built.recompute_granularity == "selective" else frozenset()


def _advice(config: MidtrainConfig, world_size: int, limit: float) -> list[str]:
    """The smallest sets of layout changes that fit this world size and this memory, cheapest knobs first."""
    layout = config.layout
    knobs: dict[str, dict[str, Any]] = {
        "distributed-optimizer True": {"distributed_optimizer": True},
        "sequence-parallel True": {"sequence_parallel": True},
        "recompute selective": {"recompute": "selective"},
        f"tensor {2 * layout.tensor}": {"tensor": 2 * layout.tensor},
        f"context {2 * layout.context}": {"context": 2 * layout.context},
        "recompute full": {"recompute": "full"},
        f"pipeline {2 * layout.pipeline}": {"pipeline": 2 * layout.pipeline},
    }
    useful = [name for name, change in knobs.items() if replace(layout, **change) != layout]
    for count in range(1, len(useful) + 1):
        fitting = []
        for names in itertools.combinations(useful, count):
            fields = {key: value for name in names for key, value in knobs[name].items()}
            candidate = replace(config, layout=replace(layout, **fields))
            try:
                data_parallel = _check(candidate, world_size)
            except ValueError:
                continue  # these numbers do not divide
            size = _largest(candidate, data_parallel)
            if size <= limit:
                options = " ".join(f"--layout.{name}" for name in names)
                fitting.append(f"{options} fits: {_size(size)}")
        if fitting:
            return fitting[:4]
    return ["no change of the layout fits at this world size; use more ranks or a shorter data.sequence_length"]


def _size(count: float) -> str:
    """Bytes for people: 8.1 GiB, 512.0 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _largest(config: MidtrainConfig, data_parallel: int) -> float:
    """Bytes on the largest rank by formula."""
    micro_batches = config.train.global_batch_rows // data_parallel
    recomputed = _recomputed(config)
    stages = {0, config.layout.pipeline - 1}
    return max(memory(config, data_parallel, stage, recomputed, micro_batches).total for stage in stages)
