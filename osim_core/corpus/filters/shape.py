"""How much is said, and by whom: length and one-sidedness.

A word is a run of characters without white space; a character of a script that writes no spaces (Chinese, Japanese,
Thai, Lao, Khmer, Burmese) counts as one word, as the dedup does.
"""

import re
from collections.abc import Sequence

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.filters import Outcome, words_of

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


class Length:
    """Drops conversations with fewer than `min_trained` words of the simulated person, fewer than `min_words` or more
    than `max_words` in all (system message apart), or more than `max_characters`: what has no spaces has few words."""

    name = "length"

    def __init__(
        self, min_trained: int = 1, min_words: int = 5, max_words: int = 100_000, max_characters: int = 1_000_000
    ) -> None:
        if min_trained < 0 or not 0 <= min_words <= max_words:
            raise ValueError(f"length: {min_trained=}, {min_words=}, {max_words=} do not make a range")
        self.min_trained, self.min_words, self.max_words = min_trained, min_words, max_words
        self.max_characters = max_characters

    def __call__(self, conversation: Conversation) -> Outcome:
        if sum(len(message.content) for message in conversation.messages) > self.max_characters:
            return Outcome(dropped="too long")
        trained = count_words(words_of(conversation, "assistant"))
        words = trained + count_words(words_of(conversation, "user"))
        if trained < self.min_trained or words < self.min_words:
            return Outcome(dropped="too short")
        return Outcome(dropped="too long" if words > self.max_words else "")


class Balance:
    """Labels balance by the trained side's share of the words: "monologue" (nobody else speaks), "silent" (the trained
    side does not), "listener" (below `edge`), "speaker" (above 1 - `edge`) or "both"; drops what `drop` names.

    A listener is no fault by itself: a person who asks an AI for an essay is one, and so is a survey respondent.
    """

    name = "balance"

    def __init__(self, drop: Sequence[str] = ("monologue", "silent"), edge: float = 0.02) -> None:
        unknown = [kind for kind in drop if kind not in ("monologue", "silent", "listener", "speaker", "both")]
        if unknown or not 0 <= edge < 0.5:
            raise ValueError(f"balance: no kind {unknown[0]!r}" if unknown else f"balance: {edge=} is not in [0, 0.5)")
        self.drop, self.edge = frozenset(drop), edge

    def __call__(self, conversation: Conversation) -> Outcome:
        trained = count_words(words_of(conversation, "assistant"))
        other = count_words(words_of(conversation, "user"))
        if not other or not trained:
            kind = "silent" if not trained else "monologue"
        else:
            share = trained / (trained + other)
            kind = "listener" if share < self.edge else "speaker" if share > 1 - self.edge else "both"
        return Outcome(dropped=kind if kind in self.drop else "", labels={"balance": kind})


def count_words(text: str) -> int:
    """Words of a text; see the top of this file."""
    return len(WORD.findall(text))
