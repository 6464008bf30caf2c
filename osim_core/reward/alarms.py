"""Run-level alarms: signs in the curves that the policy learns its judge instead of people. Pure functions over series.

    for alarm in alarms({"rl/reward_raw": [...], "rl/reward_held_out": [...], "rl/entropy": [...]}):
        print(alarm.message)

Trends are Theil-Sen slopes over the last `window` points (the median of all pairwise slopes; Theil 1950, Sen 1968)
with their 95 % confidence interval: a trend counts only if the interval lies on one side of 0, and the change over the
window exceeds `least` of the scale. So noise, an outlier or a plateau raises nothing. Entropy and diversity are held
against the median of the run's own start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

from osim_core.missing import Missing, Value

TRAIN_JUDGE = "rl/reward_raw"
WITNESSES = {  # what must not fall while the training judge's score rises
    "rl/reward_held_out": "a judge that the policy never trained on",
    "rl/likelihood": "the likelihood of real replies",
    "rl/human_likeness": "the likeness to human text",
}
SPREADS = {"rl/entropy": "entropy", "rl/diversity": "diversity of samples"}
WINDOW = 20
LEAST_CHANGE = 0.02
COLLAPSE = 0.5  # of the start


@dataclass(frozen=True, slots=True)
class Trend:
    """Over a window: the slope per point, its 95 % interval, and the change from end to end that it amounts to."""

    slope: float
    low: float
    high: float
    change: float

    def rises(self, least: float = LEAST_CHANGE) -> bool:
        return self.low > 0 and self.change >= least

    def falls(self, least: float = LEAST_CHANGE) -> bool:
        return self.high < 0 and self.change <= -least


@dataclass(frozen=True, slots=True)
class Alarm:
    """kind: "judge overfit" or "collapse"; series: the one that fell."""

    kind: str
    series: str
    message: str


def trend(series: Sequence[Value], window: int = WINDOW) -> Trend | Missing:
    """Of the last `window` points; missing ones are left out, each keeps its place. Missing below half a window."""
    recent = list(series)[-window:]
    known = [(at, value) for at, value in enumerate(recent) if not isinstance(value, Missing)]
    if len(known) < max(4, window // 2):
        return Missing("too few points", f"{len(known)} of the last {window}")
    place, value = np.array(known, np.float64).T
    slope, _, low, high = theilslopes(value, place)
    return Trend(float(slope), float(low), float(high), float(slope * (place[-1] - place[0])))


def alarms(
    series: Mapping[str, Sequence[Value]],
    *,
    window: int = WINDOW,
    least: float = LEAST_CHANGE,
    collapse: float = COLLAPSE,
) -> list[Alarm]:
    """What the curves (equally long, one point a step) warn of; [] while there is too little of them.

    The witnesses have scales of their own: their fall counts from `least` of their largest magnitude in the window on.
    """
    found = []
    judge = trend(series.get(TRAIN_JUDGE, ()), window)
    if not isinstance(judge, Missing) and judge.rises(least):
        for name, what in WITNESSES.items():
            witness = trend(series.get(name, ()), window)
            if not isinstance(witness, Missing) and witness.falls(least * _magnitude(series[name], window)):
                message = (
                    f"{TRAIN_JUDGE} rose by {judge.change:.3g} in {window} steps while {name} ({what}) fell by "
                    f"{-witness.change:.3g}: the policy is learning its judge"
                )
                found.append(Alarm("judge overfit", name, message))
    for name, what in SPREADS.items():
        values = [value for value in series.get(name, ()) if not isinstance(value, Missing)]
        if len(values) >= 2 * window:
            start, now = float(np.median(values[:window])), float(np.median(values[-(window // 2) :]))
            if start > 0 and now < collapse * start:
                found.append(Alarm("collapse", name, f"{what} fell from {start:.3g} to {now:.3g}"))
    return found


def _magnitude(series: Sequence[Value], window: int) -> float:
    return max(abs(value) for value in list(series)[-window:] if not isinstance(value, Missing))
