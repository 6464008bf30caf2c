"""Advantages, normalisers and dynamic sampling against their definitions."""

import math

import pytest

from osim_core.missing import Missing
from osim_core.update.algorithms import ALGORITHMS, is_uniform, token_weights

GONE = Missing("timeout")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("grpo", [-1.0, 0.0, 1.0]), ("dr-grpo", [-0.25, 0.0, 0.25]), ("rloo", [-0.375, 0.0, 0.375])],
)
def test_missing_rewards_take_no_part(name, expected):
    rewards = [0.25, GONE, 0.5, 0.75]
    advantages = ALGORITHMS[name].advantages(rewards)
    assert advantages[1] == 0.0
    assert [advantages[i] for i in (0, 2, 3)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("rewards", [[0.7], [0.7, GONE], [GONE, GONE], [0.3, 0.3, 0.3], []])
def test_nothing_to_compare_gives_nothing(name, rewards):
    assert ALGORITHMS[name].advantages(rewards) == [0.0] * len(rewards)
    assert is_uniform(rewards)


def test_two_rewards_that_differ_are_not_uniform():
    assert not is_uniform([GONE, 0.1, 0.2])


def stream(losses: list[list[float]], weights: list[float], factor: float) -> float:
    """What loss/streams.py makes of token losses that are linear in the advantage."""
    total = sum(weight * len(reply) for weight, reply in zip(weights, losses, strict=True))
    summed = sum(weight * sum(reply) for weight, reply in zip(weights, losses, strict=True))
    return factor * summed / total


@pytest.mark.parametrize("normaliser", ["tokens", "sequences", "constant"])
def test_normalisers_divide_by_what_they_say(normaliser):
    losses = [[1.0, 2.0, 4.0], [8.0], [16.0, 32.0]]
    weights, factor = token_weights([3, 1, 2], normaliser, longest=10)
    expected = {
        "tokens": 63 / 6,
        "sequences": (7 / 3 + 8 + 24) / 3,
        "constant": 63 / (10 * 3),
    }[normaliser]
    assert math.isclose(stream(losses, weights, factor), expected, rel_tol=1e-12)


def test_no_replies_have_no_weights():
    assert token_weights([], "constant", longest=5) == ([], 1.0)
