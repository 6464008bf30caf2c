"""Rewards by rule: values on the scale, strictness towards every way of naming more than one answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osim_core.missing import Missing
from osim_core.reward.rules import UNPARSED, exact_match, likert, multiple_choice, reciprocal_rank

GREEN = "<answer>green box</answer>"


@pytest.mark.parametrize(
    ("reply", "gold", "value"),
    [
        (GREEN, "green box", 1.0),
        ("I think <answer> Green  box. </answer>", "green box", 1.0),
        (GREEN, "red box", 0.0),
        (GREEN, ["the green box", "green box"], 1.0),
        ("green box", "green box", 0.0),  # no tag
        ("<answer>green box or red box</answer>", "green box", 0.0),
        (f"{GREEN} <answer>red box</answer>", "green box", 0.0),  # two answers
        ("<answer>...</answer>", "green box", 0.0),
        (f"<think>{GREEN}</think> dunno", "green box", 0.0),  # only thought
    ],
)
def test_exact_match(reply, gold, value):
    assert exact_match(reply, gold) == value


def test_an_unreadable_reply_is_what_the_task_says():
    assert exact_match("no idea", "a", unparsed=UNPARSED) == Missing("unparsed", "no readable answer tag")
    assert multiple_choice("A", "A", 4, unparsed=UNPARSED) is UNPARSED
    assert likert("9/10", 9, 1, 10, unparsed=UNPARSED) is UNPARSED
    assert reciprocal_rank("", "a", ["a", "b"], unparsed=UNPARSED) is UNPARSED
    assert multiple_choice("A", "A", 4) == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [("C", 1.0), ("(c)", 1.0), ("C.", 1.0), ("B", 0.0), ("C or B", 0.0), ("A dog", 0.0), ("E", 0.0), ("", 0.0)],
)
def test_multiple_choice(answer, value):
    assert multiple_choice(f"<answer>{answer}</answer>", "C", 4) == value


def test_multiple_choice_refuses_a_gold_that_is_no_option():
    with pytest.raises(ValueError, match="'E' is not one of the first 4"):
        multiple_choice("<answer>A</answer>", "E", 4)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("ann, bob, cid", 1.0),
        ("Bob, Ann", 0.5),
        ("bob\ncid\nann", 1 / 3),
        ("bob, cid", 0.0),  # not listed
        ("ann, ann", 0.0),  # a repeat
        ("ann, zoe", 0.0),  # a stranger
        ("ann, bob, cid, dan, eve, fay", 0.0),  # everybody
        ("ann,, bob", 0.0),
    ],
)
def test_reciprocal_rank(answer, value):
    people = ["ann", "bob", "cid", "dan", "eve", "fay"]
    assert reciprocal_rank(f"<answer>{answer}</answer>", "ann", people) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [("4", 1.0), ("1", 0.25), ("5", 0.75), ("9/10", 0.0), ("6", 0.0), ("4.0", 0.0), ("four", 0.0), ("٤", 0.0)],
)
def test_likert(answer, value):
    assert likert(f"<answer>{answer}</answer>", 4, 1, 5) == value


@given(st.text(max_size=80))
def test_no_text_breaks_a_rule_or_leaves_the_scale(text):
    for reply in (text, f"<answer>{text}</answer>"):
        assert exact_match(reply, "yes") in (0.0, 1.0)
        assert multiple_choice(reply, "A", 3) in (0.0, 1.0)
        assert 0.0 <= likert(reply, 3, 1, 7) <= 1.0
        assert 0.0 <= reciprocal_rank(reply, "a", ["a", "b", "c"]) <= 1.0
