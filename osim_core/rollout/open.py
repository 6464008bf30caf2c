"""Opening a run's crew: its engine, judges, detectors and tasks, on the ranks that roll out.

with open_crew(config, model, folder, run, start) as crew: ...
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from megatron.core import parallel_state

from osim_core.config import JudgeConfig, ModelConfig, RLConfig
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.judge.open import open_judge
from osim_core.judge.panel import CountedJudge, check_watcher
from osim_core.judge.rubric import Judge
from osim_core.judge.vllm_judge import VllmJudge
from osim_core.observe.run_dir import RunDirectory
from osim_core.reward.detectors.standard import standard_panel
from osim_core.reward.scorer import Scorer
from osim_core.reward.similarity import SentenceEncoder
from osim_core.rollout.actor import Actor
from osim_core.rollout.ahead import Ahead
from osim_core.rollout.crew import Crew
from osim_core.rollout.engine import Engine
from osim_core.rollout.engines.hf_engine import HfEngine
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
from osim_core.rollout.prompts import Prompts, parse_shares
from osim_core.rollout.runner import EngineSpeaker
from osim_core.rollout.shared import SharedEngine
from osim_core.soul.tasks import find
from osim_core.update.algorithms import chosen


@contextmanager
def open_crew(config: RLConfig, model: ModelConfig, folder: Path, run: RunDirectory, start: int) -> Iterator[Crew]:
    """The crew of a run that goes on after step `start`; its engines end with the block.

    Raises ValueError for unknown tasks, judges or algorithms, and where an engine does not come up.
    """
    shares = parse_shares(config.tasks)
    tasks = {name: find(name) for name in shares}
    for name, task in tasks.items():
        if task.spec.judged and config.reward.judge.backend == "none":
            raise ValueError(f"task {name} is scored by a judge; set --reward.judge.backend, or leave the task out")
    renderer = Renderer(load_tokenizer(folder), config.chat_format)
    with ExitStack() as stack:
        actor, engine, sleeper = None, None, None
        if owns_engine():
            opened = open_engine(config, folder, start)
            engine = stack.enter_context(closing(SharedEngine(opened)))
            if torch.cuda.is_available() and isinstance(opened, VllmEngine) and not config.rollout.staleness:
                sleeper = opened  # rollouts that run ahead need it awake
            judge, held_out = (
                _judge(stack, wanted, name, config)
                for name, wanted in (("train", config.reward.judge), ("held out", config.reward.held_out_judge))
            )
            if judge and held_out:
                check_watcher(judge, held_out)
            speaker = EngineSpeaker(
                engine, renderer, context=config.rollout.context, temperature=config.rollout.temperature
            )
            partner = EngineSpeaker(engine, renderer, context=config.rollout.context)
            roles = {role for task in tasks.values() for role in task.spec.roles}
            wanted = config.reward
            judged = any(task.spec.judged for task in tasks.values())
            watching = wanted.detectors != "off" and judged
            encoder = SentenceEncoder() if watching or wanted.similarity else None
            panel = None
            if watching:
                panel = standard_panel(encoder, mode=wanted.detectors, penalty=wanted.penalty, without=wanted.without)
            scorer = Scorer(judge, held_out, panel, encoder, wanted.similarity, wanted.turing)
            share = (parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size())
            actor = Actor(
                Prompts(tasks, shares, config.train.seed),
                {"policy": speaker, **dict.fromkeys(roles, partner)},
                scorer,
                config.rollout,
                config.train.seed,
                share,
                chosen(config).drop_uniform,
                config.feedback,
            )
        crew = Crew(config, model, run, tasks, renderer, actor, engine, sleeper)
        with Ahead(crew.play, config.rollout.staleness, start, crew.load_buffer(start)) as crew.ahead:
            yield crew


def _judge(stack: ExitStack, wanted: JudgeConfig, name: str, config: RLConfig) -> Judge | None:
    judge = open_judge(wanted, name, config.layout, Path(config.cache))
    if isinstance(judge, CountedJudge) and isinstance(judge.judge, VllmJudge):
        stack.callback(judge.judge.close)
    return judge


def open_engine(config: RLConfig, folder: Path, start: int) -> Engine:
    """The engine of a run that goes on after `start` steps; its weights are the folder's until the first push."""
    rollout = config.rollout
    version = max(0, start - 1)  # the next version that it takes is `start`
    if rollout.engine == "transformers":
        return HfEngine(folder, context=rollout.context, version=version)
    options = EngineOptions(
        context=rollout.context,
        dtype="float32" if config.train.precision == "fp32" else "bfloat16",
        cache_gib=rollout.cache_gib,
        gpu_memory=rollout.gpu_memory,
        max_restarts=rollout.restarts,
    )
    try:
        return VllmEngine(folder, options, version)
    except RuntimeError as error:  # it did not start, and says why
        raise ValueError(str(error)) from error


def owns_engine() -> bool:
    """Whether this rank is the first of its data-parallel replica."""
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )
