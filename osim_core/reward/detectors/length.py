"""Length, both ways, against the human distribution of the register.

Too long shows in one reply: the score is the share of human replies that are shorter. Too short does not, as people say
"ok" every tenth time; it shows in a group of samples. A group of k has the mean log(1 + words) x, and with the human
mean m and the variances b between and w within people's stretches of talk, z = (x - m) / sqrt(b + w / k); the score of
its replies is the share of human groups whose |z| is smaller. An empty reply scores 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osim_core.reward.detectors import Batch

MIN_GROUP = 4


@dataclass(frozen=True)
class HumanLengths:
    """Of one register. Both tables increase, from a share of 0 to a share of 1.

    words, share      share of human replies of fewer words
    z, group_share    share of human groups of smaller |z|
    mean, between, within   of log(1 + words)
    """

    words: np.ndarray
    share: np.ndarray
    z: np.ndarray
    group_share: np.ndarray
    mean: float
    between: float
    within: float

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "HumanLengths":
        return cls(**{name: np.array(value) if isinstance(value, list) else value for name, value in row.items()})


class Length:
    """The detector; `humans`: register -> its lengths."""

    name = "length"

    def __init__(self, humans: Mapping[str, HumanLengths]) -> None:
        self.humans = humans

    def score(self, batch: Batch) -> np.ndarray:
        human_N = [self.humans[specimen.register] for specimen in batch.specimens]
        scores_N = np.array(
            [np.interp(n, human.words, human.share) for n, human in zip(batch.lengths_N, human_N, strict=True)]
        )
        for group in batch.groups:
            if len(group) >= MIN_GROUP:
                human = human_N[group[0]]
                z = group_z(batch.lengths_N[group], human.mean, human.between, human.within)
                scores_N[group] = np.maximum(scores_N[group], np.interp(z, human.z, human.group_share))
        empty_N = np.array([not specimen.text.strip() for specimen in batch.specimens], bool)
        return np.where(empty_N, 1.0, scores_N)


def group_z(lengths_N: np.ndarray, mean: float, between: float, within: float) -> float:
    """|z| of a group; see the top of this file."""
    deviation = math.sqrt(between + within / len(lengths_N))
    return abs(float(np.log1p(lengths_N).mean()) - mean) / deviation
