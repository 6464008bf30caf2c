"""Composition: one scale, missing parts, records, and that a detector's multiplier reaches the final reward."""

import json

import pytest

from osim_core.missing import Missing
from osim_core.reward.compose import Composition, Part, compose, summary
from osim_core.reward.detectors import Finding

COMPOSITION = Composition(
    "task", (Part("judge", 3.0, low=1.0, high=5.0), Part("rule", 1.0), Part("extra", 4.0, optional=True))
)
CLEAN = {"repetition": Finding(0.1, False, 1.0), "length": Finding(0.2, False, 1.0)}
HACK = {"repetition": Finding(0.9, True, 0.25), "length": Finding(0.99, True, 0.5)}


def one(values, findings=None):
    return compose(COMPOSITION, {"a": values}, {"a": findings} if findings else {})["a"]


def test_weighted_mean_on_one_scale():
    record = one({"judge": 3.0, "rule": 1.0, "extra": 0.25})
    assert record.raw == record.final == pytest.approx((3 * 0.5 + 1 * 1.0 + 4 * 0.25) / 8)
    assert record.weights == pytest.approx({"judge": 0.375, "rule": 0.125, "extra": 0.5})
    assert one({"judge": 1.0, "rule": 0.0, "extra": 0.0}).final == 0.0
    assert one({"judge": 5.0, "rule": 1.0, "extra": 1.0}).final == pytest.approx(1.0)


def test_the_final_reward_really_changes():
    values = {"judge": 5.0, "rule": 1.0, "extra": 0.5}
    clean, hack = one(values, CLEAN), one(values, HACK)
    assert clean.final == clean.raw == hack.raw == 0.75
    assert hack.final == pytest.approx(0.75 * 0.25 * 0.5)
    assert hack.to_json()["detectors"]["repetition"] == {"score": 0.9, "flagged": True, "multiplier": 0.25}


def test_an_optional_part_that_is_missing_leaves_its_place_to_the_others():
    record = one({"judge": 3.0, "rule": 1.0, "extra": Missing("timeout")}, HACK)
    assert record.raw == pytest.approx((3 * 0.5 + 1 * 1.0) / 4)
    assert record.weights == pytest.approx({"judge": 0.75, "rule": 0.25})
    assert record.final == pytest.approx(record.raw / 8)


def test_a_required_part_that_is_missing_makes_the_reward_missing():
    record = one({"judge": Missing("timeout", "60 s"), "rule": 1.0, "extra": 1.0}, CLEAN)
    assert record.final == record.raw == Missing("timeout", "judge: 60 s")
    assert json.loads(json.dumps(record.to_json()))["final"] == {"missing": "timeout", "detail": "judge: 60 s"}


@pytest.mark.parametrize("value", [0.9, 5.1, float("nan")])
def test_a_value_off_its_range_stops(value):
    with pytest.raises(ValueError, match=r"reward of a: judge is .*, not in \[1.0, 5.0\]"):
        one({"judge": value, "rule": 1.0, "extra": 1.0})


def test_parts_and_findings_have_to_be_complete():
    with pytest.raises(ValueError, match="are declared"):
        one({"judge": 3.0, "rule": 1.0})
    with pytest.raises(ValueError, match="no detector has seen it"):
        compose(COMPOSITION, {"a": {"judge": 3.0, "rule": 1.0, "extra": 1.0}}, {"b": CLEAN})


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (Part("a", 1.0), Part("a", 1.0)),
        (Part("a", 0.0),),
        (Part("a", float("nan")),),
        (Part("a", 1.0, low=1.0),),
        (Part("a", 1.0, optional=True),),
    ],
)
def test_compositions_that_make_no_sense(parts):
    with pytest.raises(ValueError, match="reward of task"):
        Composition("task", parts)


def test_summary_counts_what_is_missing_and_flagged():
    values = {"judge": 5.0, "rule": 1.0, "extra": 0.5}
    lost = {**values, "rule": Missing("unparsed")}
    records = compose(COMPOSITION, {"a": values, "b": values, "c": lost}, {"a": CLEAN, "b": HACK, "c": CLEAN})
    assert summary(records.values()) == pytest.approx(
        {
            "rl/reward": 0.75 * (1 + 0.125) / 2,
            "rl/reward_raw": 0.75,
            "rl/missing/unparsed": 1 / 3,
            "rl/flagged/length": 1 / 3,
            "rl/flagged/repetition": 1 / 3,
        }
    )
    assert summary([]) == {}
