"""Alarms on synthetic curves: what raises them, and that noise, outliers, plateaus and gaps do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from osim_core.missing import Missing
from osim_core.reward.alarms import alarms, trend

STEPS = np.arange(40)
RISING, FALLING, FLAT = 0.3 + 0.01 * STEPS, 0.7 - 0.01 * STEPS, np.full(40, 0.5)


def noisy(series, seed=0, scale=0.01):
    return (series + np.random.default_rng(seed).normal(0, scale, len(series))).tolist()


def raised(**series):
    return [(alarm.kind, alarm.series) for alarm in alarms({f"rl/{name}": values for name, values in series.items()})]


@pytest.mark.parametrize("witness", ["reward_held_out", "likelihood", "human_likeness"])
def test_the_trained_judge_rises_while_a_witness_falls(witness):
    assert raised(reward_raw=noisy(RISING), **{witness: noisy(FALLING, 1)}) == [("judge overfit", f"rl/{witness}")]


@pytest.mark.parametrize(
    ("judge", "held_out"),
    [(RISING, RISING), (RISING, FLAT), (FLAT, FALLING), (FALLING, FALLING), (FALLING, RISING)],
)
def test_other_pairs_are_no_overfit(judge, held_out):
    assert raised(reward_raw=noisy(judge), reward_held_out=noisy(held_out, 1)) == []


def test_pure_noise_raises_next_to_nothing():
    false = [raised(reward_raw=noisy(FLAT, s, 0.05), reward_held_out=noisy(FLAT, s + 1000, 0.05)) for s in range(200)]
    assert sum(map(bool, false)) <= 1


def test_one_outlier_neither_raises_nor_hides_an_alarm():
    judge, held_out = noisy(RISING), noisy(FLAT, 1, 0.001)
    held_out[-1] = -5.0
    assert raised(reward_raw=judge, reward_held_out=held_out) == []
    held_out = noisy(FALLING, 1)
    held_out[-1] = 5.0
    assert raised(reward_raw=judge, reward_held_out=held_out) == [("judge overfit", "rl/reward_held_out")]


def test_a_fall_below_the_least_change_does_not_count():
    assert raised(reward_raw=RISING.tolist(), reward_held_out=(0.5 - 1e-5 * STEPS).tolist()) == []


def test_missing_points_keep_the_slope():
    full = trend(RISING.tolist(), 20)
    gaps = [Missing("timeout") if step % 3 == 0 else value for step, value in enumerate(RISING.tolist())]
    assert full.slope == pytest.approx(0.01) and trend(gaps, 20).slope == pytest.approx(0.01)
    assert trend([0.1] * 3, 20) == Missing("too few points", "3 of the last 20")
    assert trend([Missing("x")] * 20, 20) == Missing("too few points", "0 of the last 20")


@pytest.mark.parametrize("spread", ["entropy", "diversity"])
def test_collapse_against_the_runs_own_start(spread):
    gone = np.concatenate([np.full(30, 2.0), np.full(15, 0.5)])
    assert raised(**{spread: noisy(gone)}) == [("collapse", f"rl/{spread}")]
    assert raised(**{spread: noisy(np.full(45, 2.0))}) == []
    assert raised(**{spread: noisy(gone)[:33]}) == []  # too short to know its start


def test_an_alarm_says_by_how_much():
    (alarm,) = alarms({"rl/reward_raw": RISING.tolist(), "rl/likelihood": FALLING.tolist()})
    assert "rose by 0.19 in 20 steps while rl/likelihood" in alarm.message and "fell by 0.19" in alarm.message


def test_a_real_little_run():
    """The reward rises from 0.45 to 0.6 and nothing is wrong; a witness that falls beside it would have been heard."""
    curves = json.loads((Path(__file__).parent.parent / "fixtures" / "rl_curves.json").read_text())
    curves.pop("run")
    for steps in range(1, len(curves["rl/entropy"]) + 1):
        assert alarms({name: values[:steps] for name, values in curves.items()}) == []
    rising = curves["rl/reward_raw"][:18]
    assert trend(rising, 20).rises()
    falling = [1.0 - value for value in rising]
    assert raised(reward_raw=rising, reward_held_out=falling) == [("judge overfit", "rl/reward_held_out")]
    assert raised(reward_raw=rising, reward_held_out=rising) == []
