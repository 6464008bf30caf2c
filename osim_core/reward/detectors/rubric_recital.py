"""Rubric recital: a reply that names the dimensions it is scored on.

A word counts for a term of the rubric if it shares the term's beginning (the first len - 4 letters, five at least):
"polite" for "politeness", "empathetic" for "empathy". A term of several words counts where two of them stand together.
One such word is talk; the score grows with the number of distinct terms and falls as they thin out in a long text.
"""

from collections.abc import Sequence

import numpy as np

from osim_core.reward.detectors import Batch
from osim_core.reward.detectors.text import words

SMALL_WORDS = frozenset({"and", "or", "of", "the", "a", "to", "in", "for", "with"})
WORDS_PER_TERM = 15  # a text that names a term this often is dense


class RubricRecital:
    """The detector, over `rubric`; 0 where there is none."""

    name = "rubric_recital"

    def score(self, batch: Batch) -> np.ndarray:
        hits_N = np.array(
            [
                sum(_named(term, spoken) for term in specimen.rubric)
                for spoken, specimen in zip(batch.words, batch.specimens, strict=True)
            ],
            np.float64,
        )
        density_N = np.minimum(1.0, WORDS_PER_TERM * hits_N / np.maximum(1, batch.lengths_N))
        return (1.0 - 0.5**hits_N) * density_N


def _named(term: str, spoken: Sequence[str]) -> float:
    """1 for a term of one word that was said, 1.5 for one of several, else 0."""
    parts = [part for part in words(term) if part not in SMALL_WORDS]
    matches = [{at for at, word in enumerate(spoken) if _same_stem(part, word)} for part in parts]
    if len(parts) == 1:
        return 1.0 if matches[0] else 0.0
    together = any(
        abs(a - b) <= 2 and a != b
        for i, first in enumerate(matches)
        for second in matches[i + 1 :]
        for a in first
        for b in second
    )
    return 1.5 if together else 0.0


def _same_stem(term: str, word: str) -> bool:
    stem = term[: max(5, len(term) - 4)]
    return word.startswith(stem) if len(stem) >= 5 else word in (term, f"{term}s")
