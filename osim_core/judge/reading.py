"""From label probabilities to verdicts: the part that every judge shares. Plain numbers, a few per judgement.

Where label probabilities come from a server or from vLLM, `read` does what osim_kernels.judge_score does on a GPU:

    q = softmax(log m / temperature + bias)      score = sum_k q_k value_k      mass = sum_k m_k
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from osim_core.judge.calibrate import Calibration
from osim_core.judge.rubric import LOGPROB, Dimension, Rubric, Verdict, compose
from osim_core.missing import Missing, Value
from osim_kernels.judge_score import swapped_verdict

LOW_MASS = "low label mass"
NON_FINITE = "non-finite"


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer about one dimension in one order.

    score     expected value, in the units of the dimension
    logprobs  calibrated log-probability of each label among the labels, or None where only a word was given
    figures   `entropy`, `margin` and `mass`, if there are probabilities
    """

    score: float
    logprobs: tuple[float, ...] | None
    figures: Mapping[str, float]


def read(
    dimension: Dimension, log_masses: Sequence[float], calibration: Calibration, min_mass: float
) -> Reading | Missing:
    """The reading of log-probabilities, over the whole vocabulary, of each label; -inf for one that was not seen.

    Missing if together they are less probable than min_mass, or one is NaN.
    """
    log_mass_L = torch.tensor(log_masses, dtype=torch.float64)
    mass = float(log_mass_L.exp().sum())
    if not math.isfinite(mass) or bool(log_mass_L.isneginf().all()):
        return Missing(NON_FINITE if math.isnan(mass) else LOW_MASS, f"{dimension.name}: label mass {mass:.3g}")
    if mass < min_mass:
        return Missing(LOW_MASS, f"{dimension.name}: label mass {mass:.3g} is below {min_mass}")
    bias_L = torch.tensor(calibration.bias or [0.0] * len(log_masses), dtype=torch.float64)
    logprob_L = (log_mass_L / calibration.temperature + bias_L).log_softmax(dim=0)
    probability_L = logprob_L.exp()
    highest = probability_L.topk(2).values
    return Reading(
        score=float(probability_L @ torch.tensor(dimension.values, dtype=torch.float64)),
        logprobs=tuple(logprob_L.tolist()),
        figures={
            "entropy": float(-torch.special.xlogy(probability_L, probability_L).sum()),
            "margin": float(highest[0] - highest[1]),
            "mass": mass,
        },
    )


def given(dimension: Dimension, label: str) -> Reading:
    """The reading of an answer that is a word."""
    return Reading(dimension.values[dimension.labels.index(label)], None, {})


def verdict(rubric: Rubric, orders: Sequence[Mapping[str, Reading | Missing]]) -> Verdict:
    """The verdict of a call's readings, or of the two calls of a pair, whose order bias cancels."""
    values: dict[str, Value] = {}
    details: dict[str, dict[str, float]] = {}
    for dimension in rubric.dimensions:
        readings = [order[dimension.name] for order in orders]
        if failed := [reading for reading in readings if isinstance(reading, Missing)]:
            values[dimension.name] = failed[0]
        elif rubric.pairwise:
            values[dimension.name], details[dimension.name] = _pair(*readings)
        else:
            (reading,) = readings
            values[dimension.name] = dimension.normalise(reading.score)
            details[dimension.name] = {"score": reading.score, **reading.figures, **_logprobs(dimension, reading)}
    return Verdict(values=values, score=compose(rubric, values), details=details)


def _logprobs(dimension: Dimension, reading: Reading) -> dict[str, float]:
    """The label log-probs as figures of a verdict: what calibrate.py fits on."""
    labels = zip(dimension.labels, reading.logprobs or (), strict=False)  # none where a word was given
    return {f"{LOGPROB}{label}": logprob for label, logprob in labels}


def _pair(given_: Reading, swapped: Reading) -> tuple[float, dict[str, float]]:
    """The probability that the item's own reply is the one named, and the figures of both orders."""
    figures = {
        f"{name}_{order}": value
        for order, reading in (("given", given_), ("swapped", swapped))
        for name, value in reading.figures.items()
    }
    if given_.logprobs is None or swapped.logprobs is None:  # words alone: agreement, or half
        return (given_.score + 1.0 - swapped.score) / 2, {"agree": float(given_.score != swapped.score), **figures}
    odds = [torch.tensor(r.logprobs[0] - r.logprobs[1], dtype=torch.float64) for r in (given_, swapped)]
    both = swapped_verdict(*odds)
    return float(both.probability), {"order_bias": float(both.order_bias), **figures}
