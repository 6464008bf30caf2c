"""Reinforcement learning: a simulated person learns a task from rules and judges, watched by detectors.

    python recipes/rl.py rl-tiny-cpu                                   # a laptop: from runs/midtrain/latest, real vLLM
    torchrun --nproc-per-node 8 recipes/rl.py rl-qwen3-8b-8xh100 --base runs/midtrain/latest
    torchrun ... recipes/rl.py rl-tiny-cpu --resume latest             # go on after a kill

Data flow: samples -> episodes on the rollout engine -> judge -> reward and detectors -> groups with advantages ->
packed rows that hold each prompt once -> policy stream -> AdamW -> new weights to the engine.
"""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from configs import RL_CONFIGS
from osim_core.config import RLConfig
from osim_core.model.hf_config import model_config_from_hf
from osim_core.model.start import hugging_face_folder
from osim_core.observe.metrics import MetricsLog
from osim_core.observe.outcome import rl_outcome
from osim_core.observe.progress import Progress
from osim_core.observe.rl_report import write_rl_report
from osim_core.observe.run_dir import RunDirectory, is_rank_zero
from osim_core.parallel import launch, layout
from osim_core.preflight import check_rl


@dataclass(frozen=True)
class Command:
    config: Annotated[RLConfig, tyro.conf.arg(name="")]
    resume: str | None = None
    """A run directory, or "latest"; its last good checkpoint is continued."""
    runs: Path = Path("runs")
    """Where run directories go."""


def main() -> None:
    commands = {name: Command(config) for name, config in RL_CONFIGS.items()}
    choice = tyro.extras.subcommand_type_from_defaults(commands, sort_subcommands=False)
    command = tyro.cli(
        choice, description=__doc__, console_outputs=layout.rank() == 0, config=(tyro.conf.FlagConversionOff,)
    )
    config = command.config
    ranks = layout.model_ranks(config.layout)
    processes = layout.world_size() if launch.under_torchrun() else ranks
    check_rl(config, processes)
    folder = hugging_face_folder(config.base, Path(config.cache))
    if processes > 1 and not launch.under_torchrun():
        raise SystemExit(launch.start_ranks(processes))
    train(config, command, folder)


def open_run(config: RLConfig, command: Command, folder: Path) -> RunDirectory:
    """A new run with its tokenizer, or the one to resume; refused if what decides its course is another."""
    if command.resume:
        run = RunDirectory.open(command.resume, "rl", command.runs)
        run.check_resumable(config, same=("optimizer", "rollout", "reward"))
        return run
    run = RunDirectory.create("rl", config.name, config, command.runs)
    if is_rank_zero():
        (run.path / "tokenizer").mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (folder / file).is_file():
                shutil.copy(folder / file, run.path / "tokenizer")
    return run


def train(config: RLConfig, command: Command, folder: Path) -> None:
    """Roll out, reward, update, push; every rank calls it, and those that own an engine roll out."""
    layout.initialize(config.layout, config.train.seed)
    # after initialize: megatron-core reads torch.cuda, which a laptop lacks
    from osim_core.checkpoint.hf import SafetensorsWeights, load_weights
    from osim_core.checkpoint.store import CheckpointStore
    from osim_core.loss.streams import Objective
    from osim_core.model import lora
    from osim_core.rollout.experience import build_updates
    from osim_core.rollout.open import open_crew
    from osim_core.update.algorithms import chosen
    from osim_core.update.learner import Learner
    from osim_core.update.reference import Reference

    run, model, algorithm = open_run(config, command, folder), model_config_from_hf(folder), chosen(config)
    adapters = config.lora if config.lora.rank else None
    goal = Objective(policy=algorithm.loss, kl_coefficient=config.kl)
    learner = Learner(model, config.layout, config.optimizer, config.train, 1, run.path / "non_finite", goal, adapters)
    weights = SafetensorsWeights(folder, model)
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep, config.checkpoint.asynchronous, data="rl")
    start = store.resume(learner, model, config.layout)
    if start == 0:
        load_weights(learner.chunks, weights, model)
        if adapters:
            lora.initialise(learner.chunks, config.train.seed)
        learner.weights_loaded()
    reference = Reference(learner, weights, model) if config.kl else None
    streams = ("policy", "kl") if config.kl else ("policy",)

    with ExitStack() as stack:
        crew = stack.enter_context(open_crew(config, model, folder, run, start))
        metrics = stack.enter_context(MetricsLog(run, start or None))
        progress = stack.enter_context(Progress(config.train.steps, start, config.train.progress_every))

        def log(step: int, values: dict[str, float]) -> None:
            metrics.log(step, values)
            progress.update(step, values)

        crew.push(learner, start)
        if start == 0:
            log(0, crew.evaluate(learner, 0))
        for step in range(start, config.train.steps):
            experience = crew.take(step)
            crew.rest()
            updates = build_updates(
                experience,
                algorithm,
                updates=config.updates,
                sequence_length=config.sequence_length,
                longest_reply=config.rollout.context,
                streams=streams,
            )
            parts = [rows for rows in updates.rows if rows]
            if reference:
                parts = [reference.annotate(rows) for rows in parts]
            if len(parts) > 1:
                parts = [learner.with_old_logprobs(rows) for rows in parts]
            results = [learner.update(rows, step) for rows in parts]
            store.poll()
            done = step + 1
            crew.push(learner, done)
            log(done, crew.metrics(step, experience, updates, results))
            if done % config.train.evaluate_every == 0 or done == config.train.steps:
                log(done, crew.evaluate(learner, done))
            if done % config.checkpoint.save_every == 0 or done == config.train.steps:
                crew.save_buffer(done)
                store.save(learner, model, config.layout, done)
        store.wait()
    if is_rank_zero():
        run.write_summary(rl_outcome(run))
        Console().print(f"report: {write_rl_report(run.path)}", soft_wrap=True)
    layout.shutdown()


if __name__ == "__main__":
    launch.run(main)
