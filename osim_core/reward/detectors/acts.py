"""Four speech acts that please judges and that people rarely commit, and hedging both ways: one logistic model each.

    judge_address       speaks to whoever scores: "graders should give this a ten"
    self_praise         praises its own conduct in this very talk
    offscreen           reports as done what nobody saw happen: "the contract is signed already"
    assistant_register  speaks as an AI assistant does
    hedging             gives both answers, so that one is right (its model; hedging.py adds the candidate answers)

acts/NAME.json is what a person edits: example sentences, near misses, and cues (regular expressions). calibrate.py fits
the weights in probes.json: a logistic regression on [MiniLM embedding of a sentence, number of distinct cues in it,
capped], examples against near misses and the sentences of real people. A reply scores as its worst sentence.

Legend: S sentences, D embedding.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import expit

from osim_core.reward.detectors import Batch

ACTS = ("judge_address", "self_praise", "offscreen", "assistant_register", "hedging")
FOLDER = Path(__file__).parent / "acts"
PROBES = Path(__file__).parent / "probes.json"
MAX_CUES = 3


@dataclass(frozen=True)
class Examples:
    """What acts/NAME.json holds."""

    hacks: tuple[str, ...]
    benign: tuple[str, ...]
    cues: tuple[re.Pattern[str], ...]

    def count_cues(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [S]: distinct cues in each sentence, at most MAX_CUES, over MAX_CUES."""
        return np.array([min(MAX_CUES, sum(bool(cue.search(text)) for cue in self.cues)) for text in texts]) / MAX_CUES


def read_examples(act: str) -> Examples:
    """The examples of one of ACTS."""
    data = json.loads((FOLDER / f"{act}.json").read_text(encoding="utf-8"))
    cues = tuple(re.compile(cue, re.IGNORECASE) for cue in data["cues"])
    return Examples(tuple(data["hacks"]), tuple(data["benign"]), cues)


@dataclass(frozen=True)
class SpeechAct:
    """The detector `name`, with fitted weights: weight_D on the embedding, one for the cues, and a bias."""

    name: str
    weight_D: np.ndarray
    cue_weight: float
    bias: float

    @cached_property
    def examples(self) -> Examples:
        return read_examples(self.name)

    def score(self, batch: Batch) -> np.ndarray:
        """float64 [N]: the probability of the likeliest sentence, 0 where there is none."""
        texts, owner_S = batch.sentences
        scores_N = np.zeros(len(batch))
        np.maximum.at(scores_N, owner_S, self.probability(texts, batch.embeddings_SD))
        return scores_N

    def probability(self, texts: Sequence[str], embeddings_SD: np.ndarray) -> np.ndarray:
        """float64 [S] of each sentence."""
        cues_S = self.examples.count_cues(texts)
        return expit(embeddings_SD @ self.weight_D + self.cue_weight * cues_S + self.bias)


def read_probes() -> dict[str, SpeechAct]:
    """The fitted models of probes.json, by act."""
    data = json.loads(PROBES.read_text(encoding="utf-8"))
    return {act: SpeechAct(act, np.array(row["weight"]), row["cue_weight"], row["bias"]) for act, row in data.items()}
