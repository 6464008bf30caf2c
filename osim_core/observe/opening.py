"""The first lines a person sees: what runs, where, on which data; then the kernels, as each is first used."""

import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from osim_core.config import MidtrainConfig
from osim_core.observe.run_dir import is_rank_zero
from osim_core.observe.throughput import weight_counts
from osim_core.parallel import device, layout


def opening(config: MidtrainConfig, manifest: dict[str, Any], run: Path, start: int) -> list[str]:
    """The lines, as plain text. `manifest` is the prepared corpus's, `start` the step a resumed run goes on from."""
    model, spread, train = config.model, config.layout, config.train
    ranks = layout.world_size()
    parts = [f"tensor {spread.tensor}", f"pipeline {spread.pipeline}", f"context {spread.context}"]
    parts.append(f"data {ranks // layout.model_ranks(spread)}")
    if spread.sequence_parallel:
        parts.append("sequence parallel")
    wanted = config.data.sources or manifest["statistics"]
    lines = [
        f"{config.name}: {model.family}, {model.num_layers} layers, {weight_counts(model).total:,} parameters, "
        f"{train.precision}",
        f"  layout   {ranks} ranks on {device.device().type} ({device.backend()}): {', '.join(parts)}",
        f"  batch    {train.global_batch_rows} rows of {config.data.sequence_length:,} tokens, {train.steps:,} steps",
    ]
    for name, splits in manifest["statistics"].items():
        if name in wanted:
            counts = splits["train"]
            held = splits["validation"]["documents"]
            lines.append(
                f"  data     {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens; {held:,} held out"
            )
    lines.append(f"  run      {run}" + (f", resumed after step {start:,}" if start else ""))
    return lines


def announce(config: MidtrainConfig, manifest: dict[str, Any], run: Path, start: int) -> None:
    """Print `opening` on rank 0, and from here on each kernel that the registry chooses."""
    if not is_rank_zero():
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in opening(config, manifest, run, start):
        console.print(line, markup=False)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    kernels = logging.getLogger("osim_kernels")
    kernels.addHandler(handler)
    kernels.setLevel(logging.INFO)
    kernels.propagate = False
