"""What every source gives before anyone's side is taken: turns by named speakers, and what the record says of them.

files -> Dialogue (formats) -> social context (corpus/context) -> Conversation, one per person who is simulated
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.sources.perspective import as_one_character

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker said before the next one spoke."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One record of a source.

    id            unique in its source; file and row can be found from it
    trained       the speakers to simulate, a conversation each; others only appear in user turns
    scene         where, when and about what, as the record states it; never an outcome
    relationship  of the speakers, as the record states it
    personas      speaker -> who they are, and `goals`: speaker -> what they want; as the record states them
    people        speaker -> a name that is the same wherever this person appears; missing: known only here
    system        a complete social context that the record already carries; used as it is
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    trained: tuple[str, ...]
    scene: str = ""
    relationship: str = ""
    personas: Mapping[str, str] = field(default=NOTHING)
    goals: Mapping[str, str] = field(default=NOTHING)
    people: Mapping[str, str] = field(default=NOTHING)
    system: str | None = None

    def person(self, speaker: str) -> str:
        """The group of a speaker: what must not be on both sides of the split."""
        known = self.people.get(speaker)
        return f"{self.source}/{known}" if known else f"{self.source}/{self.id}/{speaker}"


def take_side(dialogue: Dialogue, speaker: str, system: str) -> Conversation:
    """The dialogue as `speaker` lives it, after the system message `system` (none if that is empty).

    With two speakers the other's turns are bare; with more, each is named. Turns next to each other are joined by a
    line break. Raises ValueError if `speaker` says nothing.
    """
    turns = [(turn.speaker, turn.text) for turn in dialogue.turns]
    speakers = sorted({name for name, _ in turns})
    if speaker not in speakers:
        raise ValueError(f"{dialogue.source}/{dialogue.id}: {speaker!r} says nothing")
    if len(speakers) <= 2:
        messages = tuple(
            Message("assistant" if own else "user", "\n".join(text for _, text in said))
            for own, said in groupby(turns, key=lambda turn: turn[0] == speaker)
        )
    else:
        messages = tuple(as_one_character(speaker, turns))
    others = (dialogue.person(name) for name in speakers if name != speaker and name in dialogue.people)
    return Conversation(
        id=f"{dialogue.source}/{dialogue.id}/{speaker}",
        source=dialogue.source,
        messages=(*((Message("system", system),) if system else ()), *messages),
        group=dialogue.person(speaker),
        others=tuple(others),
    )
