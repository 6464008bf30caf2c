"""How much of what is said later a social context gives away.

A context written from the whole conversation may quote it; a model trained on that learns to copy its system message.
Later is everything but an opening of others, which the person has heard when they first speak. Two tests:

    overlap  the share of the context's word 4-grams that are said later
    copy     a run of RUN words that is said later, or a whole turn of the simulated person of SHORT words and more; a
             dialogue with a single such turn is a question and its answer, and then any answer counts that was not
             already in what was asked
"""

import re
from dataclasses import dataclass

from osim_core.corpus.filters.shape import UNSPACED
from osim_core.corpus.sources.dialogue import Dialogue

GRAM = 4
RUN = 8
SHORT = 4
MAX_OVERLAP = 0.15
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Leakage:
    """overlap in [0, 1], and the words that are copied ("" if none)."""

    overlap: float
    copied: str

    @property
    def too_much(self) -> bool:
        """Whether the context must not be used."""
        return bool(self.copied) or self.overlap > MAX_OVERLAP

    def explain(self) -> str:
        """Why, in words that a model can act on."""
        if self.copied:
            return f'it repeats what is said in the conversation: "{self.copied}"'
        return f"{self.overlap:.0%} of its phrases are said in the conversation"


def leakage(context: str, dialogue: Dialogue, speaker: str) -> Leakage:
    """Measure a context (its text) against a dialogue as `speaker` lives it. Cost: linear in both."""
    own = [turn for turn in dialogue.turns if turn.speaker == speaker]
    heard = next((at for at, turn in enumerate(dialogue.turns) if turn.speaker == speaker), len(dialogue.turns))
    later = [words(turn.text) for turn in dialogue.turns[heard:]]
    given = words(context)
    grams = _grams(given, GRAM)
    said = {gram for turn in later for gram in _grams(turn, GRAM)}
    overlap = sum(gram in said for gram in grams) / len(grams) if grams else 0.0
    runs = {gram for turn in later for gram in _grams(turn, RUN)}
    copied = next((" ".join(gram) for gram in _grams(given, RUN) if gram in runs), "")
    if not copied:
        stimulus = [word for turn in dialogue.turns[:heard] for word in words(turn.text)]
        copied = next((turn.text for turn in own if _is_copied(words(turn.text), given, stimulus, len(own) == 1)), "")
    return Leakage(overlap, copied)


def words(text: str) -> list[str]:
    """Lower-cased words; characters of scripts without spaces one by one."""
    return WORD.findall(text.casefold())


def _is_copied(turn: list[str], given: list[str], stimulus: list[str], only: bool) -> bool:
    if not turn or (len(turn) < SHORT and not (only and not _within(turn, stimulus))):
        return False
    return _within(turn, given)


def _within(part: list[str], whole: list[str]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def _grams(text: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(text[at : at + size]) for at in range(len(text) - size + 1)]
