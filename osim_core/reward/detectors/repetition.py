"""Repetition: loops of words, phrases or sentences, and pronoun soup.

The score is the largest of four shares, scaled down for short texts, since "no no no" is how people talk:
    loops       words in a stretch that repeats with a period of up to MAX_PERIOD words, three times or more
    n-grams     word trigrams that occurred before in the same text
    vocabulary  distinct words short of n^0.88, the growth law of human talk (Heaps 1978; exponent fitted by eye here)
    pronouns    personal pronouns beyond the half of all words
"""

from collections.abc import Sequence

import numpy as np

from osim_core.reward.detectors import Batch
from osim_core.reward.detectors.text import ngrams, words

MAX_PERIOD = 12
ENOUGH_WORDS = 12
HEAPS = 0.88
PRONOUNS = frozenset(
    words("i me my mine you your yours he him his she her hers it its we us our ours they them their theirs")
)


class Repetition:
    """The detector."""

    name = "repetition"

    def score(self, batch: Batch) -> np.ndarray:
        worst_N = np.array(
            [max(loops(w), repeated_trigrams(w), missing_vocabulary(w), pronoun_excess(w)) for w in batch.words]
        )
        return worst_N * (1.0 - np.exp(-((batch.lengths_N / ENOUGH_WORDS) ** 2)))


def loops(tokens: Sequence[str]) -> float:
    """The longest stretch that repeats with one period at least three times, over the number of words."""
    ids = np.unique(np.array(tokens, dtype=object), return_inverse=True)[1] if tokens else np.zeros(0, int)
    longest = 0
    for period in range(1, min(MAX_PERIOD, len(ids) // 3) + 1):
        same = np.concatenate([[0], ids[period:] == ids[:-period], [0]])
        borders = np.flatnonzero(np.diff(same))
        run = int((borders[1::2] - borders[::2]).max(initial=0))
        if run >= 2 * period:
            longest = max(longest, run + period)
    return longest / max(1, len(ids))


def repeated_trigrams(tokens: Sequence[str]) -> float:
    """Share of word trigrams that are repeats."""
    grams = ngrams(tokens, 3)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def missing_vocabulary(tokens: Sequence[str]) -> float:
    """Share of the expected distinct words that are not there."""
    return max(0.0, 1.0 - len(set(tokens)) / len(tokens) ** HEAPS) if tokens else 0.0


def pronoun_excess(tokens: Sequence[str]) -> float:
    """2 x (share of pronouns - 1/2), or 0 below that half."""
    share = sum(token in PRONOUNS for token in tokens) / max(1, len(tokens))
    return max(0.0, 2.0 * share - 1.0)
