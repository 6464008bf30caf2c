"""Readings in plain numbers equal judge_score's on a GPU or CPU; pairs, and what is missing in one order."""

import math

import pytest
import torch

from osim_core.judge.calibrate import Calibration
from osim_core.judge.reading import LOW_MASS, NON_FINITE, Reading, given, read, verdict
from osim_core.judge.rubric import load_rubric
from osim_core.missing import Missing
from osim_kernels.judge_score import DimensionLabels, JudgeLabels, judge_score

LIKENESS, FITS, REGISTER = load_rubric("next_turn").dimensions
PAIR = load_rubric("turing_pair")


@pytest.mark.parametrize("dimension", [LIKENESS, FITS, REGISTER], ids=lambda d: d.name)
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_equals_judge_score(dimension, temperature):
    labels, hidden_size, vocab = len(dimension.labels), 16, 40
    bias = tuple(torch.randn(labels).tolist())
    tokens = tuple(((2 * n,), (2 * n + 1,)) for n in range(labels))  # two spellings each
    worst, best = dimension.scale
    asked = DimensionLabels(dimension.name, tokens, dimension.values, worst, best, 1.0, temperature, bias)
    hidden_ISD = torch.randn(5, 1, hidden_size, dtype=torch.float64)
    head_VD = torch.randn(vocab, hidden_size, dtype=torch.float64)
    scores = judge_score(hidden_ISD, head_VD, JudgeLabels((asked,)), min_mass=0.0)
    logprob_IV = (hidden_ISD[:, 0] @ head_VD.T).log_softmax(dim=1)
    log_mass_IL = torch.stack([logprob_IV[:, list(sum(variants, ()))].logsumexp(dim=1) for variants in tokens], dim=1)
    for i, log_masses in enumerate(log_mass_IL.tolist()):
        reading = read(dimension, log_masses, Calibration(temperature, bias), 0.0)
        assert reading.score == pytest.approx(scores.score_IJ[i, 0].item(), abs=1e-9)
        assert dimension.normalise(reading.score) == pytest.approx(scores.normalised_IJ[i, 0].item(), abs=1e-9)
        assert reading.logprobs == pytest.approx(scores.label_logprob_IL[i].tolist(), abs=1e-9)
        for name in ("entropy", "margin", "mass"):
            assert reading.figures[name] == pytest.approx(getattr(scores, f"{name}_IJ")[i, 0].item(), abs=1e-9)


def test_too_little_mass_and_no_number_are_missing():
    half = [math.log(0.1), math.log(0.15)]
    assert isinstance(read(FITS, half, Calibration(), 0.25 - 1e-9), Reading)
    assert read(FITS, half, Calibration(), 0.25 + 1e-9).reason == LOW_MASS
    assert read(FITS, [-math.inf, -math.inf], Calibration(), 0.0).reason == LOW_MASS
    assert read(FITS, [math.nan, -1.0], Calibration(), 0.0).reason == NON_FINITE
    assert read(FITS, [0.0, -math.inf], Calibration(), 0.2).score == 1.0  # an impossible label is an answer, too


def test_a_pair_needs_both_orders():
    one, gone = {"real": given(PAIR.dimensions[0], "A")}, {"real": Missing("timeout", "x")}
    assert verdict(PAIR, [one, gone]).score == Missing("timeout", "x")
    assert verdict(PAIR, [gone, one]).score == Missing("timeout", "x")
    certain = Reading(1.0, (-1e-9, -30.0), {"mass": 0.9})
    unsure = Reading(0.5, (math.log(0.5), math.log(0.5)), {"mass": 0.7})
    found = verdict(PAIR, [{"real": certain}, {"real": unsure}])
    assert found.score == pytest.approx(1 / (1 + math.exp(-15)))
    assert found.details["real"] == pytest.approx({"order_bias": 15.0, "mass_given": 0.9, "mass_swapped": 0.7})


def test_a_missing_dimension_leaves_the_others():
    rubric = load_rubric("next_turn")
    readings = {
        "human_likeness": Missing("low label mass"),
        "fits": given(FITS, "yes"),
        "register": given(REGISTER, "low"),
    }
    found = verdict(rubric, [readings])
    assert found.values == {"human_likeness": Missing("low label mass"), "fits": 1.0, "register": 0.0}
    assert found.score == 0.5 and set(found.details) == {"fits", "register"}
