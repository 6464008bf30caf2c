"""Rubrics and judge calls for the tests of judge_score, and its definition written out item by item in fp64."""

import math
from dataclasses import fields

import torch

from osim_kernels.judge_score import GIVEN, LOW_MASS, NON_FINITE, PRESENT, DimensionLabels, JudgeLabels, JudgeScores
from osim_kernels.judge_score.scores import GroupAdvantages

_TEN = DimensionLabels(
    "ten anchors in two spellings",
    labels=tuple(((n,), (n + 10,)) if n % 3 else ((n,),) for n in range(10)),
    values=tuple(range(1, 11)),
    weight=2.0,
    temperature=0.7,
)
_YES_NO = DimensionLabels("yes or no", labels=(((30,),), ((31,),)), values=(1.0, 0.0), weight=0.5)
_LETTERS = DimensionLabels(
    "letters", labels=(((20,),), ((21,),), ((22,),), ((23,),)), values=(0.0, 1.0, 2.0, 4.0), worst=5.0, best=-1.0,
    bias=(0.1, -0.3, 0.0, 0.4), temperature=1.6,
)  # fmt: skip
_WORDS = DimensionLabels(
    "words of one to three tokens",
    labels=(((25,), (32, 26)), ((27, 28, 29), (27, 26)), ((33, 1),)),
    values=(-1.0, 0.5, 1.0),
    temperature=1.2,
)
_ONE = DimensionLabels("one label", labels=(((5,), (6,)),), values=(3.0,), worst=1.0, best=5.0)

RUBRICS = {
    "ten anchors": JudgeLabels((_TEN,)),
    "yes or no": JudgeLabels((_YES_NO,)),
    "one label": JudgeLabels((_ONE,)),
    "words": JudgeLabels((_WORDS,)),
    "single tokens": JudgeLabels((_TEN, _YES_NO, _LETTERS, _ONE)),
    "mixed": JudgeLabels((_TEN, _WORDS, _YES_NO, _LETTERS)),
}
FIGURES = tuple(field.name for field in fields(JudgeScores) if field.name not in ("reason_IJ", "group"))
PADDING = 6  # rows of the head behind the vocabulary


def ask(
    labels,
    items,
    *,
    dtype=torch.float32,
    min_mass=None,
    hidden_size=24,
    vocab=54,
    padding=PADDING,
    missing=True,
    device="cpu",
) -> dict:
    """Keyword arguments of an implementation of judge_score. With `missing`, about one answer in five is given as
    missing, its rows NaN, and every fourth item's multiplier is not finite."""
    shape = (items, len(labels.contexts), hidden_size)
    hidden_ISD = torch.randn(shape, dtype=torch.float64) / math.sqrt(hidden_size)
    head_VD = torch.randn(vocab + padding, hidden_size, dtype=torch.float64) * 2
    multiplier_I = torch.rand(items, dtype=torch.float64) if items else torch.zeros(0, dtype=torch.float64)
    missing_IJ = None
    if missing:
        missing_IJ = torch.rand(items, len(labels.dimensions)) < 0.2
        for s, (j, _) in enumerate(labels.contexts):
            hidden_ISD[missing_IJ[:, j], s] = math.nan
        multiplier_I[3::4], multiplier_I[7::8] = math.nan, math.inf
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "hidden_ISD": hidden_ISD.to(device, dtype),
        "head_VD": head_VD.to(device, dtype),
        "labels": labels,
        "min_mass": min_mass,
        "anchor_logprob_IS": None,
        "missing_IJ": None if missing_IJ is None else missing_IJ.to(device),
        "multiplier_I": multiplier_I.to(device, wide),
        "group": None,
        "vocab_start": 0,
        "vocab_size": vocab,
    }


def by_hand(hidden_ISD, head_VD, labels, *, min_mass, missing_IJ, multiplier_I, vocab_size, **rest) -> JudgeScores:
    """The definition in README.md, in Python floats; fp64 on the CPU."""
    head_VD = head_VD[:vocab_size].cpu().double()
    width = sum(len(d.labels) for d in labels.dimensions)
    items, dimensions = len(hidden_ISD), len(labels.dimensions)
    found = {
        name: torch.full(shape, math.nan, dtype=torch.float64)
        for name, shape in {
            "label_logprob_IL": (items, width),
            **dict.fromkeys(("score_IJ", "normalised_IJ", "entropy_IJ", "margin_IJ", "mass_IJ"), (items, dimensions)),
            **dict.fromkeys(("raw_reward_I", "reward_I"), (items,)),
        }.items()
    }
    reason_IJ = torch.zeros(items, dimensions, dtype=torch.int32)
    for i in range(items):
        total, weights = 0.0, 0.0
        for j, d in enumerate(labels.dimensions):
            p = {
                prefix: (head_VD @ hidden_ISD[i, s].cpu().double()).log_softmax(dim=0).tolist()
                for s, (k, prefix) in enumerate(labels.contexts)
                if k == j
            }
            log_masses = [
                torch.tensor(
                    [sum(p[variant[:n]][token] for n, token in enumerate(variant)) for variant in label],
                    dtype=torch.float64,
                ).logsumexp(dim=0).item()
                for label in d.labels
            ]  # fmt: skip
            mass = sum(map(math.exp, log_masses))
            if missing_IJ is not None and missing_IJ[i, j]:
                reason_IJ[i, j] = GIVEN
                continue
            if not all(map(math.isfinite, log_masses)):
                reason_IJ[i, j] = NON_FINITE
                continue
            if min_mass is not None or labels.depth > 1:
                found["mass_IJ"][i, j] = mass
            if min_mass is not None and mass < min_mass:
                reason_IJ[i, j] = LOW_MASS
                continue
            reason_IJ[i, j] = PRESENT
            tempered = [
                m / d.temperature + b for m, b in zip(log_masses, d.bias or [0.0] * len(log_masses), strict=True)
            ]
            highest = max(tempered)
            norm = highest + math.log(sum(math.exp(t - highest) for t in tempered))
            q = [math.exp(t - norm) for t in tempered]
            score = sum(probability * value for probability, value in zip(q, d.values, strict=True))
            worst, best = d.scale
            first, second = sorted([*q, 0.0], reverse=True)[:2]
            found["label_logprob_IL"][i, labels.slices[j]] = torch.tensor(
                [t - norm for t in tempered], dtype=torch.float64
            )
            found["score_IJ"][i, j] = score
            found["normalised_IJ"][i, j] = (score - worst) / (best - worst)
            found["entropy_IJ"][i, j] = -sum(x * (t - norm) for x, t in zip(q, tempered, strict=True))
            found["margin_IJ"][i, j] = first - second
            total += d.weight * (score - worst) / (best - worst)
            weights += d.weight
        if weights > 0:
            found["raw_reward_I"][i] = total / weights
            multiplier = 1.0 if multiplier_I is None else multiplier_I[i].item()
            found["reward_I"][i] = total / weights * multiplier if math.isfinite(multiplier) else math.nan
    return JudgeScores(reason_IJ=reason_IJ, **found)


def assert_scores_close(found: JudgeScores, expected: JudgeScores, tolerance: float) -> None:
    """Reasons alike; figures within the tolerance, absolute (log-probs: relative too), NaN exactly where expected."""
    assert torch.equal(found.reason_IJ.cpu(), expected.reason_IJ)
    for name in FIGURES:
        torch.testing.assert_close(
            getattr(found, name).cpu().double(),
            getattr(expected, name),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def groups_by_hand(reward_I, group_I, kind: str, epsilon: float) -> GroupAdvantages:
    """The formulas, group by group in Python."""
    rewards, groups = reward_I.tolist(), group_I.tolist()
    advantage, mean, std, size = [], [], [], []
    for own, group in zip(rewards, groups, strict=True):
        present = [r for r, g in zip(rewards, groups, strict=True) if g == group and math.isfinite(r)]
        n = len(present)
        average = math.fsum(present) / n if n else math.nan
        deviation = math.sqrt(math.fsum((r - average) ** 2 for r in present) / (n - 1)) if n > 1 else 0.0
        if n > 1 and len(set(present)) == 1:
            deviation = 0.0
        gain = 0.0
        if n > 1 and math.isfinite(own) and len(set(present)) > 1:
            gain = own - average
            if kind == "grpo":
                gain /= deviation + epsilon
            elif kind == "rloo":
                gain = own - (math.fsum(present) - own) / (n - 1)
        advantage.append(gain)
        mean.append(average)
        std.append(deviation)
        size.append(n)
    return GroupAdvantages(
        *(torch.tensor(x, dtype=torch.float64) for x in (advantage, mean, std)), torch.tensor(size, dtype=torch.int32)
    )
