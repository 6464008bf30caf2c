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
from osim_core.rollout.runner import Trajectory


class Reward(NamedTuple):
    """record: how the reward came to be; held_out: the score by the judge that only watches; verdicts: of the judge
    that trains, by the ids that the task gave its items."""

    record: RewardRecord
    held_out: Value
    verdicts: Mapping[str, Verdict]


@dataclass(frozen=True)
class Scorer:
    """judge: of the tasks that are judged; held_out: watches; panel: detectors. Each may be None.

    Raises ValueError, when called, for a judged task without a judge.
    """

    judge: Judge | None = None
    held_out: Judge | None = None
    panel: Panel | None = None

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Reward]:
        """The reward of each trajectory, in order."""
        verdicts = self._judge(self.judge, trajectories)
        watched = self._judge(self.held_out, trajectories)
        findings = self.panel.inspect(list(_specimens(trajectories))) if self.panel else {}
        results = []
        for trajectory, mine, theirs in zip(trajectories, verdicts, watched, strict=True):
            owner, spec = owner_of(trajectory), trajectory.task.spec
            part = Part("score", 1.0, *spec.bounds)
            # a reply that was never written has nothing to detect, and no reward either
            seen = {owner: findings[owner]} if owner in findings else {}
            values = {owner: {"score": self._score(trajectory, mine)}}
            record = compose(Composition(spec.id, (part,)), values, seen)[owner]
            held_out = Missing("no held-out judge") if self.held_out is None else self._score(trajectory, theirs)
            results.append(Reward(record, held_out, mine))
        return results

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
