"""Calibration finds the temperature and bias that made the data, lowers NLL and ECE, and belongs to one judge."""

import dataclasses

import pytest
import torch

from osim_core.judge.calibrate import (
    Calibration,
    calibrated,
    expected_calibration_error,
    fit,
    fit_judge,
    load,
    save,
)
from osim_core.judge.reading import read, verdict
from osim_core.judge.rubric import JudgeItem, load_rubric
from osim_core.missing import Missing


def drawn(items: int, temperature: float, bias=(0.0, 0.0, 0.0)) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of a judge that is off by the calibration, and answers of the calibrated distribution."""
    log_mass_NL = (torch.randn(items, 3, dtype=torch.float64) * 3).log_softmax(dim=1)
    probability_NL = calibrated(log_mass_NL, Calibration(temperature, tuple(bias))).exp()
    return log_mass_NL, torch.multinomial(probability_NL, 1)[:, 0]


def test_finds_the_temperature_of_an_overconfident_judge():
    report = fit(*drawn(20_000, 2.5))
    assert report.calibration.bias is None
    assert report.calibration.temperature == pytest.approx(2.5, rel=0.05)
    assert report.nll_after < report.nll_before and report.ece_before > 0.1 and report.ece_after < 0.01


def test_finds_a_bias_for_a_label():
    bias = torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)
    data = drawn(20_000, 1.5, bias.tolist())
    report = fit(*data, bias=True)
    found = torch.tensor(report.calibration.bias, dtype=torch.float64)
    torch.testing.assert_close(found - found.mean(), bias, atol=0.08, rtol=0)  # only differences matter
    assert fit(*data).nll_after > report.nll_after + 0.05


def test_stays_finite_where_the_judge_is_always_right():
    log_mass_NL = torch.tensor([[-0.1, -3.0], [-4.0, -0.05], [-0.2, -2.0]])
    found = fit(log_mass_NL, torch.tensor([0, 1, 0])).calibration
    assert 0.05 < found.temperature < 1.0


def test_calibration_error_by_hand():
    logprob_NL = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7]]).log()
    # bin of 0.95: two items, one right: |1.9 - 1| ; bin of 0.7: right: |0.7 - 1|
    assert expected_calibration_error(logprob_NL, torch.tensor([0, 1, 1])) == pytest.approx((0.9 + 0.3) / 3)


@pytest.mark.parametrize(
    ("log_mass", "answers"),
    [([[0.0, 0.0]], [0]), ([[0.0, float("-inf")]] * 3, [0, 0, 0]), ([[0.0, 0.0]] * 3, [0, 1])],
    ids=["too few", "not finite", "an answer short"],
)
def test_bad_labelled_sets_are_refused(log_mass, answers):
    with pytest.raises(ValueError, match="calibration: needs finite log-probs"):
        fit(torch.tensor(log_mass), torch.tensor(answers))
    with pytest.raises(ValueError, match="index of one of 2 labels"):
        fit(torch.zeros(3, 2), torch.tensor([0, 1, 2]))


def test_a_file_belongs_to_one_judge(tmp_path):
    path = tmp_path / "calibration.json"
    kept = {"next_turn": {"fits": Calibration(1.5, (0.1, -0.1)), "register": Calibration(0.7)}}
    save(path, "judge A", kept)
    assert load(path, "judge A") == kept
    with pytest.raises(ValueError, match="was fitted for 'judge A', but the judge is 'judge B'"):
        load(path, "judge B")
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{path}: not a readable calibration"):
        load(path, "judge A")
    assert dataclasses.asdict(Calibration()) == {"temperature": 1.0, "bias": None}


class Known:
    """A judge with these label log-probs for "fits" of each item, None for one that it cannot judge."""

    name, identity = "known", "known 1"

    def __init__(self, logprobs) -> None:
        self.logprobs = logprobs

    def score(self, items):
        dimension = load_rubric("next_turn").dimensions[1]
        rubric = dataclasses.replace(load_rubric("next_turn"), dimensions=(dimension,))
        return [
            verdict(rubric, [{"fits": read(dimension, row, Calibration(), 0.0) if row else Missing("timeout")}])
            for row in self.logprobs
        ]


def test_a_judge_is_calibrated_on_what_it_could_judge():
    log_mass_NL, answer_N = drawn(2000, 2.0, (0.0, 0.0, -1e9))
    log_mass_NL = log_mass_NL[:, :2].log_softmax(dim=1)
    rubric = load_rubric("next_turn")
    items = [JudgeItem(id=str(i), rubric="next_turn", context="c", reply="r") for i in range(2001)]
    judge = Known([None, *log_mass_NL.tolist()])
    labels = ["yes", *(("yes", "no")[answer] for answer in answer_N.tolist())]
    reports = fit_judge(judge, rubric, items, {"fits": labels})
    assert list(reports) == ["fits"] and reports["fits"].items == 2000
    assert reports["fits"].calibration == fit(log_mass_NL, answer_N).calibration
    assert reports["fits"].calibration.temperature == pytest.approx(2.0, rel=0.2)
    with pytest.raises(ValueError, match=r"calibration of 'fits': .'perhaps'. are none of its labels"):
        fit_judge(judge, rubric, items, {"fits": ["perhaps"] * 2001})
