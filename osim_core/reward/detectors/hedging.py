"""Hedging both ways: a reply that gives several answers, so that whichever is right was said.

Where the task has candidate answers, the ones that a reply asserts are counted: "in the basket, not in the box" asserts
one. Otherwise the speech act's model (acts.py) judges by wording.
"""

import re
from dataclasses import dataclass

import numpy as np

from osim_core.reward.detectors import Batch
from osim_core.reward.detectors.acts import SpeechAct

DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\bnor|\brather than|\binstead of|\bunlike|\bmoved? \w+ (?:from|to))\W+(?:\w+\W+){0,3}$"
)
POLAR = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True)
class Hedging:
    """The detector; 1 where two or more candidate answers are asserted, otherwise the model's score."""

    model: SpeechAct
    name: str = "hedging"

    def score(self, batch: Batch) -> np.ndarray:
        scores_N = self.model.score(batch)
        for number, specimen in enumerate(batch.specimens):
            if sum(asserts(specimen.text, option) for option in specimen.options) > 1:
                scores_N[number] = 1.0
        return scores_N


def asserts(text: str, option: str) -> bool:
    """Whether `text` names `option` without denying it. A single letter counts as a capital that no lower-case noun
    follows ("A" but not "A dog"); yes, no, true and false count where they could be an answer, not in "no idea"."""
    if len(option) == 1:
        pattern = re.compile(rf"\b{re.escape(option)}\b(?!\s+(?!or\b|and\b|is\b|as\b|too\b)[a-z])")
    elif option.casefold() in POLAR:
        pattern = re.compile(rf"\b{re.escape(option)}\b(?=\s*(?:$|[.,;:!?/]|and\b|or\b|as well\b))", re.IGNORECASE)
    else:
        pattern = re.compile(rf"\b{re.escape(option)}\b", re.IGNORECASE)
    return any(not DENIED.search(text[: match.start()].casefold()) for match in pattern.finditer(text))
