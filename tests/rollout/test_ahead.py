"""Rollouts run ahead by exactly what is allowed, in order, and their errors reach the learner."""

import threading

import pytest

from osim_core.rollout.ahead import Ahead


def test_without_staleness_each_step_is_made_when_it_is_taken():
    learner = {"version": 0}
    with Ahead(lambda step: (step, learner["version"]), staleness=0) as ahead:
        for step in range(3):
            assert ahead.take(step) == (step, step)
            learner["version"] += 1
            ahead.advance(step + 1)
        assert ahead.buffered() == {}


@pytest.mark.parametrize("staleness", [1, 3])
def test_never_further_ahead_than_allowed_and_really_ahead(staleness):
    made, learner, reached = [], {"step": 0}, threading.Event()

    def make(step: int) -> int:
        assert step <= learner["step"] + staleness
        made.append(step)
        if step == staleness:
            reached.set()
        return step * 10

    with Ahead(make, staleness) as ahead:
        assert reached.wait(10), "the thread must work before anything is taken"
        assert made == list(range(staleness + 1))
        for step in range(6):
            assert ahead.take(step) == step * 10
            learner["step"] = step + 1
            ahead.advance(step + 1)
    assert made == sorted(made)


def test_a_failure_is_raised_where_the_rollouts_are_taken_and_what_was_made_before_is_not_lost():
    def make(step: int) -> str:
        if step == 1:
            raise ValueError("judge is down")
        return "good"

    with Ahead(make, staleness=2) as ahead:
        assert ahead.take(0) == "good"
        with pytest.raises(ValueError, match="judge is down"):
            ahead.take(1)


def test_a_buffer_is_taken_before_anything_is_made():
    calls = []
    with Ahead(lambda step: calls.append(step) or f"new {step}", 2, start=4, buffer={4: "old 4", 5: "old 5"}) as ahead:
        assert ahead.take(4) == "old 4"
        ahead.advance(5)
        assert [ahead.take(5), ahead.take(6), ahead.take(7)] == ["old 5", "new 6", "new 7"]
    assert calls == [6, 7]


def test_leaving_does_not_wait_for_what_nobody_will_take():
    with Ahead(lambda step: step, staleness=1):
        pass
    with pytest.raises(ValueError, match="staleness"):
        Ahead(lambda step: step, staleness=-1)
