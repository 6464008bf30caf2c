"""Training checkpoints: megatron-core's sharded format, written beside training, published atomically, resharded on
load. One checkpoint is a folder `step-00000100` holding the shards and `osim.json` (step, model, layout).

A save writes into `.step-00000100.partial`; when every rank's files are on disk it is synced and renamed, so a
folder without the prefix is always complete and `latest` never finds half a checkpoint. The data cursor is the step
alone, because the loader's order is a pure function of it.
"""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, AsyncRequest
from torch.distributed.checkpoint import CheckpointException

from osim_core.checkpoint.hf import unwrap
from osim_core.config import LayoutConfig, ModelConfig, from_dict, to_dict
from osim_core.update.learner import Learner

FORMAT = 1
# optimizer state in the shape of the parameters, so it can be read in any layout; megatron-core adds this layout's
# process groups to the dict it is given, hence a copy each time
CONTENT = {"distrib_optim_sharding_type": "fully_reshardable"}


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def read_description(checkpoint: Path) -> dict:
    """The `osim.json` of a checkpoint: format, step, model, layout. Raises ValueError naming the folder."""
    path = checkpoint / "osim.json"
    if not path.is_file():
        raise ValueError(
            f"{checkpoint}: not a checkpoint of OSim Core (no osim.json); give runs/.../checkpoints/step-*"
        )
    description = json.loads(path.read_text())
    if description["format"] != FORMAT:
        raise ValueError(f"{checkpoint}: checkpoint format {description['format']}, this version reads {FORMAT}")
    return description


def model_state(chunks: list[torch.nn.Module]) -> dict:
    """The sharded state of the model alone; keys name global layers, so any layout can read it."""
    names = ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]
    return {
        name: unwrap(chunk).sharded_state_dict(metadata=dict(CONTENT))
        for name, chunk in zip(names, chunks, strict=True)
    }


def read_model(checkpoint: Path) -> tuple[ModelConfig, str]:
    """The model that a checkpoint holds and the precision it was trained in."""
    description = read_description(checkpoint)
    return from_dict(ModelConfig, description["model"], where=str(checkpoint / "osim.json")), description["precision"]


def save_model(chunks: list[torch.nn.Module], model: ModelConfig, precision: str, checkpoint: Path) -> None:
    """Write weights alone as the checkpoint folder `checkpoint`, step 0. Collective. Raises ValueError if it exists."""
    if checkpoint.exists():
        raise ValueError(f"{checkpoint}: already exists; choose another name or remove it")
    partial = checkpoint.with_name(f".{checkpoint.name}.partial")
    dist.barrier()  # every rank has looked
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(model_state(chunks), str(partial), content_metadata=CONTENT)
    if dist.get_rank() == 0:
        _publish(partial, checkpoint, _description(model, precision, step=0))
    dist.barrier()


def load_model(chunks: list[torch.nn.Module], model: ModelConfig, checkpoint: Path) -> int:
    """Read only the weights of `checkpoint` (any layout) into `chunks`; returns its step. Collective."""
    description = read_description(checkpoint)
    _check_same_model(description, model, checkpoint)
    state = dist_checkpointing.load(model_state(chunks), str(checkpoint))
    for name, part in state.items():
        if name.startswith("model"):
            unwrap(chunks[int(name.removeprefix("model") or 0)]).load_state_dict(part)
    return description["step"]


class CheckpointStore:
    """The checkpoints of one run: save beside training, keep the newest, resume from the last good one."""

    def __init__(self, folder: Path, keep: int, asynchronous: bool, data: str) -> None:
        """`data`: the fingerprint of the training shards (ShardSet.fingerprint), kept with every checkpoint.

        Raises ValueError where the ranks see different shards. Collective.
        """
        self.folder, self.keep, self.asynchronous, self.data = folder, keep, asynchronous, data
        held: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(held, data)
        if len(set(held)) > 1:
            other = next(rank for rank, theirs in enumerate(held) if theirs != held[0])
            raise ValueError(f"training shards differ between rank 0 and rank {other}; give all nodes the same data")
        self.queue = AsyncCallsQueue()
        self.pending = 0
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step-*.partial"):  # of a run killed while saving
                shutil.rmtree(leftover)
        dist.barrier()

    def save(self, learner: Learner, model: ModelConfig, layout: LayoutConfig, step: int) -> None:
        """Start saving the state after `step` updates. Collective; returns once the state is copied.

        With `asynchronous` the files are written by a child process while training goes on; `poll` publishes
        them. Raises ValueError naming the folder where they cannot be written, here or in `poll` and `wait`; older
        checkpoints are untouched then and nothing of this one is left.
        """
        self.wait()  # one save at a time: the newer one must also be published later
        with self._cleanly(step):
            self._start(learner, model, layout, step)

    def _start(self, learner: Learner, model: ModelConfig, layout: LayoutConfig, step: int) -> None:
        final, partial = self._folders(step)
        if dist.get_rank() == 0:
            partial.mkdir()
        dist.barrier()
        # with overlapped gathering the model's own copy may lag the fp32 masters by one step
        for chunk in learner.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)
        state = _full_state(learner, is_loading=False)
        request: AsyncRequest = dist_checkpointing.save(
            state, str(partial), async_sharded_save=True, async_strategy="mcore", content_metadata=CONTENT
        )
        description = {
            **_description(model, learner.train.precision, step),
            "layout": _ranks(layout),
            "data": self.data,
        }
        request.add_finalize_fn(lambda: self._finish(partial, final, description))
        if self.asynchronous:
            self.queue.schedule_async_request(request)
            self.pending = step
        else:
            request.execute_sync()

    def poll(self) -> None:
        """Publish the running save if every rank has finished writing. Collective while a save is running."""
        if self.pending:
            self._finalize(blocking=False)

    def wait(self) -> None:
        """Block until the running save, if any, is published. Collective."""
        if self.pending:
            self._finalize(blocking=True)

    def _finalize(self, blocking: bool) -> None:
        with self._cleanly(self.pending):
            if self.queue.maybe_finalize_async_calls(blocking):
                self.pending = 0

    def _folders(self, step: int) -> tuple[Path, Path]:
        """Where a checkpoint ends up, and where it is written."""
        final = self.folder / f"step-{step:08d}"
        return final, final.with_name(f".{final.name}.partial")

    @contextlib.contextmanager
    def _cleanly(self, step: int) -> Iterator[None]:
        """Turn a failure to write into one line, and take away what was written: it may be what fills the disk."""
        try:
            yield
        except (CheckpointException, OSError) as error:
            # megatron-core passes on that a writer failed, not why (its log does, unless the disk is full)
            reason = error.strerror if isinstance(error, OSError) else "a writer failed"
            final, partial = self._folders(step)
            free = shutil.disk_usage(self.folder).free / 1e6
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(
                f"{final}: cannot write this checkpoint ({reason}; {free:,.1f} MB free there); older ones are intact: "
                "make room and resume"
            ) from error

    def resume(self, learner: Learner, model: ModelConfig, layout: LayoutConfig) -> int:
        """Load the last good checkpoint into `learner`; returns its step, 0 when there is none. Collective.

        In the layout that wrote it the run continues bit for bit; in another one weights and optimizer are
        resharded and the random states start from the seed.
        """
        found = [latest(self.folder)]
        dist.broadcast_object_list(found)  # one rank looks, so that all agree
        if found[0] is None:
            return 0
        checkpoint: Path = found[0]
        description = read_description(checkpoint)
        _check_same_model(description, model, checkpoint)
        if description["layout"]["distributed_optimizer"] != layout.distributed_optimizer:
            raise ValueError(
                f"{checkpoint}: written with layout.distributed_optimizer = "
                f"{description['layout']['distributed_optimizer']}; resume with the same setting"
            )
        if description["data"] != self.data:
            raise ValueError(
                f"{checkpoint}: was trained on other shards than these (one was damaged, quarantined or replaced "
                "since), so its place in the data is lost; restore them or start a new run"
            )
        wanted = _full_state(learner, is_loading=True)
        same_layout = description["layout"] == _ranks(layout)
        if not same_layout:
            del wanted["rng"]
        state = dist_checkpointing.load(wanted, str(checkpoint))
        for index, chunk in enumerate(learner.chunks):
            unwrap(chunk).load_state_dict(state["model" if len(learner.chunks) == 1 else f"model{index}"])
        learner.optimizer.load_state_dict(state["optimizer"])
        if same_layout:
            _restore_rng(state["rng"])
        return description["step"]

    def _finish(self, partial: Path, final: Path, description: dict) -> None:
        """Make a finished save visible, then drop the oldest. Runs on every rank after all have written."""
        if dist.get_rank() == 0:
            _publish(partial, final, description)
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)


def _publish(partial: Path, final: Path, description: dict) -> None:
    """Give a complete folder its name; afterwards it survives a power cut."""
    (partial / "osim.json").write_text(json.dumps(description, indent=1))
    for path in (*partial.iterdir(), partial):
        _fsync(path)
    partial.rename(final)
    _fsync(final.parent)


def _description(model: ModelConfig, precision: str, step: int) -> dict:
    return {"format": FORMAT, "step": step, "precision": precision, "model": to_dict(model)}


def _ranks(layout: LayoutConfig) -> dict:
    """What must be equal for the random states of the ranks to mean the same."""
    return {**to_dict(layout), "world_size": dist.get_world_size()}


def _check_same_model(description: dict, model: ModelConfig, checkpoint: Path) -> None:
    wanted = json.loads(json.dumps(to_dict(model)))
    for key, value in description["model"].items():
        if key != "from_hf" and wanted.get(key) != value:
            raise ValueError(
                f"{checkpoint}: holds another model: {key} is {value} there and {wanted.get(key)} in this config"
            )


def _full_state(learner: Learner, is_loading: bool) -> dict:
    state = model_state(learner.chunks)
    optimizer = learner.optimizer.sharded_state_dict(
        dict(state) if len(learner.chunks) > 1 else state["model"], is_loading=is_loading, metadata=dict(CONTENT)
    )
    state["optimizer"] = optimizer
    rank, size = dist.get_rank(), dist.get_world_size()
    state["rng"] = ShardedObject("rng", _rng(), (size,), (rank,), replica_id=0)
    return state


def _rng() -> dict:
    """Every random state of this rank."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "model_parallel": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _restore_rng(state: dict) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["model_parallel"])


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
