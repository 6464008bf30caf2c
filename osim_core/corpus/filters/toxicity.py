"""Offensive words, kept but labelled: a model of people has to know how people talk.

The words are the list of the package better-profanity 0.7.0 (MIT, 916 English entries), read from its folder; its code
is not run. Limits: the list is English, it has mild words ("damn") and words of groups and of anatomy beside slurs, and
it cannot tell an insult from a quotation; what is vile without a listed word is not seen. Use the label to look at the
data and to weigh it, never to judge a person.
"""

import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.filters import Outcome, words_of

TOKEN = re.compile(r"[\w@$*!]+(?:'\w+)?")
PLAIN = str.maketrans({"0": "o", "1": "i", "3": "e", "@": "a", "$": "s", "4": "a", "5": "s", "!": "i"})


class Toxicity:
    """Labels toxicity by who uses listed words: "none", "trained", "other" or "both"; never drops. `words` replaces
    the packaged list."""

    name = "toxicity"

    def __init__(self, words: Iterable[str] | None = None) -> None:
        entries = packaged_words() if words is None else frozenset(word.casefold() for word in words)
        self._phrases: dict[str, list[list[str]]] = {}  # by their first word
        for phrase in map(TOKEN.findall, sorted(entries)):
            if phrase:
                self._phrases.setdefault(phrase[0], []).append(phrase)

    def __call__(self, conversation: Conversation) -> Outcome:
        who = [
            side
            for side, role in (("trained", "assistant"), ("other", "user"))
            if self.listed(words_of(conversation, role))
        ]
        return Outcome(labels={"toxicity": "both" if len(who) == 2 else who[0] if who else "none"})

    def listed(self, text: str) -> int:
        """How many listed words or phrases a text holds, as written or with digits and signs for letters."""
        tokens = [token.strip("!") for token in TOKEN.findall(text.casefold())]
        plain = [token if token.isalpha() or token.isdigit() else token.translate(PLAIN) for token in tokens]
        known = self._phrases
        return sum(
            any(form[at : at + len(phrase)] == phrase for form in (tokens, plain) for phrase in known.get(form[at], ()))
            for at in range(len(tokens))
            if tokens[at] in known or plain[at] in known  # hardly ever: the loops above are for these
        )


@cache
def packaged_words() -> frozenset[str]:
    """The entries of better-profanity's list. Raises ValueError if the package is not installed."""
    spec = importlib.util.find_spec("better_profanity")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "toxicity: package better-profanity is not installed; run `pip install --no-deps better-profanity==0.7.0`"
        )
    path = Path(spec.submodule_search_locations[0]) / "profanity_wordlist.txt"
    return frozenset(line.strip().casefold() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
