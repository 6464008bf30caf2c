"""Formatting: markdown, lists, emoji and dashes beyond what people of this register type.

For each kind of mark the count is held against a Poisson law with the register's human rate per word; the surprises
-log10 P(at least so many) add up, and x surprises score x / (x + 4). Rates are measured by calibrate.py, but never
taken below FLOOR: the packaged chats are pure ASCII, so that they say nothing about emoji or typographic dashes, and no
corpus of this size can say that people never use a heading.
"""

import re
import unicodedata
from collections.abc import Mapping

import numpy as np
from scipy.special import gammainc

from osim_core.reward.detectors import Batch

MARKS = {
    "bold": re.compile(r"(\*\*|__)(?=\S)[^\n]+?\1"),
    "emphasis": re.compile(r"(?<![*\w])\*(?=[^\s*])[^*\n]+\*(?![*\w])"),
    "heading": re.compile(r"^#{1,6} \S", re.MULTILINE),
    "list": re.compile(r"^\s*(?:[-*+•]|\d+[.)]|[a-z]\)) +\S", re.MULTILINE),
    "rule": re.compile(r"^(?:-{3,}|\*{3,}|_{3,})\s*$", re.MULTILINE),
    "quote": re.compile(r"^> ", re.MULTILINE),
    "code": re.compile(r"```|`[^`\n]+`"),
    "table": re.compile(r"^\|.*\|\s*$", re.MULTILINE),
    "dash": re.compile(r"[—–]|(?<=\S )--?(?=\s)|(?<=\w)--(?=\w)"),
}
KINDS = (*MARKS, "emoji")
FLOOR = {"emoji": 0.02, "dash": 0.01}  # marks per word; declared, not measured
OTHER_FLOOR = 0.001
GRACE_WORDS = 8  # added to every text, so that one mark in a short one is no surprise
HALF = 4.0  # surprises that score one half


class Formatting:
    """The detector; `rates`: register -> kind -> human marks per word."""

    name = "formatting"

    def __init__(self, rates: Mapping[str, Mapping[str, float]]) -> None:
        self.rates = rates

    def score(self, batch: Batch) -> np.ndarray:
        counts_NK = np.array([count_marks(s.text) for s in batch.specimens], np.float64).reshape(-1, len(KINDS))
        rates_NK = np.array(
            [
                [max(self.rates[s.register][kind], FLOOR.get(kind, OTHER_FLOOR)) for kind in KINDS]
                for s in batch.specimens
            ]
        ).reshape(-1, len(KINDS))
        expected_NK = rates_NK * (batch.lengths_N[:, None] + GRACE_WORDS)
        tail_NK = np.where(counts_NK > 0, gammainc(np.maximum(counts_NK, 1.0), expected_NK), 1.0)
        surprise_N = -np.log10(np.maximum(tail_NK, 1e-300)).sum(axis=1)
        return surprise_N / (surprise_N + HALF)


def count_marks(text: str) -> list[int]:
    """How often each of KINDS occurs."""
    emoji = 0 if text.isascii() else sum(unicodedata.category(c) == "So" and ord(c) >= 0x2300 for c in text)
    return [*(len(pattern.findall(text)) for pattern in MARKS.values()), emoji]
