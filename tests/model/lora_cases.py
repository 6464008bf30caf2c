"""What a rank of the worker group runs in the tests of adapters."""

from contextlib import contextmanager
from pathlib import Path

import torch

from osim_core.config import LayoutConfig, LoraConfig, OptimizerConfig, TrainConfig
from tests.parallel.cases import gather, local_rows, make_learner
from tests.support.models import TINY_QWEN3

LORA = LoraConfig(rank=4, alpha=8.0)


@contextmanager
def adapted(layout: LayoutConfig, steps: int = 3):
    from osim_core.parallel.layout import initialize

    initialize(layout, seed=1)
    from megatron.core import parallel_state

    from osim_core.checkpoint.hf import RandomWeights, load_weights
    from osim_core.model.lora import initialise
    from osim_core.update.learner import Learner

    try:
        learner = Learner(
            TINY_QWEN3,
            layout,
            OptimizerConfig(learning_rate=1e-2, schedule="constant", clip_norm=0.0, weight_decay=0.0),
            TrainConfig(steps=steps, global_batch_rows=1, precision="fp32"),
            num_sources=3,
            dump=Path("unused"),
            lora=LORA,
        )
        load_weights(learner.chunks, RandomWeights(TINY_QWEN3, seed=5), TINY_QWEN3)
        initialise(learner.chunks, seed=7)
        learner.weights_loaded()
        yield learner
    finally:
        parallel_state.destroy_model_parallel()


def train(layout: LayoutConfig, rows: list, steps: int = 3) -> dict:
    """Losses, gradient norms, weights as they are loaded and merged at the end, log-probs with adapters and without."""
    from osim_core.model.lora import disabled, merged

    with adapted(layout) as learner:
        mine = local_rows(rows)
        result = {"base": learner.logprobs(mine), "loss": [], "norm": [], "trainable": trainable(learner)}
        for step in range(steps):
            outcome = learner.update(mine, step)
            result["loss"].append(outcome.losses.mean)
            result["norm"].append(outcome.gradient_norm)
        result["adapted"] = learner.logprobs(mine)
        with disabled(learner.chunks):
            result["disabled"] = learner.logprobs(mine)
        result["frozen"] = gather(learner, TINY_QWEN3, torch.nn.Parameter.detach)
        result["merged"] = gather(learner, TINY_QWEN3, merged)
        return result


def trainable(learner) -> int:
    return sum(p.numel() for p in learner.chunks[0].parameters() if p.requires_grad)


def first_gradients(rows: list) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(layer, gradient of B, what it must be: scale x dL/dW A^T) at the start, where B is zero."""
    from osim_core.parallel.layout import initialize

    layout = LayoutConfig(distributed_optimizer=False)
    initialize(layout, seed=1)
    from megatron.core import parallel_state

    whole = make_learner(TINY_QWEN3, layout, rows=1, precision="fp32", learning_rate=1e-3, steps=1)
    whole.update(rows, 0)
    gradients = {name: p.main_grad.clone() for name, p in whole.chunks[0].named_parameters()}
    parallel_state.destroy_model_parallel()
    with adapted(layout, steps=1) as learner:
        parameters = dict(learner.chunks[0].named_parameters())
        factors = {name: p.detach().clone() for name, p in parameters.items() if name.endswith("lora_A_RI")}
        learner.update(rows, 0)
        found = []
        for name, factor in factors.items():
            layer = name.removesuffix("lora_A_RI")
            assert parameters[name].main_grad.abs().max() == 0.0  # dL/dA = B^T ..., and B is zero
            expected = LORA.alpha / LORA.rank * gradients[layer + "weight"] @ factor.T
            found.append((layer, parameters[layer + "lora_B_OR"].main_grad.clone(), expected))
        return found


def save(layout: LayoutConfig, rows: list, folder: Path, updates: int = 2) -> dict:
    """Some updates, a checkpoint named step 2, and what another update gives."""
    from osim_core.checkpoint.store import CheckpointStore

    with adapted(layout) as learner:
        for step in range(updates):
            learner.update(rows, step)
        CheckpointStore(folder, keep=1, asynchronous=False, data="a").save(learner, TINY_QWEN3, layout, step=2)
        return go_on(learner, rows)


def resume(layout: LayoutConfig, rows: list, folder: Path) -> dict:
    from osim_core.checkpoint.store import CheckpointStore

    with adapted(layout) as learner:
        assert CheckpointStore(folder, keep=1, asynchronous=False, data="a").resume(learner, TINY_QWEN3, layout) == 2
        return go_on(learner, rows)


def go_on(learner, rows: list) -> dict:
    from osim_core.model.lora import merged

    loss = learner.update(rows, 2).losses.mean
    return {"loss": loss, "merged": gather(learner, TINY_QWEN3, merged)}
