"""Rewards by rule, all in [0, 1]: exact match, multiple choice, rank of the right answer, distance on a rating scale.

    reward = multiple_choice(reply, gold="C", options=4)

Each reads the answer tag alone (soul/answers.py): no first letter found anywhere, no number out of "9/10", so a policy
earns nothing by naming every candidate. What an unreadable reply is worth is the argument `unparsed`, by task:

    0.0 (default)         where the policy is under test, in training as in evaluation: the form is part of the
                          answer, and a policy must not escape a question by mumbling
    Missing("unparsed")   where a model other than the policy wrote the reply (a judge's or annotator's answer)

A gold answer that is not among the candidates is a ValueError: the data is wrong, not the reply.
"""

import re
import string
from collections.abc import Sequence

from osim_core.missing import Missing, Value
from osim_core.soul.answers import chosen_letter, tagged_answer

UNPARSED = Missing("unparsed", "no readable answer tag")
EDGES = string.whitespace + string.punctuation


def exact_match(reply: str, gold: str | Sequence[str], unparsed: Value = 0.0) -> Value:
    """1 if the tagged answer is `gold`, or one of several spellings, apart from case, spacing and outer punctuation."""
    answer = tagged_answer(reply)
    if answer is None or not normalise(answer):
        return unparsed
    spellings = (gold,) if isinstance(gold, str) else gold
    return float(normalise(answer) in {normalise(spelling) for spelling in spellings})


def multiple_choice(reply: str, gold: str, options: int, unparsed: Value = 0.0) -> Value:
    """1 if the tagged letter is `gold`, a capital below the number of options."""
    if not (len(gold) == 1 and 0 <= ord(gold) - ord("A") < options):
        raise ValueError(f"multiple choice: {gold!r} is not one of the first {options} capitals")
    letter = chosen_letter(reply, options)
    return unparsed if letter is None else float(letter == gold)


def reciprocal_rank(reply: str, gold: str, candidates: Sequence[str], longest: int = 5, unparsed: Value = 0.0) -> Value:
    """1 / (place of `gold`) in a tagged list of at most `longest` candidates, commas or lines apart; 0 if not listed.

    A list with a stranger, a repeat or too many entries is unreadable: it would be a way to name everything.
    """
    known = [normalise(candidate) for candidate in candidates]
    if normalise(gold) not in known:
        raise ValueError(f"ranking: {gold!r} is not a candidate")
    answer = tagged_answer(reply)
    ranked = [normalise(part) for part in re.split(r"[,\n]", answer)] if answer else []
    if not 1 <= len(ranked) <= longest or len(set(ranked)) < len(ranked) or not set(ranked) <= set(known):
        return unparsed
    return 1.0 / (1 + ranked.index(normalise(gold))) if normalise(gold) in ranked else 0.0


def likert(reply: str, gold: float, low: int, high: int, unparsed: Value = 0.0) -> Value:
    """1 - |answer - gold| / (high - low) for a tagged whole number from low to high; anything else is unreadable."""
    if not low <= gold <= high or low >= high:
        raise ValueError(f"likert: {gold} is not on a scale from {low} to {high}")
    answer = tagged_answer(reply)
    if answer is None or not re.fullmatch(r"[+-]?\d{1,9}", answer, re.ASCII) or not low <= int(answer) <= high:
        return unparsed
    return 1.0 - abs(int(answer) - gold) / (high - low)


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the ends."""
    return " ".join(text.casefold().strip(EDGES).split())
