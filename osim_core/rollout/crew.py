"""All ranks' side of rolling out: the ranks that own an engine play, judge and push; every rank sees the same results.

    with open_crew(config, model, folder, run, start) as crew:    # rollout/open.py
        crew.push(learner, 0)
        experience = crew.take(step)                 # the same list on every rank
        crew.evaluate(learner, step)                 # metrics on held-out samples

The first rank of each data-parallel replica owns an engine and plays its share of a step's samples, so engines grow
with the job. Everything here is collective.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.config import ModelConfig, RLConfig
from osim_core.corpus.durable import write_durably
from osim_core.corpus.render import Renderer
from osim_core.judge.panel import CountedJudge
from osim_core.missing import Missing, Value
from osim_core.model.lora import merged
from osim_core.observe.metrics import read_metrics
from osim_core.observe.rl_metrics import reward_metrics, sample_metrics, update_metrics
from osim_core.observe.run_dir import RunDirectory, is_rank_zero
from osim_core.reward.alarms import Alarm, alarms
from osim_core.reward.likelihood import likelihood_reward, packed_references, reference_logprobs
from osim_core.reward.scorer import last_reply
from osim_core.rollout.actor import Actor, Played
from osim_core.rollout.ahead import Ahead
from osim_core.rollout.engine import Engine, EngineStopped
from osim_core.rollout.engines.vllm_engine import VllmEngine
from osim_core.rollout.experience import Experience, Updates, exchange
from osim_core.rollout.groups import padding_row
from osim_core.rollout.ledger import Ledger
from osim_core.rollout.push import push
from osim_core.rollout.runner import Trajectory
from osim_core.rollout.transcripts import write_transcripts
from osim_core.soul.episode import Sample, Task
from osim_core.soul.style import closeness, count_words
from osim_core.update.learner import Learner, StepResult


class RolloutError(ValueError):
    """Too much of a step is missing, or sampler and trainer disagree: going on would train on something else."""


EVALUATIONS = 5  # that a trend over held-out samples takes
HELD_OUT_ALARMS = {  # what alarms are raised on at evaluations, and what alarms.py calls it
    "val/reward_raw": "rl/reward_raw",
    "val/reward_held_out": "rl/reward_held_out",
    "val/likelihood": "rl/likelihood",
    "val/length_ratio": "rl/human_likeness",
}


class Crew:
    """actor and engine are None on ranks without an engine. sleeper: an engine on the trainer's own GPU, which gives
    its memory back while the learner works."""

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
        sleeper: VllmEngine | None,
    ) -> None:
        self.config, self.model, self.run, self.renderer = config, model, run, renderer
        self.actor, self.engine, self.sleeper = actor, engine, sleeper
        self.seconds: dict[str, float] = {}
        self.held_out = held_out_samples(tasks, config.train.evaluate_rows)
        self.series = _series(run, "rl/reward")
        self.held_out_series = {
            name: series for name, series in _series(run, "val/reward").items() if name in HELD_OUT_ALARMS
        }

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
        with stopping_in_order():
            mine = self.ahead.take(step)
        experience = exchange(mine)
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

    def rest(self) -> None:
        """The step's rollouts are there: an engine on this GPU gives its memory to the learner until the push."""
        if self.sleeper:
            self.sleeper.sleep()

    def push(self, learner: Learner, version: int) -> None:
        """The learner's weights to every engine, as `version`; rollouts of later steps may begin."""
        began = time.perf_counter()
        if version:  # it came up with those of step 0
            with stopping_in_order():
                push(self.engine, learner.chunks, self.model, version, merged)
            if self.sleeper:
                self.sleeper.wake()
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
        if self.actor is not None:
            judges = (self.actor.scorer.judge, self.actor.scorer.held_out)
            for judge in judges:
                values |= judge.metrics() if isinstance(judge, CountedJudge) else {}
        alarmed = self._sound(alarms(self.series))
        return {**values, "rl/alarms": alarmed, **{f"perf/{name}_seconds": s for name, s in self.seconds.items()}}

    def evaluate(self, learner: Learner, step: int) -> dict[str, float]:
        """Rewards of one reply to each held-out sample; how long the replies are beside the real ones, and how likely
        those are: two things that no judge decides."""
        mine: list[Experience] = []
        ratios: list[Value] = []
        if self.actor is not None:
            with stopping_in_order():
                played = self.actor.evaluate(self.held_out)
            self._transcripts(f"held-out-{step:06d}", played)
            mine, ratios = played.experience, [length_ratio(trajectory) for trajectory in played.trajectories]
        experience = exchange(mine)
        self._check(experience, f"held-out samples after step {step}")
        lengths = self._mean(ratios, dist.group.WORLD)
        values = reward_metrics(experience, "val") | self._likelihood(learner) | named("val/length_ratio", lengths)
        for name in HELD_OUT_ALARMS:
            self.held_out_series.setdefault(name, []).append(values.get(name, Missing("not measured")))
        found = alarms(
            {HELD_OUT_ALARMS[name]: series for name, series in self.held_out_series.items()}, window=EVALUATIONS
        )
        return values | {"val/alarms": self._sound(found)}

    @staticmethod
    def _sound(found: Sequence[Alarm]) -> int:
        """Say each alarm; how many there are."""
        for alarm in found if is_rank_zero() else ():
            print(f"alarm: {alarm.message}", flush=True)
        return len(found)

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
        return named("val/likelihood", self._mean(values, parallel_state.get_data_parallel_group()))

    @staticmethod
    def _mean(mine: Sequence[Value], group: dist.ProcessGroup) -> Value:
        """Mean of what is present on any rank of the group. Collective."""
        everybody: list[Sequence[Value]] = [()] * group.size()
        dist.all_gather_object(everybody, list(mine), group=group)
        present = [value for part in everybody for value in part if not isinstance(value, Missing)]
        return sum(present) / len(present) if present else Missing("none on any rank")

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


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """An engine that died too often ends the run in one line, resumably."""
    try:
        yield
    except EngineStopped as error:
        raise RolloutError(str(error)) from error


def named(name: str, value: Value) -> dict[str, float]:
    """A metric, or none where it is missing."""
    return {} if isinstance(value, Missing) else {name: value}


def length_ratio(trajectory: Trajectory) -> Value:
    """How close the policy's last reply is to the real one in words: in (0, 1], 1 where they are as long."""
    reply = last_reply(trajectory)
    if reply is None or trajectory.sample.reference is None:
        return Missing("no reference")
    return closeness(count_words(reply), count_words(trajectory.sample.reference))


def held_out_samples(tasks: dict[str, Task], count: int) -> list[tuple[Task, Sample]]:
    """`count` validation samples, as evenly over the tasks as their numbers allow, always the same."""
    each = [[(task, sample) for sample in task.samples("validation")] for task in tasks.values()]
    turns = [pair for turn in zip_longest(*each) for pair in turn if pair is not None]
    return turns[:count]


def _series(run: RunDirectory, present: str) -> dict[str, list[Value]]:
    """The curves so far, of the lines that have `present`, for the alarms of a run that goes on."""
    rows = [row for row in read_metrics(run.metrics_file) if present in row]
    names = {name for row in rows for name in row}
    return {name: [row.get(name, Missing("not measured")) for row in rows] for name in names}
