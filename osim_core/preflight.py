"""What a run is refused for before any rank starts, each in one line: the launcher calls `check_config` before it
reads data and `check_data` once the shards exist; every rank repeats them, since torchrun has no launcher of ours.
"""

import json
from pathlib import Path

from osim_core.config import MidtrainConfig, RLConfig
from osim_core.corpus import tokenizer
from osim_core.corpus.shards import ShardSet
from osim_core.parallel import layout

SPLITS = ("train", "validation")


def check_config(config: MidtrainConfig, processes: int) -> None:
    """Raises ValueError for a layout, row length, count or tokenizer that cannot work."""
    rows, length = config.train.global_batch_rows, config.data.sequence_length
    layout.check_layout(config.layout, config.model, processes, rows, length)
    positions = config.model.max_position_embeddings
    if length > positions:
        raise ValueError(f"data.sequence_length {length} exceeds model.max_position_embeddings {positions}")
    counts = {
        "train.steps": config.train.steps,
        "train.evaluate_every": config.train.evaluate_every,
        "train.evaluate_rows": config.train.evaluate_rows,
        "train.final_evaluate_rows": config.train.final_evaluate_rows,
        "train.progress_every": config.train.progress_every,
        "checkpoint.save_every": config.checkpoint.save_every,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is not a positive number")
    check_vocabulary(config)


def check_rl(config: RLConfig, processes: int) -> None:
    """Raises ValueError for tasks, counts or lengths of an RL config that cannot work; its model is not known yet."""
    if not config.tasks:
        raise ValueError("tasks: name at least one, as --tasks style")
    rollout = config.rollout
    counts = {
        "rollout.prompts": rollout.prompts,
        "rollout.replies": rollout.replies,
        "updates": config.updates,
        "train.steps": config.train.steps,
        "train.evaluate_every": config.train.evaluate_every,
        "train.evaluate_rows": config.train.evaluate_rows,
        "checkpoint.save_every": config.checkpoint.save_every,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: {value} is not a positive number")
    if rollout.replies < 2:
        raise ValueError("rollout.replies: a group of one has nothing to compare; set 2 or more")
    if rollout.context > config.sequence_length:
        raise ValueError(
            f"rollout.context {rollout.context} exceeds sequence_length {config.sequence_length}: a row has to hold an "
            "episode"
        )
    if rollout.staleness and "inprocess" in (config.reward.judge.backend, config.reward.held_out_judge.backend):
        raise ValueError(
            "reward.judge: an in-process judge shares the trainer's devices, so rollouts cannot be judged ahead; set "
            "rollout.staleness 0, or take the vllm or http backend"
        )
    if rollout.prompts < config.updates:
        raise ValueError(f"updates: {config.updates} updates cannot share {rollout.prompts} groups")
    ranks = layout.model_ranks(config.layout)
    if processes % ranks:
        raise ValueError(f"layout: {processes} processes are no multiple of the {ranks} ranks that hold the model")


def check_vocabulary(config: MidtrainConfig) -> None:
    """Raises ValueError where the tokenizer has ids that the model's embedding has no row for."""
    name, rows = config.data.tokenizer, config.model.vocab_size
    if config.data.corpus:  # it has its own
        name = str(Path(config.data.corpus) / "tokenizer")
    size = config.data.tokenizer_vocab_size if name == "trained" else tokenizer.load(name).vocab_size
    if size > rows:
        whose = "data.tokenizer_vocab_size" if name == "trained" else f"the vocabulary of {name}"
        fits = -(-size // config.layout.tensor) * config.layout.tensor
        raise ValueError(
            f"{whose} is {size}, model.vocab_size only {rows}: raise --model.vocab-size to {fits} or more, or choose "
            "a smaller tokenizer"
        )


def check_data(folder: Path, config: MidtrainConfig) -> None:
    """Raises ValueError for a missing or damaged shard (data.on_damaged_shard "stop") and for a split left empty."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in SPLITS:
        ShardSet.open(
            folder, split, config.data.on_damaged_shard, manifest=manifest, vocab_size=config.model.vocab_size
        )
