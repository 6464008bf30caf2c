"""The answer words of a rubric as token sequences of one tokenizer, for judge_score.

A word counts as it stands and with a capital letter. Where one answer begins another ("1" and "10" in a tokenizer that
cuts digits apart), the shorter one is asked for together with what closes it: end of turn, line, sentence or word.
"""

import itertools
from collections.abc import Mapping

from osim_core.judge.calibrate import Calibration
from osim_core.judge.prompt import JudgePrompt, Tokens
from osim_core.judge.rubric import Dimension, Rubric
from osim_kernels.judge_score import DimensionLabels, JudgeLabels


def judge_labels(rubric: Rubric, prompt: JudgePrompt, calibrations: Mapping[str, Calibration]) -> JudgeLabels:
    """The labels of every dimension, with the calibration of those that have one.

    Raises ValueError where the tokenizer cannot tell two answers apart.
    """
    return JudgeLabels(tuple(_labels(d, prompt, calibrations.get(d.name, Calibration())) for d in rubric.dimensions))


def _labels(dimension: Dimension, prompt: JudgePrompt, calibration: Calibration) -> DimensionLabels:
    worst, best = dimension.scale
    return DimensionLabels(
        dimension.name,
        labels=_prefix_free([_spellings(label, prompt) for label in dimension.labels], prompt.ends),
        values=dimension.values,
        worst=worst,
        best=best,
        weight=dimension.weight,
        temperature=calibration.temperature,
        bias=calibration.bias,
    )


def _spellings(label: str, prompt: JudgePrompt) -> list[Tokens]:
    words = dict.fromkeys([label, label[0].upper() + label[1:]])
    return list(dict.fromkeys(prompt.encode(list(words))))


def _prefix_free(labels: list[list[Tokens]], ends: tuple[Tokens, ...]) -> tuple[tuple[Tokens, ...], ...]:
    """The labels' variants, closed where another label goes on from them."""
    found = []
    for variants in labels:
        others = list(itertools.chain.from_iterable(other for other in labels if other is not variants))
        own = [v for v in variants if not any(v != w and v[: len(w)] == w for w in variants)]
        found.append(
            tuple(
                itertools.chain.from_iterable(
                    [v + end for end in ends] if any(w[: len(v)] == v for w in others) else [v] for v in own
                )
            )
        )
    return tuple(found)
