"""Verbal feedback (Ditto, arXiv 2605.20506): a second reply after a critique of the first, taught without the critique.

    start = refinement(draft, reward, verdicts)              # the second round of a draft, played like any episode
    experience += reattached(draft, refined, replicas=8)     # its reply under the plain prompt, and under its own

For each single-turn draft y0 with reward r0, a critique h of it, the same policy's reply y1 to (x, y0, h), and y1's
reward r1 from the very same rule, judge and detectors: one scale on all branches. Then

    group of x            drafts and refined replies together, y1 re-attached to x as if it had been written without h
    group of x, feedback  the refined replies under the prompts that they were written under

A re-attached reply was sampled under (x, y0, h), not under x. Its log-probs in the ledger are those of the sampler, so
the policy stream's truncated importance weight min(p(y1 | x) / p(y1 | x, y0, h), cap) corrects it token by token.

A critique is the task's own (`critique(sample, outcome)`), or, where a judge scored the draft, names the question on
which it did worst. It never quotes a real person's reply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osim_core.corpus.conversation import Message
from osim_core.judge.rubric import Verdict, load_rubric
from osim_core.missing import Missing, Value
from osim_core.rollout.experience import Experience, TokenSequence
from osim_core.rollout.runner import Start, Trajectory
from osim_core.soul.episode import Ask, Episode, Outcome, Sample, Split, Task

GOOD_ENOUGH = 0.999  # a draft with more than this share of its scale has nothing to be told


@dataclass(frozen=True)
class Refinement:
    """A task whose prompt goes on with a draft and its critique; scored exactly as the task itself."""

    task: Task
    draft: str
    critique: str

    @property
    def spec(self):
        return self.task.spec

    def samples(self, split: Split) -> Sequence[Sample]:
        return self.task.samples(split)

    def episode(self, sample: Sample) -> Episode:
        inner = self.task.episode(sample)
        (ask,) = next(inner)
        said = (Message("assistant", self.draft), Message("user", self.critique))
        (reply,) = yield (Ask(speaker=ask.speaker, messages=(*ask.messages, *said), max_tokens=ask.max_tokens),)
        try:
            inner.send((reply,))
        except StopIteration as end:
            return end.value
        raise ValueError(
            f"feedback: task {self.spec.id} goes on after one reply; only single-turn tasks can be refined"
        )

    def score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        return self.task.score(sample, outcome, verdicts)


def refinement(draft: Trajectory, reward: Value, verdicts: Mapping[str, Verdict]) -> Start | None:
    """The second round of a draft, or None: it has no reward, nothing to be told, or more than one turn."""
    if isinstance(reward, Missing) or reward > GOOD_ENOUGH or draft.ledgers.keys() != {""}:
        return None
    replies = [message for message in draft.ledgers[""].messages if message.role == "assistant"]
    own = getattr(draft.task, "critique", None)
    said = own(draft.sample, draft.outcome) if own else criticise(draft.outcome, verdicts)
    if len(replies) != 1 or not said:
        return None
    return Start(Refinement(draft.task, replies[0].content, said), draft.sample, draft.replica)


def criticise(outcome: Outcome, verdicts: Mapping[str, Verdict]) -> str:
    """A sentence on the dimension in which a judge found the reply weakest; "" where no judge said anything."""
    weakest: tuple[float, str] | None = None
    for item in outcome.judgements:
        values = verdicts[item.id].values if item.id in verdicts else {}
        for dimension in load_rubric(item.rubric).dimensions:
            value = values.get(dimension.name, Missing("not judged"))
            if not isinstance(value, Missing) and (weakest is None or value < weakest[0]):
                weakest = (value, dimension.question)
    return f"That reply was weak in one respect: {weakest[1]} Write it again, better in that." if weakest else ""


def reattached(draft: Experience, refined: Experience, replicas: int) -> list[Experience]:
    """A refined reply twice: in the draft's group under the draft's prompt, and in a group of refined replies under its
    own. `replicas`: how many drafts the group has; refined replies are numbered after them."""
    if isinstance(refined.reward, Missing) or not refined.sequences:
        return []
    (plain,), (own,) = draft.sequences, refined.sequences
    moved = TokenSequence(plain.prompt, own.reply, own.is_policy, own.logprobs)
    fields = {"task": refined.task, "reward": refined.reward, "version": refined.version}
    return [
        Experience(**fields, sample=draft.sample, replica=replicas + refined.replica, sequences=(moved,)),
        Experience(**fields, sample=f"{draft.sample}/feedback", replica=refined.replica, sequences=(own,)),
    ]
