"""The Turing reward, by values and through the judge's own reading of both orders."""

import math

import pytest

from osim_core.judge.reading import given, verdict
from osim_core.judge.rubric import Verdict, load_rubric
from osim_core.missing import Missing
from osim_core.reward.turing import MOST_BIAS, RUBRIC, turing_item, turing_reward


def pair(score, **details):
    return Verdict(values={"real": score}, score=score, details={"real": details})


@pytest.mark.parametrize(
    ("belief", "value"),
    [(0.5, 1.0), (0.0, 0.0), (1.0, 1.0), (0.2, 0.4), (0.3, 0.6), (0.75, 1.0)],
)
def test_values(belief, value):
    assert turing_reward(pair(belief, order_bias=0.3)) == pytest.approx(value)


def test_a_judge_that_only_sees_the_place_is_missing():
    assert turing_reward(pair(0.5, order_bias=MOST_BIAS + 0.01)).reason == "order bias"
    assert turing_reward(pair(0.5, order_bias=-MOST_BIAS - 0.01)).reason == "order bias"
    assert turing_reward(pair(0.5, order_bias=MOST_BIAS)) == 1.0
    assert math.isclose(1 / (1 + math.exp(-MOST_BIAS)), 0.95)


@pytest.mark.parametrize(
    ("given_order", "swapped", "reward"),
    [("B", "A", 0.0), ("A", "B", 1.0), ("A", "A", "order bias"), ("B", "B", "order bias")],
)
def test_answers_in_words(given_order, swapped, reward):
    rubric = load_rubric(RUBRIC)
    (dimension,) = rubric.dimensions
    found = turing_reward(verdict(rubric, [{dimension.name: given(dimension, w)} for w in (given_order, swapped)]))
    assert (found.reason if isinstance(found, Missing) else found) == reward


def test_a_failed_verdict_is_missing():
    assert turing_reward(pair(Missing("timeout"))) == Missing("timeout")


def test_the_item_fits_its_rubric():
    item = turing_item("r1", context="scene", reply="ours", real="theirs")
    assert (item.reply, item.other, item.id) == ("ours", "theirs", "r1")
    assert load_rubric(item.rubric).pairwise
    with pytest.raises(ValueError, match="r1 has no real reply"):
        turing_item("r1", context="", reply="ours", real=" ")
