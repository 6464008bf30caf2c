"""How the detectors cut text: words, sentences and hashed n-grams as sparse rows. Legend: N texts, G hash buckets."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
BUCKETS = 1 << 20


def words(text: str) -> list[str]:
    """Lower-cased words; an apostrophe inside one belongs to it."""
    return WORD.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """Sentences and lines with at least one word."""
    return [part.strip() for part in SENTENCE_END.split(text) if WORD.search(part)]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none if there are fewer."""
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def ngram_sets(rows: Iterable[Sequence[str]], n: int) -> sparse.csr_matrix:
    """float32 [N, G] sparse: 1 where a row of tokens holds an n-gram. Rows shorter than n count as one gram.

    The hash is Python's own, so that bucket numbers differ between processes; what is computed from them does not.
    """
    indices, borders = [], [0]
    for tokens in rows:
        grams = ngrams(tokens, n) or ([tuple(tokens)] if tokens else [])
        indices.extend({hash(gram) % BUCKETS for gram in grams})
        borders.append(len(indices))
    ones = np.ones(len(indices), np.float32)
    return sparse.csr_matrix((ones, indices, borders), shape=(len(borders) - 1, BUCKETS))
