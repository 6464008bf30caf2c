"""The learning rate at the borders of warm-up, plateau and decay."""

import itertools

import pytest

from osim_core.config import OptimizerConfig
from osim_core.update.schedule import learning_rate

STEPS = 100


def rates(**options) -> list[float]:
    optimizer = OptimizerConfig(learning_rate=1.0, **options)
    return [learning_rate(optimizer, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_moves_at_once_and_ends_at_the_peak(schedule):
    curve = rates(schedule=schedule, warmup_steps=10, decay_steps=20)
    assert curve[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_cosine_is_half_way_in_the_middle_and_never_below_the_minimum():
    curve = rates(schedule="cosine", warmup_steps=10, min_learning_rate=0.2)
    assert curve[10] == 1.0 and curve[55] == pytest.approx(0.6)
    assert 0.2 < curve[-1] < 0.2 + 0.001  # the update after the last would have the minimum
    assert all(later < earlier for earlier, later in itertools.pairwise(curve[10:]))


def test_wsd_stays_at_the_peak_then_falls_in_a_line():
    curve = rates(schedule="wsd", warmup_steps=10, decay_steps=20, min_learning_rate=0.2)
    assert curve[9:81] == [1.0] * 72
    assert curve[81] == pytest.approx(0.96) and curve[90] == pytest.approx(0.6) and curve[99] == pytest.approx(0.24)


def test_wsd_without_decay_and_constant_stay():
    assert rates(schedule="wsd", decay_steps=0) == rates(schedule="constant") == [1.0] * STEPS


def test_a_run_that_is_all_warmup_does_not_divide_by_zero():
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=STEPS)
    assert learning_rate(optimizer, STEPS - 1, STEPS) == 1.0 and learning_rate(optimizer, STEPS, STEPS) == 1.0


def test_after_the_last_step_the_rate_is_the_minimum():
    optimizer = OptimizerConfig(learning_rate=1.0, min_learning_rate=0.1)
    assert learning_rate(optimizer, STEPS + 50, STEPS) == pytest.approx(0.1)
