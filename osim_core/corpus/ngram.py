"""Unigram and trigram baselines: what a model without attention reaches on the same held-out tokens.

prepare.py trains them on the loss tokens of the train split (each in its real context, headers and other people's
turns included), scores them on those of the validation split, and stores nats per token in the manifest. A trained
model that does not beat the trigram has learnt less than counting.

Unigram: relative frequencies with add-one smoothing. Trigram: interpolated Kneser-Ney (Chen and Goodman 1998,
with one discount D = n1 / (n1 + 2 n2) per order, from the counts of n-grams seen once and twice), which backs off
through continuation counts to the uniform distribution. The vocabulary is closed, so both are proper.

Suffixes: N events (a target in its context), G distinct n-grams, V vocabulary.
"""

from collections.abc import Iterable

import numpy as np

from osim_core.corpus.conversation import RenderedDocument


class Events:
    """(two tokens of context, target) for every loss token; V stands for "before the document"."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._chunks: list[np.ndarray] = []
        self.count = 0

    def add(self, document: RenderedDocument) -> None:
        """Collect one document's loss tokens."""
        padded = np.concatenate([np.full(2, self.vocab_size, np.int32), document.tokens])
        where = np.concatenate([np.arange(a, b) for a, b in document.loss_spans] or [np.zeros(0, int)])
        self._chunks.append(np.stack([padded[where], padded[where + 1], padded[where + 2]], axis=1))
        self.count += len(where)

    def table(self) -> np.ndarray:
        """int64 [N, 3]: token before last, last token, target."""
        return np.concatenate(self._chunks or [np.zeros((0, 3))]).astype(np.int64)


def unigram_loss(train_N3: np.ndarray, test_N3: np.ndarray, vocab_size: int) -> np.ndarray:
    """float64 [N] nats of each test target under add-one smoothed frequencies."""
    counts_V = np.bincount(train_N3[:, 2], minlength=vocab_size) + 1.0
    return -np.log(counts_V[test_N3[:, 2]] / counts_V.sum())


class Trigram:
    """Interpolated Kneser-Ney over the closed vocabulary 0..V-1. Needs V^3 < 2^63, so V up to two million."""

    def __init__(self, train_N3: np.ndarray, vocab_size: int) -> None:
        if len(train_N3) == 0:
            raise ValueError("trigram baseline: no training tokens")
        self._base = base = vocab_size + 1  # one more for "before the document"
        self._vocab_size = vocab_size
        key_N = (train_N3[:, 0] * base + train_N3[:, 1]) * base + train_N3[:, 2]
        trigram_G, count_G = np.unique(key_N, return_counts=True)
        # Lower orders count in how many different contexts an n-gram was seen, not how often.
        bigram_G, continuation_G = np.unique(trigram_G % base**2, return_counts=True)
        unigram_G, spread_G = np.unique(bigram_G % base, return_counts=True)
        self._orders = [
            _Order(unigram_G, spread_G, np.zeros_like(unigram_G)),
            _Order(bigram_G, continuation_G, bigram_G // base),
            _Order(trigram_G, count_G, trigram_G // base),
        ]

    def loss(self, test_N3: np.ndarray) -> np.ndarray:
        """float64 [N] nats of each target."""
        before_N, last_N, target_N = test_N3.T
        probability_N = np.full(len(test_N3), 1.0 / self._vocab_size)
        contexts = (np.zeros_like(last_N), last_N, before_N * self._base + last_N)
        for order, context_N in zip(self._orders, contexts, strict=True):
            key_N = context_N * self._base + target_N
            probability_N = order.interpolate(key_N, context_N, probability_N)
        return -np.log(probability_N)


class _Order:
    """Discounted counts of one n-gram length, with what each context sets aside for the next shorter one."""

    def __init__(self, key_G: np.ndarray, count_G: np.ndarray, context_G: np.ndarray) -> None:
        self.key_G, self.count_G = key_G, count_G
        once, twice = int((count_G == 1).sum()), int((count_G == 2).sum())
        # Without n-grams seen once there is nothing to estimate the discount from; a half keeps the model proper.
        self.discount = once / (once + 2 * twice) if once else 0.5
        if self.discount == 1.0:  # nothing seen twice; a whole count less would leave no mass for what was seen
            self.discount = 0.5
        # keys are sorted, so the n-grams of one context are neighbours
        self.context, first, self.types = np.unique(context_G, return_index=True, return_counts=True)
        self.total = np.add.reduceat(count_G, first)

    def interpolate(self, key_N: np.ndarray, context_N: np.ndarray, lower_N: np.ndarray) -> np.ndarray:
        count_N = _look_up(self.key_G, self.count_G, key_N)
        total_N = _look_up(self.context, self.total, context_N)
        types_N = _look_up(self.context, self.types, context_N)
        seen_N = total_N > 0
        safe_N = np.maximum(total_N, 1)
        discounted_N = np.maximum(count_N - self.discount, 0.0) / safe_N
        return np.where(seen_N, discounted_N + self.discount * types_N / safe_N * lower_N, lower_N)


def _look_up(key_G: np.ndarray, value_G: np.ndarray, key_N: np.ndarray) -> np.ndarray:
    """The value of each key, 0 where there is none; `key_G` is sorted."""
    place_N = np.minimum(np.searchsorted(key_G, key_N), len(key_G) - 1)
    return np.where(key_G[place_N] == key_N, value_G[place_N], 0)


def baselines(train: Events, validation: Iterable[tuple[str, Events]]) -> dict[str, dict[str, float]]:
    """{"unigram" | "trigram": {source: nats per token, ..., "all": over all tokens}}; {} if either side is empty."""
    scored = [(source, events.table()) for source, events in validation if events.count]
    if train.count == 0 or not scored:
        return {}
    train_N3 = train.table()
    trigram = Trigram(train_N3, train.vocab_size)
    losses = {
        "unigram": {s: unigram_loss(train_N3, table, train.vocab_size) for s, table in scored},
        "trigram": {s: trigram.loss(table) for s, table in scored},
    }
    return {
        name: {
            **{source: float(nats_N.mean()) for source, nats_N in by_source.items()},
            "all": float(np.concatenate(list(by_source.values())).mean()),
        }
        for name, by_source in losses.items()
    }
