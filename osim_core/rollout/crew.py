"""All ranks' side of rolling out: the ranks that own an engine play, judge and push; every rank sees the same results.

    with open_crew(config, model, folder, run, start) as crew:
        crew.push(learner, 0)
        experience = crew.take(step)                 # the same list on every rank
        crew.evaluate(learner, step)                 # metrics on held-out samples

The first rank of each data-parallel replica owns an engine and plays its share of a step's samples, so engines grow
with the job. Everything here is collective.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import zip_longest
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.config import ModelConfig, RLConfig
from osim_core.corpus.durable import write_durably
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.judge.open import open_judge
from osim_core.missing import Missing, Value
from osim_core.model.lora import merged
from osim_core.observe.metrics import read_metrics
from osim_core.observe.rl_metrics import mean_of, reward_metrics, sample_metrics, update_metrics
from osim_core.observe.run_dir import RunDirectory, is_rank_zero
from osim_core.reward.alarms import alarms
from osim_core.reward.detectors.standard import standard_panel
from osim_core.reward.likelihood import likelihood_reward, packed_references, reference_logprobs
from osim_core.reward.scorer import Scorer
from osim_core.reward.similarity import SentenceEncoder
from osim_core.rollout.actor import Actor, Played
from osim_core.rollout.ahead import Ahead
from osim_core.rollout.engine import Engine
from osim_core.rollout.engines.hf_engine import HfEngine
from osim_core.rollout.engines.vllm_engine import EngineOptions, VllmEngine
from osim_core.rollout.experience import Experience, Updates, exchange
from osim_core.rollout.groups import padding_row
from osim_core.rollout.ledger import Ledger
from osim_core.rollout.prompts import Prompts
from osim_core.rollout.push import push
from osim_core.rollout.runner import EngineSpeaker
from osim_core.rollout.shared import SharedEngine
from osim_core.rollout.transcripts import write_transcripts
from osim_core.soul.episode import Sample, Task
from osim_core.soul.tasks import find
from osim_core.update.algorithms import chosen
from osim_core.update.learner import Learner, StepResult


class RolloutError(ValueError):
    """Too much of a step is missing, or sampler and trainer disagree: going on would train on something else."""


@contextmanager
def open_crew(config: RLConfig, model: ModelConfig, folder: Path, run: RunDirectory, start: int) -> Iterator["Crew"]:
    """The crew of a run that goes on after step `start`; its engines end with the block.

    Raises ValueError for unknown tasks, judges or algorithms, and where an engine does not come up.
    """
    tasks = {name: find(name) for name in config.tasks}
    renderer = Renderer(load_tokenizer(folder), config.chat_format)
    with ExitStack() as stack:
        actor, engine = None, None
        if owns_engine():
            engine = stack.enter_context(closing(SharedEngine(open_engine(config, folder, start))))
            judge, held_out = (
                open_judge(wanted, name, config.layout, Path(config.cache))
                for name, wanted in (("train", config.reward.judge), ("held out", config.reward.held_out_judge))
            )
            speaker = EngineSpeaker(
                engine, renderer, context=config.rollout.context, temperature=config.rollout.temperature
            )
            partner = EngineSpeaker(engine, renderer, context=config.rollout.context)
            roles = {role for task in tasks.values() for role in task.spec.roles}
            panel = None
            if config.reward.detectors != "off" and any(task.spec.judged for task in tasks.values()):
                panel = standard_panel(
                    SentenceEncoder(),
                    mode=config.reward.detectors,
                    penalty=config.reward.penalty,
                    without=config.reward.without,
                )
            share = (parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size())
            actor = Actor(
                Prompts(tasks, config.tasks, config.train.seed),
                {"policy": speaker, **dict.fromkeys(roles, partner)},
                Scorer(judge, held_out, panel),
                config.rollout,
                config.train.seed,
                share,
                chosen(config).drop_uniform,
                config.feedback,
            )
        crew = Crew(config, model, run, tasks, renderer, actor, engine)
        with Ahead(crew.play, config.rollout.staleness, start, crew.load_buffer(start)) as crew.ahead:
            yield crew


def open_engine(config: RLConfig, folder: Path, start: int) -> Engine:
    """The engine of a run that goes on after `start` steps; its weights are the folder's until the first push."""
    rollout = config.rollout
    version = max(0, start - 1)  # the next version that it takes is `start`
    if rollout.engine == "transformers":
        return HfEngine(folder, version=version)
    options = EngineOptions(
        context=rollout.context,
        dtype="float32" if config.train.precision == "fp32" else "bfloat16",
        cache_gib=rollout.cache_gib,
        gpu_memory=rollout.gpu_memory,
        max_restarts=rollout.restarts,
    )
    return VllmEngine(folder, options, version)


def owns_engine() -> bool:
    """Whether this rank is the first of its data-parallel replica."""
    return (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_pipeline_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )


class Crew:
    """Built by `open_crew`. actor and engine are None on ranks without an engine."""

    ahead: Ahead[list[Experience]]

    def __init__(
        self,
        config: RLConfig,
        model: ModelConfig,
        run: RunDirectory,
        tasks: dict[str, Task],
        renderer: Renderer,
        actor: Actor | None,
        engine: Engine | None,
    ) -> None:
        self.config, self.model, self.run, self.renderer = config, model, run, renderer
        self.actor, self.engine = actor, engine
        self.seconds: dict[str, float] = {}
        self.held_out = held_out_samples(tasks, config.train.evaluate_rows)
        self.series: dict[str, list[Value]] = _series(run) if is_rank_zero() else {}

    # --- rolling out -----------------------------------------------------------------------------------------------

    def play(self, step: int) -> list[Experience]:
        """This rank's part of a step, with its transcripts on disk; [] without an engine."""
        if self.actor is None:
            return []
        played = self.actor.play(step)
        self._transcripts(f"step-{step + 1:06d}", played)
        self.seconds |= dict(zip(("rollout", "score"), played.seconds, strict=True))
        return played.experience

    def take(self, step: int) -> list[Experience]:
        """The whole step's experience. Raises RolloutError where too many episodes have no reward."""
        began = time.perf_counter()
        experience = exchange(self.ahead.take(step))
        self.seconds["wait"] = time.perf_counter() - began
        self._check(experience, f"step {step + 1}")
        return experience

    def _check(self, experience: Sequence[Experience], where: str) -> None:
        missing = [episode.reward for episode in experience if isinstance(episode.reward, Missing)]
        limit = self.config.rollout.max_missing
        if len(missing) > limit * len(experience):
            reasons = ", ".join(sorted({each.reason for each in missing}))
            raise RolloutError(
                f"{where}: {len(missing)} of {len(experience)} episodes have no reward ({reasons}; the last: "
                f"{missing[-1].detail or 'no detail'}); the limit is rollout.max_missing {limit:.0%}. Mend the cause "
                "and resume"
            )

    def push(self, learner: Learner, version: int) -> None:
        """The learner's weights to every engine, as `version`; rollouts of later steps may begin."""
        began = time.perf_counter()
        if version:  # it came up with those of step 0
            push(self.engine, learner.chunks, self.model, version, merged)
        self.ahead.advance(version)
        self.seconds["push"] = time.perf_counter() - began

    # --- what is said about it -------------------------------------------------------------------------------------

    def metrics(
        self, step: int, experience: Sequence[Experience], updates: Updates, results: Sequence[StepResult]
    ) -> dict[str, float]:
        """A line of metrics.jsonl. Raises RolloutError where on-policy log-probs of sampler and trainer differ."""
        oldest = min((e.version for e in experience if e.sequences), default=step)
        values = {
            **reward_metrics(experience, "rl"),
            **sample_metrics(experience),
            **update_metrics(updates, results, step, oldest),
        }
        limit = self.config.rollout.max_mismatch
        on_policy = values["rl/staleness"] == 0 and not self.config.feedback
        if on_policy and values.get("rl/mismatch", 0.0) > limit:
            raise RolloutError(
                f"step {step + 1}: trainer and sampler differ by {values['rl/mismatch']:.3g} in log-prob on average; "
                f"the limit is rollout.max_mismatch {limit}. The engine does not compute what is trained: stop here"
            )
        for name, value in values.items():
            self.series.setdefault(name, []).append(value)
        found = alarms(self.series)
        for alarm in found:
            print(f"alarm: {alarm.message}", flush=True)
        return {**values, "rl/alarms": len(found), **{f"perf/{name}_seconds": s for name, s in self.seconds.items()}}

    def evaluate(self, learner: Learner, step: int) -> dict[str, float]:
        """Rewards of one reply to each held-out sample, and how likely the real replies are."""
        mine: list[Experience] = []
        if self.actor is not None:
            played = self.actor.evaluate(self.held_out)
            self._transcripts(f"held-out-{step:06d}", played)
            mine = played.experience
        experience = exchange(mine)
        self._check(experience, f"held-out samples after step {step}")
        return {**reward_metrics(experience, "val"), **self._likelihood(learner)}

    def _likelihood(self, learner: Learner) -> dict[str, float]:
        """val/likelihood: mean over held-out samples of exp(mean log p per byte) of the real reply; {} without any."""
        pairs = [pair for task, sample in self.held_out if (pair := self._reference(task, sample))]
        if not pairs:
            return {}
        prompts, replies, texts = zip(*pairs, strict=True)
        rows = packed_references(prompts, replies, self.config.sequence_length)
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        rows += [padding_row(self.config.sequence_length, "ce", policy=False)] * (-len(rows) % ranks)
        found = reference_logprobs(learner.logprobs(rows[rank::ranks]), rows[rank::ranks], len(replies))
        values = [likelihood_reward(logprobs_R, text) for logprobs_R, text in zip(found, texts, strict=True)]
        everybody: list[list[Value]] = [[]] * ranks
        dist.all_gather_object(everybody, values, group=parallel_state.get_data_parallel_group())
        scored = mean_of([value for part in everybody for value in part if not isinstance(value, Missing)])
        return {"val/likelihood": scored["mean"]} if scored else {}

    def _reference(self, task: Task, sample: Sample) -> tuple[list[int], list[int], str] | None:
        """(prompt, reply ids with end of turn, text) of the person's own reply, where the sample has one that fits."""
        if sample.reference is None:
            return None
        (ask,) = next(task.episode(sample))
        ledger = Ledger(renderer=self.renderer, context=self.config.rollout.context)
        reply = [*self.renderer.tokenizer.encode_batch([sample.reference])[0].tolist(), self.renderer.end_of_turn]
        return None if ledger.extend(ask.messages, len(reply)) else (ledger.tokens, reply, sample.reference)

    def _transcripts(self, name: str, played: Played) -> None:
        rank = f"-{self.actor.share[0]}" if self.actor.share[1] > 1 else ""
        notes = [reward.record.to_json() for reward in played.rewards]
        write_transcripts(self.run.rollouts, f"{name}{rank}", played.trajectories, notes)

    # --- resuming --------------------------------------------------------------------------------------------------

    def save_buffer(self, step: int) -> None:
        """Keep what has been rolled out ahead beside the checkpoint of `step`."""
        if self.ahead.staleness and self.actor is not None:
            write_durably(self._buffer(step), pickle.dumps(self.ahead.buffered()))

    def load_buffer(self, step: int) -> dict[int, list[Experience]]:
        """What an earlier process of this run had rolled out ahead when it saved `step`."""
        file = self._buffer(step)
        return pickle.loads(file.read_bytes()) if file.is_file() else {}

    def _buffer(self, step: int) -> Path:
        rank = parallel_state.get_data_parallel_rank()
        return self.run.checkpoints / f"rollouts-{step:08d}-{rank}.pickle"


def held_out_samples(tasks: dict[str, Task], count: int) -> list[tuple[Task, Sample]]:
    """`count` validation samples, as evenly over the tasks as their numbers allow, always the same."""
    each = [[(task, sample) for sample in task.samples("validation")] for task in tasks.values()]
    turns = [pair for turn in zip_longest(*each) for pair in turn if pair is not None]
    return turns[:count]


def _series(run: RunDirectory) -> dict[str, list[Value]]:
    """The curves so far, for the alarms of a run that goes on."""
    found: dict[str, list[Value]] = {}
    for row in read_metrics(run.metrics_file):
        if "rl/reward" in row:
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    return found
