"""Played episodes to rewards: replicas are judged apart, failures stay missing, and detectors move the reward."""

from dataclasses import dataclass

import pytest

from osim_core.corpus.conversation import Message
from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Missing
from osim_core.reward.detectors import Finding
from osim_core.reward.scorer import Scorer
from osim_core.rollout.ledger import Ledger
from osim_core.rollout.runner import Trajectory
from osim_core.soul.episode import POLICY, Outcome, Sample, Turn
from osim_core.soul.next_turn import NextTurn

TASK = NextTurn()


def played(replica: int, text: str, reference: str | None = "fine, you?") -> Trajectory:
    sample = Sample(id="s", task="next_turn", scenario="p", fields={}, reference=reference)
    item = JudgeItem(id="s", rubric="next_turn", context="Other: how are you?", reply=text)
    turns = (Turn("Other", "how are you?"), Turn(POLICY, text))
    outcome = Outcome(turns=turns, values={"answered": 1.0}, judgements=(item,))
    ledger = Ledger(renderer=None, context=100, messages=[Message("user", "how are you?"), Message("assistant", text)])
    return Trajectory(TASK, sample, replica, outcome, {"": ledger})


@dataclass(frozen=True)
class ByLength:
    """A judge that likes every letter, and has nothing to say about "?"."""

    name: str = "by length"
    identity: str = "by length"

    def score(self, items: list[JudgeItem]) -> list[Verdict]:
        assert len({item.id for item in items}) == len(items), "replicas share the task's id, and must not here"
        return [self._verdict(item) for item in items]

    def _verdict(self, item: JudgeItem) -> Verdict:
        value = Missing("timeout", "after 3 tries") if item.reply == "?" else min(1.0, len(item.reply) / 10)
        if item.other is not None:
            value = 0.25
        return Verdict(values={"human_likeness": value}, score=value)


class Flagging:
    """A panel that flags what is longer than eight letters, at the cost of half the reward."""

    def inspect(self, specimens) -> dict:
        return {s.owner: {"long": Finding(1.0, len(s.text) > 8, 0.5 if len(s.text) > 8 else 1.0)} for s in specimens}


def test_each_replica_has_its_own_verdict_and_a_failure_is_no_score():
    rewards = Scorer(judge=ByLength())([played(0, "ok"), played(1, "?"), played(2, "fine")])
    assert [r.record.final for r in rewards] == [0.2, Missing("timeout", "score: after 3 tries"), 0.4]
    assert [r.held_out for r in rewards] == [Missing("no held-out judge")] * 3
    assert rewards[2].verdicts["s"].score == 0.4


def test_detectors_move_the_final_reward_and_the_watching_judge_moves_nothing():
    rewards = Scorer(judge=ByLength(), held_out=ByLength(), panel=Flagging())([played(0, "ok"), played(1, "x" * 10)])
    assert [(r.record.raw, r.record.final, r.held_out) for r in rewards] == [(0.2, 0.2, 0.2), (1.0, 0.5, 1.0)]


def test_a_turing_part_is_added_where_there_is_a_real_reply():
    scorer = Scorer(judge=ByLength(), turing=1.0)
    with_real, without = scorer([played(0, "fine"), played(1, "fine", reference=None)])
    assert with_real.record.parts == {"score": 0.4, "turing": 0.5}
    assert with_real.record.final == pytest.approx(0.45) and without.record.final == 0.4


def test_a_judged_task_without_a_judge_is_refused_by_name():
    with pytest.raises(ValueError, match="task next_turn is scored by a judge"):
        Scorer()([played(0, "ok")])
    with pytest.raises(ValueError, match="turing needs a judge"):
        Scorer(turing=1.0)._comparisons([played(0, "ok")])
