"""What a rank of the worker group runs in the layout tests: module-level, so spawned ranks can import it."""

from pathlib import Path

import torch
import torch.distributed as dist

from osim_core.config import LayoutConfig, ModelConfig, OptimizerConfig, TrainConfig


def train(
    model: ModelConfig,
    layout: LayoutConfig,
    rows: list,
    steps: int = 3,
    precision: str = "fp32",
    learning_rate: float = 1e-3,
    gradients: bool = False,
) -> dict:
    """Train on the same rows for some steps in a layout, from the same seeded weights.

    Returns {"loss": [..], "by_source": [..], "norm": [..]} and, if asked, {"gradients": HF name -> tensor} of step 1.
    """
    from osim_core.parallel.layout import initialize

    initialize(layout, seed=1)
    try:
        return _train(model, layout, rows, steps, precision, learning_rate, gradients)
    finally:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()


def make_learner(model: ModelConfig, layout: LayoutConfig, rows: int, precision: str, learning_rate: float, steps: int):
    from osim_core.checkpoint.hf import RandomWeights, load_weights
    from osim_core.update.learner import Learner

    learner = Learner(
        model,
        layout,
        OptimizerConfig(learning_rate=learning_rate, schedule="constant", clip_norm=0.0),  # gradients as they are
        TrainConfig(steps=steps, global_batch_rows=rows, precision=precision),
        num_sources=3,
        dump=Path("unused"),
    )
    load_weights(learner.chunks, RandomWeights(model, seed=5), model)
    learner.weights_loaded()
    return learner


def local_rows(rows: list) -> list:
    """This data-parallel rank's share."""
    from megatron.core import parallel_state

    return rows[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]


def _train(model, layout, rows, steps, precision, learning_rate, gradients) -> dict:
    learner = make_learner(model, layout, len(rows), precision, learning_rate, steps)
    result: dict = {"loss": [], "by_source": [], "norm": []}
    for step in range(steps):
        outcome = learner.update(local_rows(rows), step)
        result["loss"].append(outcome.losses.mean)
        result["by_source"].append(outcome.losses.by_source())
        result["norm"].append(outcome.gradient_norm)
        if gradients and step == 0:
            result["gradients"] = gather(learner, model, lambda p: p.main_grad.float())
    return result


def gather(learner, model: ModelConfig, value) -> dict[str, torch.Tensor]:
    """HF name -> full tensor of all pipeline stages, on every rank."""
    from osim_core.checkpoint.hf import full_tensors

    mine = {name: tensor.clone() for name, tensor in full_tensors(learner.chunks, model, value)}
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {name: tensor for part in parts for name, tensor in part.items()}
