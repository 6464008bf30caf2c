"""What a rank of the worker group runs in the checkpoint tests: module-level, so spawned ranks can import it."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from osim_core.batch import PackedBatch
from osim_core.config import LayoutConfig, ModelConfig
from tests.parallel.cases import gather, local_rows, make_learner

DATA = "fingerprint of the shards"


@contextlib.contextmanager
def ranks_in(layout: LayoutConfig) -> Iterator[None]:
    """The parallel groups of `layout`, for as long as the block lasts."""
    from osim_core.parallel.layout import initialize

    initialize(layout, seed=1)
    from megatron.core import parallel_state

    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


def loaded(source: Path, layout: LayoutConfig, precision: str = "fp32") -> tuple[list, ModelConfig]:
    """The model of a Hugging Face folder in the layout, and its config."""
    from osim_core.checkpoint.hf import SafetensorsWeights, load_weights
    from osim_core.model.build import build_model
    from osim_core.model.hf_config import model_config_from_hf

    model = model_config_from_hf(source)
    chunks = build_model(model, layout, precision)
    load_weights(chunks, SafetensorsWeights(source, model), model)
    return chunks, model


def round_trip(source: Path, out: Path, layout: LayoutConfig, shard_bytes: int, precision: str = "fp32") -> None:
    """Hugging Face folder -> this layout -> Hugging Face folder."""
    with ranks_in(layout):
        from osim_core.checkpoint.hf import save_hf

        chunks, model = loaded(source, layout, precision)
        save_hf(chunks, model, out, shard_bytes)


@torch.no_grad()
def logprobs(source: Path, layout: LayoutConfig, rows: list[PackedBatch]) -> list[torch.Tensor]:
    """fp32 [T] of each packed row: log p(label), as the update step computes it."""
    with ranks_in(layout):
        from osim_core.loss.head import HeadTargets, token_logprobs
        from osim_core.model.packed_row import PackedRow

        (chunk,), model = loaded(source, layout)
        return [
            chunk(
                row.tokens_T[None],
                row.positions_T[None],
                None,
                packed_seq_params=PackedRow.of(row, model, torch.device("cpu")),
                output_processor=token_logprobs,
                output_processor_context=HeadTargets(row.labels_T, torch.ones(row.num_tokens), row.num_tokens),
            )
            for row in rows
        ]


def refusal(call, **arguments) -> str:
    """The message of the ValueError that the call must raise."""
    try:
        call(**arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{call.__name__} raised nothing")


def interrupted_export(source: Path, out: Path) -> bool:
    """Whether a folder is visible under its name after an export that failed at its last file."""
    with ranks_in(LayoutConfig()):
        from osim_core.checkpoint import hf

        chunks, model = loaded(source, LayoutConfig())
        full = OSError(28, "No space left on device")
        with mock.patch.object(hf, "_finish_export", side_effect=full), contextlib.suppress(OSError):
            hf.save_hf(chunks, model, out)
        return out.exists()


def train_and_save(
    folder: Path,
    model: ModelConfig,
    layout: LayoutConfig,
    rows: list,
    save_at: list[int],
    steps: int,
    asynchronous: bool = True,
    keep: int = 9,
) -> dict:
    """Train `steps` updates, saving after those in `save_at`; returns {"loss", "weights"} of the run."""
    with ranks_in(layout):
        from osim_core.checkpoint.store import CheckpointStore

        learner = make_learner(model, layout, len(rows), "fp32", 1e-3, steps)
        store = CheckpointStore(folder, keep, asynchronous, DATA)
        losses = []
        for step in range(steps):
            losses.append(learner.update(local_rows(rows), step).losses.mean)
            if step + 1 in save_at:
                store.save(learner, model, layout, step + 1)  # written while the next updates run
        store.wait()
        return {"loss": losses, "weights": gather(learner, model, torch.Tensor.detach)}


def resume_and_train(folder: Path, model: ModelConfig, layout: LayoutConfig, rows: list, steps: int) -> dict:
    """Resume from the newest checkpoint and go on to update `steps`; returns what a run would log and hold."""
    with ranks_in(layout):
        from osim_core.checkpoint.store import CheckpointStore
        from osim_core.update.optimizer import chained

        learner = make_learner(model, layout, len(rows), "fp32", 1e-3, steps)
        start = CheckpointStore(folder, 9, True, DATA).resume(learner, model, layout)
        losses = [learner.update(local_rows(rows), step).losses.mean for step in range(start, steps)]
        adam = [state["step"].item() for part in chained(learner.optimizer) for state in part.optimizer.state.values()]
        weights = gather(learner, model, torch.Tensor.detach)
        return {"start": start, "loss": losses, "adam_steps": set(adam), "weights": weights}


def draws() -> list:
    """The next numbers of every random stream of this rank."""
    from megatron.core import tensor_parallel

    with tensor_parallel.get_cuda_rng_tracker().fork():
        model_parallel = torch.rand(4).tolist()
    return [random.random(), np.random.random(3).tolist(), torch.rand(4).tolist(), model_parallel]


def draws_around_a_save(folder: Path, model: ModelConfig, layout: LayoutConfig, rows: list) -> tuple[list, list]:
    """What the random streams give after a save, first in the run that saved, then in the one that resumed."""
    with ranks_in(layout):
        from osim_core.checkpoint.store import CheckpointStore

        learner = make_learner(model, layout, len(rows), "fp32", 1e-3, 1)
        random.seed(torch.distributed.get_rank())
        np.random.seed(torch.distributed.get_rank())
        draws()  # away from the seeds' beginnings
        learner.update(local_rows(rows), 0)
        store = CheckpointStore(folder, 1, False, DATA)
        store.save(learner, model, layout, 1)
        saved = draws()
    with ranks_in(layout):
        learner = make_learner(model, layout, len(rows), "fp32", 1e-3, 1)
        random.seed(7)
        np.random.seed(7)
        CheckpointStore(folder, 1, False, DATA).resume(learner, model, layout)
        return saved, draws()


@torch.no_grad()
def logits(source: Path, row: PackedBatch) -> torch.Tensor:
    """fp32 [T, V] of one packed row, on one rank. Training never makes this tensor; a comparison may."""
    with ranks_in(LayoutConfig()):
        from osim_core.model.packed_row import PackedRow

        def head(*, hidden_states, output_layer, output_weight, **_) -> torch.Tensor:
            weight_VD = output_layer.weight if output_weight is None else output_weight
            return hidden_states.squeeze(1) @ weight_VD.T

        (chunk,), model = loaded(source, LayoutConfig())
        return chunk(
            row.tokens_T[None],
            row.positions_T[None],
            None,
            packed_seq_params=PackedRow.of(row, model, torch.device("cpu")),
            output_processor=head,
        )
