"""Calibration of a judge: temperature and per-label bias fitted on labelled items, with its error before and after.

    reports = fit_judge(judge, rubric, items, answers, bias=True)      # dimension -> report; NLL, L-BFGS
    save(path, judge.identity, {rubric.id: {name: report.calibration for name, report in reports.items()}})

Temperature scaling: Guo et al. 2017 (arXiv 1706.04599); with a bias per label it is their vector scaling with one
common slope. A calibration belongs to one judge: `load` refuses another one's.

Shape suffixes: N items, L labels.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from osim_core.corpus.durable import write_durably
from osim_core.judge.rubric import LOGPROB, Judge, JudgeItem, Rubric

BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrated probabilities are softmax(log mass / temperature + bias); bias per label, None for zeros."""

    temperature: float = 1.0
    bias: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """NLL in nats an item, and the expected calibration error (ECE), before and after, on the items of the fit."""

    calibration: Calibration
    items: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float


def calibrated(log_mass_NL: torch.Tensor, calibration: Calibration) -> torch.Tensor:
    """[N, L] log-probabilities among the labels."""
    bias_L = log_mass_NL.new_tensor(calibration.bias or [0.0] * log_mass_NL.shape[1])
    return (log_mass_NL / calibration.temperature + bias_L).log_softmax(dim=1)


def fit(log_mass_NL: torch.Tensor, answer_N: torch.Tensor, *, bias: bool = False) -> CalibrationReport:
    """The temperature, and with `bias` the biases, of least NLL.

    log_mass_NL  log-probabilities of the labels as the judge gave them, any floating dtype, finite
    answer_N     int64, index of the right label

    A penalty of 1e-3 on squared log temperature and biases keeps the optimum finite where the judge is always right,
    or a label never occurs. Raises ValueError for fewer items than labels, or figures that are not finite.
    """
    log_mass_NL = log_mass_NL.double()
    items, labels = log_mass_NL.shape
    if items < labels or answer_N.shape != (items,) or not log_mass_NL.isfinite().all():
        raise ValueError(
            f"calibration: needs finite log-probs [items, labels] of at least as many items as labels and an answer "
            f"each, got {list(log_mass_NL.shape)} and {list(answer_N.shape)}"
        )
    if not bool(((answer_N >= 0) & (answer_N < labels)).all()):
        raise ValueError(f"calibration: an answer is the index of one of {labels} labels")
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias_L = torch.zeros(labels, dtype=torch.float64, requires_grad=bias)
    free = [log_temperature, bias_L] if bias else [log_temperature]
    search = torch.optim.LBFGS(free, lr=1.0, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        scores_NL = log_mass_NL / log_temperature.exp() + bias_L
        penalty = log_temperature.square() + bias_L.square().sum()
        nll = torch.nn.functional.cross_entropy(scores_NL, answer_N) + 1e-3 * penalty
        nll.backward()
        return nll

    search.step(loss)
    found = Calibration(math.exp(log_temperature.item()), tuple(bias_L.tolist()) if bias else None)
    before_NL, after_NL = log_mass_NL.log_softmax(dim=1), calibrated(log_mass_NL, found)
    return CalibrationReport(
        calibration=found,
        items=items,
        nll_before=float(torch.nn.functional.nll_loss(before_NL, answer_N)),
        nll_after=float(torch.nn.functional.nll_loss(after_NL, answer_N)),
        ece_before=expected_calibration_error(before_NL, answer_N),
        ece_after=expected_calibration_error(after_NL, answer_N),
    )


def fit_judge(
    judge: Judge,
    rubric: Rubric,
    items: Sequence[JudgeItem],
    answers: Mapping[str, Sequence[str]],
    *,
    bias: bool = False,
) -> dict[str, CalibrationReport]:
    """The calibration of a judge that has none yet, on labelled items of one rubric.

    answers  dimension -> the right label of each item; dimensions that are not named stay as they are

    Items that the judge gives no label probabilities for are left out; a report counts those that were used. Raises
    ValueError as `fit`, and for an answer that is no label.
    """
    verdicts = judge.score(items)
    reports = {}
    for dimension in rubric.dimensions:
        if dimension.name not in answers:
            continue
        if unknown := set(answers[dimension.name]) - set(dimension.labels):
            raise ValueError(f"calibration of {dimension.name!r}: {sorted(unknown)} are none of its labels")
        rows, right = [], []
        for verdict, answer in zip(verdicts, answers[dimension.name], strict=True):
            figures = verdict.details.get(dimension.name, {})
            if all(LOGPROB + label in figures for label in dimension.labels):
                rows.append([figures[LOGPROB + label] for label in dimension.labels])
                right.append(dimension.labels.index(answer))
        log_mass_NL = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(dimension.labels))
        reports[dimension.name] = fit(log_mass_NL, torch.tensor(right, dtype=torch.int64), bias=bias)
    return reports


def expected_calibration_error(logprob_NL: torch.Tensor, answer_N: torch.Tensor) -> float:
    """|confidence - accuracy| of the likeliest label, over BINS equal bins of confidence, by the items in each
    (Naeini et al. 2015)."""
    confidence_N, guess_N = logprob_NL.double().exp().max(dim=1)
    right_N = (guess_N == answer_N).double()
    bin_N = (confidence_N * BINS).long().clamp(max=BINS - 1)
    gap_B = torch.zeros(BINS, dtype=torch.float64).index_add(0, bin_N, confidence_N - right_N)
    return float(gap_B.abs().sum() / len(answer_N))


def save(path: str | Path, identity: str, calibrations: Mapping[str, Mapping[str, Calibration]]) -> None:
    """Write calibrations, rubric -> dimension -> Calibration, of the judge with this identity."""
    values = {rubric: {name: asdict(c) for name, c in each.items()} for rubric, each in calibrations.items()}
    write_durably(path, json.dumps({"judge": identity, "calibrations": values}, indent=1).encode())


def load(path: str | Path, identity: str) -> dict[str, dict[str, Calibration]]:
    """Calibrations of the judge with this identity. Raises ValueError naming the file if they are another judge's."""
    try:
        stored = json.loads(Path(path).read_bytes())
        judge, calibrations = stored["judge"], stored["calibrations"]
        found = {
            rubric: {
                name: Calibration(float(c["temperature"]), None if c["bias"] is None else tuple(map(float, c["bias"])))
                for name, c in each.items()
            }
            for rubric, each in calibrations.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"calibration {path}: not a readable calibration file ({error!r})") from error
    if judge != identity:
        raise ValueError(f"calibration {path}: was fitted for {judge!r}, but the judge is {identity!r}; fit it anew")
    return found
