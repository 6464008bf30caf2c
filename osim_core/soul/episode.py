"""What a task is: samples, an episode that asks for replies, and a score. RL and SOUL-Index share it.

An episode never calls a model. It is a generator that yields what somebody should answer and receives the answers, so
one text runs under RL (many episodes batched into one engine call, osim_core/rollout/runner.py), under an evaluation
harness, and in tests with scripted replies.

Roles: the policy is always the chat role "assistant", because it plays the simulated human; whoever it talks to is
"user"; social context is "system".
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from osim_core.corpus.conversation import Message
from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Missing, Value

Axis = Literal["CONV", "SS", "COG", "ROLE", "EVAL"]
Split = Literal["train", "validation", "test"]
POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task as data, printed beside every score.

    id       name in the registry (soul/tasks.py)
    axis     the SOUL axis it counts under
    version  raised whenever prompts, parsing, scoring or splits change: scores of two versions do not compare
    origin   the publication or data that it follows
    licence  of the data; "" is not allowed
    chance   the score of a policy that guesses at random among the possible answers; None where guessing means nothing
    bounds   lowest and highest possible score
    higher_is_better
    judged   whether a score needs a judge's verdicts
    items    items per split
    roles    model roles that an episode may ask beside the policy, such as ("partner",)
    """

    id: str
    axis: Axis
    version: int
    origin: str
    licence: str
    chance: float | None
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    judged: bool = False
    items: Mapping[str, int]
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a task.

    id         unique in the task
    task       the task's id
    scenario   what samples share (story, play, person); it lies on one side of a split, and statistics cluster by it
    fields     what the task's own functions read
    reference  the real human's reply, where there is one
    """

    id: str
    task: str
    scenario: str
    fields: Mapping[str, Any]
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Somebody should write next.

    speaker     "policy", or a model role of the task's spec: "partner", "assistant", ...
    ledger      which of that speaker's conversations goes on; "" if it has only one
    messages    the messages that are NEW since this ledger's last reply
    max_tokens  the longest reply
    """

    speaker: str
    messages: tuple[Message, ...]
    max_tokens: int
    ledger: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to an Ask. finish "length": cut at max_tokens; "missing": there is none, and text says why."""

    text: str | Missing
    finish: Literal["stop", "length", "missing"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A line of the public transcript."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an episode ended.

    turns       the public transcript
    values      parts that a rule scored, in [0, 1] unless the task says otherwise
    judgements  what a judge must score before the task can
    ended       "done", "turns" (the task's limit), "length" (the last reply was cut), "malformed" (the policy's replies
                cannot be read), or the reason of the Missing that ended it
    """

    turns: tuple[Turn, ...]
    values: Mapping[str, Value]
    judgements: tuple[JudgeItem, ...] = ()
    ended: str = "done"


Episode = Generator[tuple[Ask, ...], tuple[Reply, ...], Outcome]
"""Yields the asks of one step, which may be answered in parallel; is sent one reply per ask, in order."""


class Task(Protocol):
    """A family of samples with one protocol and one scale. Stateless: the same sample may be played many times."""

    spec: TaskSpec

    def samples(self, split: Split) -> Sequence[Sample]:
        """All samples of a split, in a fixed order."""
        ...

    def episode(self, sample: Sample) -> Episode:
        """A fresh episode."""
        ...

    def score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """The score within `spec.bounds`, or why there is none. `verdicts` maps ids of `outcome.judgements`."""
        ...


def play(episode: Episode, answer: Callable[[Ask], Reply]) -> Outcome:
    """Run one episode to its end with `answer` in everybody's place."""
    asks = next(episode)
    while True:
        try:
            asks = episode.send(tuple(answer(ask) for ask in asks))
        except StopIteration as end:
            return end.value
