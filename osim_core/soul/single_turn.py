"""Episodes of one question and one answer, which most tasks of SOUL-Index are."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from osim_core.corpus.conversation import Message
from osim_core.missing import Missing, Value
from osim_core.soul.episode import POLICY, Ask, Episode, Outcome, Turn


def single_turn(
    messages: Sequence[Message],
    max_tokens: int,
    examine: Callable[[str], Outcome],
) -> Episode:
    """Ask the policy once. `examine` turns its text into the outcome; a missing reply ends the episode as missing.

    A reply that was cut at `max_tokens` is examined like any other, and the outcome says that it ended by "length".
    """
    (reply,) = yield (Ask(speaker=POLICY, messages=tuple(messages), max_tokens=max_tokens),)
    if isinstance(reply.text, Missing):
        return unanswered((), reply.text)
    outcome = examine(reply.text)
    return replace(outcome, ended="length") if reply.finish == "length" else outcome


def unanswered(turns: tuple[Turn, ...], missing: Missing) -> Outcome:
    """The outcome of an episode in which somebody's reply could not be had."""
    return Outcome(turns=turns, values={}, ended=missing.reason)


def part(outcome: Outcome, name: str) -> Value:
    """A rule-scored part of an outcome; where the episode ended before it was scored, the reason why."""
    return outcome.values.get(name, Missing(outcome.ended))


def graded(text: str, answer: str | None, correct: bool) -> Outcome:
    """The outcome of a question with one right answer; `answer` None: the reply states none."""
    values = {"correct": float(correct), "parsed": float(answer is not None)}
    return Outcome(turns=(Turn(POLICY, text),), values=values)
