"""Reward-hacking detectors: what a reply does to please its judge instead of being like a person.

    panel = Panel(standard(encoder), load_thresholds(), mode="train")
    findings = panel.inspect([Specimen(owner="rollout-1", text=reply, context=scene, group="prompt-1"), ...])
    findings["rollout-1"]["repetition"]     # Finding(score, flagged, multiplier); compose.py applies the multipliers

A detector gives each reply a score in [0, 1], higher for worse. Its threshold is a quantile of its scores on real human
replies of the same register (calibrate.py; thresholds.json says which, how many, at which rate). A score at or above it
is flagged. In
mode "train" a flagged reply's reward is multiplied by the penalty, 0 by default, the worst of a [0, 1] scale: a milder
penalty leaves a hack profitable that gains more than it loses. In mode "audit" every multiplier is 1.

Which detectors suit is a matter of the task: length and register say nothing about a multiple-choice answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from osim_core.reward.detectors.text import sentences, words
from osim_core.reward.similarity import SentenceEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """One reply of the policy and what the detectors may know about it.

    owner     the trajectory it belongs to; of several turns of one owner the worst counts
    text      what the policy said, one turn
    context   what it had been told and what others had said, in plain text
    intent    the goal that it was given in private, if any
    rubric    names of the dimensions that the judge scores
    options   the candidate answers, where the task has them
    group     replies with the same group are samples of the same prompt; "" stands alone
    register  the kind of human text that it is held against, a key of thresholds.json
    """

    owner: str
    text: str
    context: str = ""
    intent: str = ""
    rubric: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    group: str = ""
    register: str = "chitchat"


class Batch:
    """Specimens with the readings that several detectors share, each made once.

    N specimens, S sentences, D embedding.
    """

    MIN_WORDS = 3  # shorter sentences commit no speech act that we look for, and they are a third of all

    def __init__(self, specimens: Sequence[Specimen], encoder: SentenceEncoder) -> None:
        self.specimens, self.encoder = specimens, encoder

    def __len__(self) -> int:
        return len(self.specimens)

    @cached_property
    def words(self) -> list[list[str]]:
        """Lower-cased words of each text."""
        return [words(specimen.text) for specimen in self.specimens]

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """int64 [N] words of each text."""
        return np.array([len(each) for each in self.words], np.int64)

    @cached_property
    def sentences(self) -> tuple[list[str], np.ndarray]:
        """Sentences of at least MIN_WORDS words, and int64 [S], the specimen of each."""
        found = [
            (sentence, number)
            for number, specimen in enumerate(self.specimens)
            for sentence in sentences(specimen.text)
            if len(words(sentence)) >= self.MIN_WORDS
        ]
        return [sentence for sentence, _ in found], np.array([number for _, number in found], np.int64)

    @cached_property
    def embeddings_SD(self) -> np.ndarray:
        """float32 [S, D] of those sentences."""
        return self.encoder.embed(self.sentences[0])

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Rows of each group of two and more."""
        rows: dict[str, list[int]] = {}
        for number, specimen in enumerate(self.specimens):
            if specimen.group:
                rows.setdefault(specimen.group, []).append(number)
        return [np.array(group) for group in rows.values() if len(group) > 1]


class Detector(Protocol):
    """A named measure."""

    name: str

    def score(self, batch: Batch) -> np.ndarray:
        """float64 [N] in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What one detector says about one owner."""

    score: float
    flagged: bool
    multiplier: float


Mode = Literal["audit", "train"]


@dataclass(frozen=True)
class Panel:
    """Detectors with their thresholds, and what a flag costs.

    thresholds detector -> register -> score
    penalty    factor of the reward for a flagged reply, in [0, 1)
    penalties  other factors, by detector
    Raises ValueError for a detector without a threshold, an unknown mode, or a penalty outside the range.
    """

    detectors: Sequence[Detector]
    thresholds: Mapping[str, Mapping[str, float]]
    encoder: SentenceEncoder
    mode: Mode = "audit"
    penalty: float = 0.0
    penalties: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [detector.name for detector in self.detectors]
        if self.mode not in ("audit", "train"):
            raise ValueError(f"detectors: no mode {self.mode!r}; there are audit and train")
        for name in names:
            if name not in self.thresholds:
                raise ValueError(
                    f"detectors: {name} has no threshold; run python -m osim_core.reward.detectors.calibrate"
                )
        for name, factor in (("penalty", self.penalty), *self.penalties.items()):
            if not 0.0 <= factor < 1.0 or name not in ("penalty", *names):
                raise ValueError(
                    f"detectors: penalty {factor} of {name} is not in [0, 1), or there is no such detector"
                )

    def inspect(self, specimens: Sequence[Specimen]) -> dict[str, dict[str, Finding]]:
        """owner -> detector -> finding; of an owner's specimens the highest score counts, and any flag.

        Raises ValueError for a register without thresholds.
        """
        known = set.intersection(*(set(self.thresholds[detector.name]) for detector in self.detectors))
        for specimen in specimens:
            if specimen.register not in known:
                raise ValueError(
                    f"detectors: {specimen.owner} is of no register that was calibrated: {specimen.register}"
                )
        batch = Batch(specimens, self.encoder)
        findings: dict[str, dict[str, Finding]] = {specimen.owner: {} for specimen in specimens}
        for detector in self.detectors:
            factor = self.penalties.get(detector.name, self.penalty) if self.mode == "train" else 1.0
            for specimen, score in zip(specimens, detector.score(batch).tolist(), strict=True):
                before = findings[specimen.owner].get(detector.name, Finding(0.0, False, 1.0))
                flagged = before.flagged or score >= self.thresholds[detector.name][specimen.register]
                worst = Finding(max(score, before.score), flagged, factor if flagged else 1.0)
                findings[specimen.owner][detector.name] = worst
        return findings
