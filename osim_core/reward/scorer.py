"""Played episodes in, rewards out: judge, task score, detectors, composition.

    scorer = Scorer(judge, held_out, panel)
    for trajectory, reward in zip(trajectories, scorer(trajectories), strict=True): reward.record.final ...

All items of a call go to each judge at once. The held-out judge sees the same items and decides nothing. Detectors look
at tasks that a judge scores: a rule cannot be flattered, and length or register say nothing about an answer letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from osim_core.judge.rubric import Judge, JudgeItem, Verdict, load_rubric
from osim_core.missing import Missing, Value
from osim_core.reward.compose import Composition, Part, RewardRecord, compose
from osim_core.reward.detectors import Panel, Specimen
from osim_core.reward.similarity import SentenceEncoder, similarity_rewards
from osim_core.reward.turing import turing_item, turing_reward
from osim_core.rollout.runner import Trajectory
from osim_core.soul.episode import POLICY


class Reward(NamedTuple):
    """record: how the reward came to be; held_out: the score by the judge that only watches; verdicts: of the judge
    that trains, by the ids that the task gave its items."""

    record: RewardRecord
    held_out: Value
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Scorer:
    """judge: of the tasks that are judged, and of Turing pairs; held_out: watches; panel: detectors. Each may be None.

    encoder and similarity, turing: weights beside the task's own score, which weighs 1, where a sample has a real reply
    to compare with.

    Raises ValueError, when called, for a judged task or a Turing part without a judge.
    """

    judge: Judge | None = None
    held_out: Judge | None = None
    panel: Panel | None = None
    encoder: SentenceEncoder | None = None
    similarity: float = 0.0
    turing: float = 0.0

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Reward]:
        """The reward of each trajectory, in order."""
        verdicts = self._judge(self.judge, trajectories)
        watched = self._judge(self.held_out, trajectories)
        parts = self._comparisons(trajectories)
        findings = self.panel.inspect(list(_specimens(trajectories))) if self.panel else {}
        rewards = []
        for trajectory, mine, theirs, compared in zip(trajectories, verdicts, watched, parts, strict=True):
            owner, spec = owner_of(trajectory), trajectory.task.spec
            terms = (
                Part("score", 1.0, *spec.bounds),
                *(Part(name, getattr(self, name), optional=True) for name in compared),
            )
            # a reply that was never written has nothing to detect, and no reward either
            seen = {owner: findings[owner]} if owner in findings else {}
            values = {owner: {"score": self._score(trajectory, mine), **compared}}
            record = compose(Composition(spec.id, terms), values, seen)[owner]
            held_out = Missing("no held-out judge") if self.held_out is None else self._score(trajectory, theirs)
            rewards.append(Reward(record, held_out, mine))
        return rewards

    def _comparisons(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Value]]:
        """Per trajectory, the parts that hold its last reply against the real one; {} where it has none."""
        found: list[dict[str, Value]] = [{} for _ in trajectories]
        pairs = {
            number: (reply, trajectory.sample.reference)
            for number, trajectory in enumerate(trajectories)
            if trajectory.sample.reference and (reply := last_reply(trajectory)) is not None
        }
        if self.similarity and pairs:
            scores = similarity_rewards(self.encoder, *map(list, zip(*pairs.values(), strict=True)))
            for number, score in zip(pairs, scores, strict=True):
                found[number]["similarity"] = score
        if self.turing and pairs:
            if self.judge is None:
                raise ValueError("reward.turing needs a judge; set --reward.judge.backend")
            items = [
                turing_item(owner_of(trajectories[n]), context=_context(trajectories[n]), reply=reply, real=real)
                for n, (reply, real) in pairs.items()
            ]
            for number, verdict in zip(pairs, self.judge.score(items), strict=True):
                found[number]["turing"] = turing_reward(verdict)
        return found

    def _judge(self, judge: Judge | None, trajectories: Sequence[Trajectory]) -> list[dict[str, Verdict]]:
        """Per trajectory, verdicts by the ids that its task gave the items."""
        items: list[JudgeItem] = []
        places: list[tuple[int, str]] = []
        for number, trajectory in enumerate(trajectories):
            for item in trajectory.outcome.judgements:
                items.append(replace(item, id=f"{owner_of(trajectory)}/{item.id}"))  # replicas share the task's ids
                places.append((number, item.id))
        found: list[dict[str, Verdict]] = [{} for _ in trajectories]
        if items and judge is not None:
            for (number, id), verdict in zip(places, judge.score(items), strict=True):
                found[number][id] = verdict
        elif items and judge is self.judge:
            task = trajectories[places[0][0]].task.spec.id
            raise ValueError(f"task {task} is scored by a judge; set --reward.judge.backend, or leave the task out")
        return found

    @staticmethod
    def _score(trajectory: Trajectory, verdicts: dict[str, Verdict]) -> Value:
        return trajectory.task.score(trajectory.sample, trajectory.outcome, verdicts)


def owner_of(trajectory: Trajectory) -> str:
    """The trajectory's name among all of a step."""
    return f"{trajectory.sample.id}#{trajectory.replica}"


def last_reply(trajectory: Trajectory) -> str | None:
    """What the policy wrote last, or None."""
    replies = [turn.text for turn in trajectory.outcome.turns if turn.speaker == POLICY]
    return replies[-1] if replies else None


def _context(trajectory: Trajectory) -> str:
    """The transcript before the policy's last reply."""
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in trajectory.outcome.turns[:-1])


def _specimens(trajectories: Sequence[Trajectory]):
    """Every turn of the policy in the judged tasks, with what it had been told before it."""
    for trajectory in trajectories:
        if not trajectory.task.spec.judged:
            continue
        sample, rubrics = trajectory.sample, {item.rubric for item in trajectory.outcome.judgements}
        dimensions = tuple(d.name for rubric in sorted(rubrics) for d in load_rubric(rubric).dimensions)
        for ledger in trajectory.ledgers.values():
            told: list[str] = []
            for message in ledger.messages:
                if message.role == "assistant":
                    yield Specimen(
                        owner=owner_of(trajectory),
                        text=message.content,
                        context="\n".join(told),
                        intent=str(sample.fields.get("intent", "")),
                        rubric=dimensions,
                        group=f"{sample.task}/{sample.id}" if len(trajectory.outcome.turns) else "",
                    )
                else:
                    told.append(message.content)
