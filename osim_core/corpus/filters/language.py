"""Which language a conversation is in, by py3langid (BSD-3-Clause, 140 languages, model inside the wheel).

It is a classifier of byte n-grams: sure about sentences, guessing on a few words of slang. So a text is only called a
language where there are enough letters and the model is confident; everything else is "und" (undetermined) and stays.
"""

from collections.abc import Sequence
from functools import cache

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.filters import Outcome, words_of

MIN_LETTERS = 40
MIN_PROBABILITY = 0.9
READ_CHARACTERS = 2_000  # of each side: the cost grows with length, the certainty does not


class Language:
    """Labels language=<ISO code> or "und"; drops conversations that surely are in none of `keep` (empty: keeps all).

    The side that is trained decides; where it says too little, both sides do.
    """

    name = "language"

    def __init__(self, keep: Sequence[str] = ()) -> None:
        unknown = [code for code in keep if code not in _identifier().labels]
        if unknown:
            raise ValueError(f"language {unknown[0]!r}: not an ISO 639-1 code that py3langid knows, such as en, de, zh")
        self.keep = frozenset(keep)

    def __call__(self, conversation: Conversation) -> Outcome:
        trained = words_of(conversation, "assistant")[:READ_CHARACTERS]
        language = identify(trained)
        if language == "und":
            language = identify(f"{trained}\n{words_of(conversation, 'user')[:READ_CHARACTERS]}")
        foreign = bool(self.keep) and language != "und" and language not in self.keep
        return Outcome(dropped=f"in {language}" if foreign else "", labels={"language": language})


def identify(text: str) -> str:
    """The ISO 639-1 code of a text, or "und" where it is short or the model is not sure.

    A letter of a script without spaces counts as four: ten Chinese characters say as much as forty Latin letters.
    """
    letters = sum(map(str.isalpha, text))
    if not text.isascii():
        letters += 3 * sum(c.isalpha() for c in text if ord(c) >= 0x2E80)
    if letters < MIN_LETTERS:
        return "und"
    code, probability = _identifier().classify(text)
    return code if probability >= MIN_PROBABILITY else "und"


@cache
def _identifier():
    # Imported here: its model takes seconds to unpack, and only this filter needs it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
