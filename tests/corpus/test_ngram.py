"""The baselines are proper distributions and match a slow, literal implementation of their formulas."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from osim_core.corpus.conversation import RenderedDocument
from osim_core.corpus.ngram import Events, Trigram, baselines, unigram_loss

VOCAB = 7


def document(tokens, spans):
    return RenderedDocument("d", "s", np.array(tokens, np.int32), np.array(spans, np.int32), np.array([0], np.int32))


def events(*documents):
    collected = Events(VOCAB)
    for tokens, spans in documents:
        collected.add(document(tokens, spans))
    return collected


def literal_kneser_ney(train):
    """p(w | u, v), straight from the definition, with dictionaries."""
    trigrams = Counter(map(tuple, train.tolist()))
    before_bigram, before_unigram = defaultdict(set), defaultdict(set)
    for u, v, w in trigrams:
        before_bigram[v, w].add(u)
    for v, w in before_bigram:
        before_unigram[w].add(v)
    bigrams = {key: len(value) for key, value in before_bigram.items()}
    unigrams = {(w,): len(value) for w, value in before_unigram.items()}

    def level(counts, context, w, lower):
        once, twice = (sum(c == n for c in counts.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        followers = {key[-1]: c for key, c in counts.items() if key[:-1] == context}
        if not followers:
            return lower
        total = sum(followers.values())
        return max(followers.get(w, 0) - discount, 0) / total + discount * len(followers) / total * lower

    def probability(u, v, w):
        p1 = level(unigrams, (), w, 1 / VOCAB)
        p2 = level(bigrams, (v,), w, p1)
        return level(trigrams, (u, v), w, p2)

    return probability


def random_table(seed, length=300):
    generator = np.random.default_rng(seed)
    tokens = generator.choice(VOCAB - 1, size=length, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01])  # token 6 is never seen
    return events((tokens, [[3, 90], [120, length]])).table()


def test_only_loss_tokens_are_targets_and_contexts_reach_outside_the_spans():
    table = events(([5, 4, 3, 2, 1], [[0, 1], [3, 5]])).table()
    assert table.tolist() == [[VOCAB, VOCAB, 5], [4, 3, 2], [3, 2, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_trigram_equals_the_definition(seed):
    train, test = random_table(seed), random_table(seed + 10, length=200)
    test = np.concatenate([test, [[6, 6, 6], [0, 6, 0], [VOCAB, VOCAB, 1]]])  # unseen contexts and targets
    probability = literal_kneser_ney(train)
    expected = [-math.log(probability(*map(int, row))) for row in test]
    np.testing.assert_allclose(Trigram(train, VOCAB).loss(test), expected, rtol=1e-12)


def test_probabilities_sum_to_one_in_seen_and_unseen_contexts():
    trigram = Trigram(random_table(0), VOCAB)
    for u, v in [(0, 0), (0, 1), (2, 3), (5, 5), (6, 0), (6, 6), (VOCAB, VOCAB)]:
        table = np.array([[u, v, w] for w in range(VOCAB)])
        assert np.exp(-trigram.loss(table)).sum() == pytest.approx(1.0, abs=1e-12)


def test_unigram_by_hand():
    train, test = events(([1, 1, 2], [[0, 3]])).table(), events(([1, 0], [[0, 2]])).table()
    expected = [-math.log(3 / (3 + VOCAB)), -math.log(1 / (3 + VOCAB))]
    np.testing.assert_allclose(unigram_loss(train, test, VOCAB), expected)


def test_the_trigram_learns_a_cycle_that_the_unigram_cannot():
    cycle = [0, 1, 2, 3] * 100
    train, held_out = events((cycle, [[0, 400]])), events((cycle[:40], [[2, 40]]))
    result = baselines(train, [("loop", held_out)])
    assert result["unigram"]["loop"] == pytest.approx(math.log(4), abs=0.05)
    assert result["trigram"]["loop"] < 0.05


def test_the_total_weighs_tokens_not_sources():
    train = events(([0, 1, 0, 1, 0, 2, 2, 2], [[0, 8]]))
    long, short = events(([0, 1, 0, 1, 0, 1], [[0, 6]])), events(([2, 2], [[0, 2]]))
    result = baselines(train, [("long", long), ("short", short)])["unigram"]
    assert result["all"] == pytest.approx((6 * result["long"] + 2 * result["short"]) / 8)


def test_no_baseline_without_validation_tokens():
    assert baselines(events(([0, 1], [[0, 2]])), [("s", Events(VOCAB))]) == {}
