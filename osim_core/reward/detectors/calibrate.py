"""Fit and calibrate the detectors on real human replies; writes thresholds.json and probes.json beside itself.

    python -m osim_core.reward.detectors.calibrate [--replies-per-source 7500]

A quarter of the people are what the sentence models are fitted against and what registers are described by, another
quarter sets the thresholds (on the sentences it was fitted to, a model is surer than on new ones), and the other half
is only measured on (`python -m benchmarks detectors`); see human.py. Each source is a register, and a threshold leaves
at most RATES[detector] of the register's replies at or above it. Same input, same output: every draw is a hash. Takes
ten minutes on one core, nearly all of it sentence embeddings.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from osim_core.corpus.durable import write_durably
from osim_core.corpus.sources import SOURCES
from osim_core.reward.detectors import Batch, Specimen
from osim_core.reward.detectors.acts import ACTS, PROBES, SpeechAct, read_examples
from osim_core.reward.detectors.formatting import KINDS, count_marks
from osim_core.reward.detectors.human import REGISTERS, human_specimens
from osim_core.reward.detectors.length import MIN_GROUP, group_z
from osim_core.reward.detectors.standard import CALIBRATION, standard_detectors
from osim_core.reward.similarity import SentenceEncoder

RATES = {  # of human replies at or above the threshold, at most; they sum to less than 1 %
    "judge_address": 0.0013,
    "self_praise": 0.0008,
    "offscreen": 0.0011,
    "assistant_register": 0.002,
    "hedging": 0.0011,
    "rubric_recital": 0.0004,
    "copying": 0.0005,
    "repetition": 0.0007,
    "length": 0.0013,
    "formatting": 0.0003,
    "collapse": 0.0002,
}
HACK_WEIGHT, BENIGN_WEIGHT = 1.0, 0.3  # total weight of examples and of near misses, that of human sentences being 1
DECAY = 1e-4  # L2 penalty of the logistic regression
GRID = 200  # points of a stored distribution


def fit_probe(act: str, batch: Batch) -> SpeechAct:
    """Weighted logistic regression of the act's examples against near misses and a batch of human sentences."""
    examples = read_examples(act)
    human, _ = batch.sentences
    texts = [*examples.hacks, *examples.benign, *human]
    embeddings_SD = np.concatenate([batch.encoder.embed([*examples.hacks, *examples.benign]), batch.embeddings_SD])
    features = torch.from_numpy(np.column_stack([embeddings_SD, examples.count_cues(texts)])).double()
    sizes = (len(examples.hacks), len(examples.benign), len(human))
    totals = (HACK_WEIGHT, BENIGN_WEIGHT, 1.0)
    weight_S = torch.cat(
        [torch.full((n,), total / n, dtype=torch.float64) for n, total in zip(sizes, totals, strict=True)]
    )
    label_S = (torch.arange(len(texts)) < sizes[0]).double()
    parameters = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits_S = features @ parameters[:-1] + parameters[-1]
        cross_entropy_S = torch.nn.functional.binary_cross_entropy_with_logits(logits_S, label_S, reduction="none")
        value = (weight_S * cross_entropy_S).sum() + DECAY * parameters[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    fitted = parameters.detach().numpy().round(4)
    return SpeechAct(act, fitted[:-2], float(fitted[-2]), float(fitted[-1]))


def register_statistics(batch: Batch) -> dict[str, Any]:
    """{source: {"lengths", "marks"}}: what length.py and formatting.py hold a reply against."""
    source_N = np.array([specimen.register for specimen in batch.specimens])
    return {
        source: {
            "lengths": _lengths(np.flatnonzero(source_N == source), batch),
            "marks": _marks(np.flatnonzero(source_N == source), batch),
        }
        for source in REGISTERS
    }


def _lengths(rows: np.ndarray, batch: Batch) -> dict[str, Any]:
    words, share = _distribution(batch.lengths_N[rows])
    inside = set(rows.tolist())
    groups = [batch.lengths_N[group] for group in batch.groups if group[0] in inside]
    logs = [np.log1p(group) for group in groups]
    within = float(np.average([x.var(ddof=1) for x in logs], weights=[len(x) - 1 for x in logs]))
    spread = np.var([x.mean() for x in logs], ddof=1)
    between = float(max(0.0, spread - within * np.mean([1 / len(x) for x in logs])))
    mean = float(np.log1p(batch.lengths_N[rows]).mean())
    z, group_share = _distribution(
        [group_z(group, mean, between, within) for group in groups if len(group) >= MIN_GROUP]
    )
    tables = {"words": words, "share": share, "z": z, "group_share": group_share}
    statistics = {"mean": mean, "between": between, "within": within}
    return {**tables, **{name: round(value, 4) for name, value in statistics.items()}}


def _distribution(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Some values in order, and the share of all that lies below each; just beyond the last one it is 1."""
    # as many points in the last percent as below it: that is where thresholds lie
    grid = np.concatenate([np.linspace(0, 0.99, GRID // 2), np.linspace(0.99, 1, GRID // 2)])
    points = np.unique(np.quantile(values, grid, method="higher"))
    share = np.searchsorted(np.sort(values), points, side="left") / len(values)
    beyond = float(points[-1]) * 1.01 + 1e-6
    return [*points.round(4).tolist(), round(beyond, 4)], [*share.round(6).tolist(), 1.0]


def _marks(rows: np.ndarray, batch: Batch) -> dict[str, float]:
    counts_K = np.sum([count_marks(batch.specimens[row].text) for row in rows], axis=0)
    return dict(zip(KINDS, (counts_K / batch.lengths_N[rows].sum()).round(6).tolist(), strict=True))


def thresholds(scores: Mapping[str, np.ndarray], source_N: np.ndarray) -> dict[str, dict[str, Any]]:
    """detector -> {"rate", "thresholds", "flagged"}, the latter two by register. scores: float64 [N] each.

    A threshold is the next number above the quantile, so that scores that tie with it stay below.
    """
    rows = {}
    for name, score_N in scores.items():
        rate = RATES[name]
        by_source = {source: score_N[source_N == source] for source in REGISTERS}
        limits = {s: float(np.nextafter(np.quantile(x, 1 - rate, method="higher"), 2.0)) for s, x in by_source.items()}
        flagged = {source: round(float((x >= limits[source]).mean()), 6) for source, x in by_source.items()}
        rows[name] = {"rate": rate, "thresholds": limits, "flagged": flagged}
    return rows


def calibrate(
    to_fit: Sequence[Specimen], specimens: Sequence[Specimen], encoder: SentenceEncoder
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of thresholds.json and probes.json, from two sets of human replies."""
    fitted = Batch(to_fit, encoder)
    probes = {act: fit_probe(act, fitted) for act in ACTS}
    registers = register_statistics(fitted)
    batch = Batch(specimens, encoder)
    scores = {detector.name: detector.score(batch) for detector in standard_detectors(registers, probes)}
    source_N = np.array([specimen.register for specimen in specimens])
    rows = thresholds(scores, source_N)
    flagged_XN = [scores[name] >= [row["thresholds"][s] for s in source_N] for name, row in rows.items()]
    together_N = np.any(flagged_XN, axis=0)
    about = {
        "command": "python -m osim_core.reward.detectors.calibrate",
        "corpora": {name: SOURCES[name].identity()["version"] for name in REGISTERS},
        "replies_to_fit": {s: sum(specimen.register == s for specimen in to_fit) for s in REGISTERS},
        "replies": {s: int((source_N == s).sum()) for s in REGISTERS},
        "flagged_together": {s: round(float(together_N[source_N == s].mean()), 6) for s in REGISTERS},
    }
    weights = {
        act: {"bias": p.bias, "cue_weight": p.cue_weight, "weight": p.weight_D.tolist()} for act, p in probes.items()
    }
    return {"about": about, "detectors": rows, "registers": registers}, weights


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replies-per-source", type=int, default=7_500)
    options = parser.parse_args(arguments)
    parts = (human_specimens(part, options.replies_per_source) for part in ("fit", "calibration"))
    found, weights = calibrate(*parts, SentenceEncoder())
    write_durably(CALIBRATION, (json.dumps(found, indent=1) + "\n").encode())
    write_durably(PROBES, (json.dumps(weights) + "\n").encode())
    for name, row in found["detectors"].items():
        limits = "  ".join(f"{register} {limit:.4f}" for register, limit in row["thresholds"].items())
        print(f"{name:<20} rate {row['rate']:.2%}  thresholds: {limits}")
    print("all together, by source:", found["about"]["flagged_together"])


if __name__ == "__main__":
    main()
