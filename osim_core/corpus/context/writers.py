"""The interface of a context writer, and the rule-based one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from osim_core.corpus.context.schema import SocialContext
from osim_core.corpus.sources.dialogue import Dialogue

Fault = Literal["", "unknown", "schema", "refused", "transport"]


@dataclass(frozen=True, slots=True)
class Request:
    """One context to write. `rejected` says what was wrong with the draft before, "" at the first attempt."""

    dialogue: Dialogue
    speaker: str
    attempt: int = 0
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a writer gives: a context, or a fault and why.

    "unknown"    the record states nothing; "schema": the answer is no context; "refused": the server will not answer
                 this one; "transport": no answer, so the next run asks again
    tokens       of the request and the answer, as the server or engine counted them; None: not told
    """

    context: SocialContext | None
    fault: Fault = ""
    reason: str = ""
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0


class Writer(Protocol):
    """identity  everything that decides what it writes, for the content hash
    attempts  how many drafts of one context there may be
    stated    whether it only repeats what the record states: then leakage is measured and reported but rejects
              nothing, since a person who repeats the topic that they were given does what people do
    """

    identity: str
    attempts: int
    stated: bool

    def write(self, requests: Sequence[Request]) -> list[Draft]:
        """One draft per request, in order."""
        ...


class RuleWriter:
    """What the record states, as it states it; a dialogue of which nothing is stated gets no context."""

    identity = "rules 1"
    attempts = 1
    stated = True

    def write(self, requests: Sequence[Request]) -> list[Draft]:
        return [self._draft(request.dialogue, request.speaker) for request in requests]

    def _draft(self, dialogue: Dialogue, speaker: str) -> Draft:
        context = SocialContext(
            persona=dialogue.personas.get(speaker, "").strip(),
            relationship=dialogue.relationship.strip(),
            scene=dialogue.scene.strip(),
            goal=dialogue.goals.get(speaker, "").strip(),
        )
        return Draft(context) if context else Draft(None, "unknown", "the record states nothing about the speaker")
