"""Copying: a reply that hands back its context, or recites the goal it was given, instead of saying something.

Words of both are compared as runs of four, persons aside ("I want my" = "You want your"). The score is the share of the
reply, or for the goal also of the goal, that lies in shared runs, scaled from 0 to 1 by the longest run between
FREE_RUN and SURE_RUN words: people do pick up half a phrase.
"""

from collections.abc import Sequence

import numpy as np

from osim_core.reward.detectors import Batch
from osim_core.reward.detectors.text import ngrams, words

GRAM = 4
FREE_RUN, SURE_RUN = 6, 10
PERSON = {
    **dict.fromkeys(("you", "we", "me", "i'd", "you'd", "us"), "i"),
    **dict.fromkeys(("your", "our"), "my"),
    **dict.fromkeys(("are", "were"), "am"),
}


class Copying:
    """The detector, over `context` and `intent`."""

    name = "copying"

    def score(self, batch: Batch) -> np.ndarray:
        scores = []
        for reply, specimen in zip(batch.words, batch.specimens, strict=True):
            spoken = _impersonal(reply)
            intent, context = _impersonal(words(specimen.intent)), _impersonal(words(specimen.context))
            scores.append(max(_copied(spoken, intent), _copied(intent, spoken), _copied(spoken, context)))
        return np.array(scores)


def _impersonal(tokens: Sequence[str]) -> list[str]:
    return [PERSON.get(token, token) for token in tokens]


def _copied(part: Sequence[str], whole: Sequence[str]) -> float:
    """Share of `part` in runs of GRAM words that `whole` has, scaled by the longest such stretch."""
    known = set(ngrams(whole, GRAM))
    inside = [gram in known for gram in ngrams(part, GRAM)]
    if not any(inside):
        return 0.0
    covered_W = np.zeros(len(part), bool)
    for at, shared in enumerate(inside):
        covered_W[at : at + GRAM] |= shared
    borders = np.flatnonzero(np.diff(np.concatenate([[0], covered_W, [0]])))
    longest = int((borders[1::2] - borders[::2]).max())
    return float(covered_W.mean()) * min(1.0, max(0, longest - FREE_RUN) / (SURE_RUN - FREE_RUN))
