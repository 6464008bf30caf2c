"""Midtraining: a language model learns to write the human side of real conversations.

    python recipes/midtrain.py tiny-cpu                                 # a laptop: starts its own two ranks
    torchrun --nproc-per-node 8 recipes/midtrain.py qwen3-8b-8xh100-bf16 --data.paths corpus/train
    python recipes/midtrain.py qwen3-8b-64xh100-fp8 --dry-run 64        # does it fit? no GPU needed
    torchrun ... recipes/midtrain.py tiny-cpu --resume latest           # go on after a kill

Data flow: dialogue -> rendered documents -> packed rows -> Megatron-core -> cross-entropy stream -> AdamW.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from configs import CONFIGS
from osim_core.config import MidtrainConfig
from osim_core.corpus.loader import PackedLoader
from osim_core.corpus.prepare import prepare
from osim_core.corpus.shards import ShardSet
from osim_core.model.packaged import resolve
from osim_core.observe.metrics import MetricsLog
from osim_core.observe.opening import announce
from osim_core.observe.outcome import midtrain_outcome
from osim_core.observe.progress import Progress, Stages
from osim_core.observe.report import write_report
from osim_core.observe.run_dir import RunDirectory, is_rank_zero
from osim_core.observe.throughput import Clock, measure_peak_tflops
from osim_core.parallel import launch, layout
from osim_core.parallel.device import device
from osim_core.parallel.dry_run import dry_run
from osim_core.preflight import check_config, check_data


@dataclass(frozen=True)
class Command:
    config: Annotated[MidtrainConfig, tyro.conf.arg(name="")]
    resume: str | None = None
    """A run directory, or "latest"; its last good checkpoint is continued."""
    dry_run: int = 0
    """Only check the config on this many ranks and size its memory and communication."""
    runs: Path = Path("runs")
    """Where run directories go."""


def main() -> None:
    commands = {name: Command(config) for name, config in CONFIGS.items()}
    choice = tyro.extras.subcommand_type_from_defaults(commands, sort_subcommands=False)
    command, unknown = tyro.cli(
        choice,
        description=__doc__,
        console_outputs=layout.rank() == 0,
        return_unknown_args=True,
        config=(tyro.conf.FlagConversionOff,),
    )
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}; `recipes/midtrain.py {command.config.name} --help` lists them")
    if command.dry_run:
        report = dry_run(command.config, command.dry_run)
        Console().print(report.table())
        raise SystemExit(0 if report.fits else 1)
    config = resolve(command.config)
    ranks = layout.model_ranks(config.layout)
    processes = layout.world_size() if launch.under_torchrun() else max(ranks, torch.cuda.device_count())
    check_config(config, processes)
    if command.resume:
        open_run(config, command)
    folder = prepare(config.data, Stages(layout.rank() == 0))
    check_data(folder, config)
    if processes > 1 and not launch.under_torchrun():
        raise SystemExit(launch.start_ranks(processes))
    train(config, command, folder)


def open_run(config: MidtrainConfig, command: Command) -> RunDirectory:
    """The run to resume; refused if its model, data or optimizer is another."""
    run = RunDirectory.open(command.resume, "midtrain", command.runs)
    run.check_resumable(config, same=("model", "data", "optimizer"))
    return run


def train(config: MidtrainConfig, command: Command, folder: Path) -> None:
    """Build the model and run the steps on the data that `folder` holds; every rank calls it."""
    layout.initialize(config.layout, config.train.seed)
    from megatron.core import parallel_state  # after initialize: it reads torch.cuda, which a laptop lacks

    from osim_core.checkpoint.hf import RandomWeights, SafetensorsWeights, load_weights
    from osim_core.checkpoint.store import CheckpointStore
    from osim_core.update.learner import Learner
    from osim_core.update.work import count_work

    if command.resume:
        run = open_run(config, command)
    else:
        run = RunDirectory.create("midtrain", config.name, config, command.runs)
        if is_rank_zero():
            shutil.copytree(folder / "tokenizer", run.path / "tokenizer")
    manifest = json.loads((folder / "manifest.json").read_text())
    names, baselines = manifest["sources"], manifest["baselines"]

    def load(split: str) -> PackedLoader:
        shards = ShardSet.open(folder, split, config.data.on_damaged_shard, vocab_size=config.model.vocab_size)
        return PackedLoader(
            shards,
            config.data,
            split=split,
            sequence_length=config.data.sequence_length,
            global_batch_rows=config.train.global_batch_rows,
            seed=config.train.seed,
            rank=parallel_state.get_data_parallel_rank(),
            world=parallel_state.get_data_parallel_world_size(),
        )

    training, validation = load("train"), load("validation")
    learner = Learner(config.model, config.layout, config.optimizer, config.train, len(names), run.path / "non_finite")
    checkpoint = config.checkpoint
    store = CheckpointStore(run.checkpoints, checkpoint.keep, checkpoint.asynchronous, training.shards.fingerprint)
    start = store.resume(learner, config.model, config.layout)
    announce(config, manifest, run.path, start)
    if start == 0:
        model = config.model
        weights = (
            SafetensorsWeights(Path(model.from_hf), model) if model.from_hf else RandomWeights(model, config.train.seed)
        )
        load_weights(learner.chunks, weights, model)
        learner.weights_loaded()

    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    clock = Clock(
        config.model, config.train.device_peak_tflops or measure_peak_tflops(device(), dtype), layout.world_size()
    )
    with (
        MetricsLog(run, start or None) as metrics,
        Progress(config.train.steps, start, config.train.progress_every) as progress,
    ):

        def evaluate(step: int, rows: int, prefix: str) -> float:
            losses = learner.evaluate(validation.evaluation(rows))
            values = {f"{prefix}/loss": losses.mean}
            values |= {f"{prefix}/loss/{names[source]}": loss for source, loss in losses.by_source().items()}
            metrics.log(step, values)
            progress.update(step, values)
            return losses.mean

        if start == 0:
            metrics.log(0, {f"baseline/{name}": scores["all"] for name, scores in baselines.items()})
            evaluate(0, config.train.evaluate_rows, "val")
        for step, batches in training.stream(start):
            if step == config.train.steps:
                break
            clock.start()
            result = learner.update(batches, step)
            work = count_work(batches)
            store.poll()
            values = {
                "train/loss": result.losses.mean,
                "train/grad_norm": result.gradient_norm,
                "train/learning_rate": result.learning_rate,
                "train/skipped": int(not result.updated),
                "data/padding": work.padding,
                **{f"train/loss/{names[source]}": loss for source, loss in result.losses.by_source().items()},
                **clock.stop(tokens=work.tokens, squared_lengths=work.squared_lengths, loss_tokens=work.loss_tokens),
            }
            metrics.log(step + 1, values)
            progress.update(step + 1, values)
            done = step + 1
            if done % config.train.evaluate_every == 0 or done == config.train.steps:
                evaluate(done, config.train.evaluate_rows, "val")
            if done % checkpoint.save_every == 0 or done == config.train.steps:
                store.save(learner, config.model, config.layout, done)
        store.wait()
        evaluate(config.train.steps, config.train.final_evaluate_rows, "final")
    if is_rank_zero():
        run.write_summary(midtrain_outcome(run))
        Console().print(f"report: {write_report(run.path)}", soft_wrap=True)
    layout.shutdown()


if __name__ == "__main__":
    launch.run(main)
