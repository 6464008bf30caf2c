"""MiniLM similarity: published values, values that do not depend on company, the scale's ends."""

import numpy as np
import pytest

from osim_core.missing import Missing
from osim_core.reward.similarity import similarity_rewards

# the scores that the model's authors publish for it
HAPPY = "That is a happy person"
PUBLISHED = {
    "That is a happy dog": 0.6945774,
    "That is a very happy person": 0.9429150,
    "Today is a sunny day": 0.2568762,
}


def test_published_scores_and_the_ends_of_the_scale(encoder):
    found = similarity_rewards(encoder, [HAPPY] * len(PUBLISHED), list(PUBLISHED))
    assert found == pytest.approx(list(PUBLISHED.values()), abs=1e-5)
    same, empty, lost = similarity_rewards(encoder, ["hi there", " ", "x"], ["hi there", "hello", ""])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert empty == 0.0
    assert lost == Missing("no reference")


def test_an_embedding_does_not_depend_on_what_shares_its_batch(encoder):
    texts = [HAPPY, *PUBLISHED, "a", "word " * 300]
    together = encoder.embed(texts)
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(encoder.embed(texts[::-1])[::-1], together)
    assert encoder.embed([]).shape == (0, 384)


def test_lists_of_different_lengths_are_refused(encoder):
    with pytest.raises(ValueError, match="1 replies for 2 references"):
        similarity_rewards(encoder, ["a"], ["a", "b"])
