"""Social IQa: what somebody will do, want or feel next in an everyday situation; three options.

Questions and gold answers of Sap et al. 2019 (arXiv 1904.09728), from the package evals: 2,224 rows of which 21 are
there twice; what is left has one question a situation. It is no task of OdysSim's 23; it stands beside Social-R1, whose
data are not packaged.
"""

import re
from collections.abc import Sequence
from functools import cache

from osim_core.corpus.conversation import Message
from osim_core.missing import Value
from osim_core.soul.answers import chosen_letter, lettered
from osim_core.soul.episode import Episode, Outcome, Sample, Split, TaskSpec
from osim_core.soul.packaged import read_theory_of_mind
from osim_core.soul.single_turn import graded, part, single_turn
from osim_core.soul.splits import split_scenarios

ROW = re.compile(
    r"(?P<situation>.*[.!?\"'])\s*(?P<question>[^.?!]*\?) ?A: (?P<A>.*); B: (?P<B>.*); C: (?P<C>.*?)\.?", re.S
)
MAX_TOKENS = 512


@cache
def questions() -> tuple[Sample, ...]:
    """All 2,203 different questions. fields: situation, question, options (3), gold (letter)."""
    samples = {}
    for index, (_, prompt, gold) in enumerate(read_theory_of_mind("socialiqa/test")):
        row = ROW.fullmatch(prompt)
        fields = {
            "situation": row["situation"],
            "question": row["question"],
            "options": (row["A"], row["B"], row["C"]),
            "gold": gold,
        }
        samples.setdefault(
            prompt, Sample(id=f"socialiqa/{index}", task="socialiqa", scenario=row["situation"], fields=fields)
        )
    return tuple(samples.values())


class SocialIQa:
    spec = TaskSpec(
        id="socialiqa",
        axis="COG",
        version=1,
        origin="Social IQa (arXiv 1904.09728), package evals 3.0.1",
        licence="CC BY 4.0",
        chance=1 / 3,
        items={"train": 1322, "validation": 440, "test": 441},
    )

    def samples(self, split: Split) -> Sequence[Sample]:
        splits = split_scenarios({q.scenario: "all" for q in questions()})
        return [q for q in questions() if splits[q.scenario] == split]

    def episode(self, sample: Sample) -> Episode:
        fields = sample.fields
        prompt = (
            f"{fields['situation']}\n\n{fields['question']}\n{lettered(fields['options'])}\n\n"
            "Think step by step. Then write the letter of your answer as <answer>X</answer>."
        )
        return single_turn([Message("user", prompt)], MAX_TOKENS, lambda text: self._examine(sample, text))

    def _examine(self, sample: Sample, text: str) -> Outcome:
        letter = chosen_letter(text, 3)
        return graded(text, letter, letter == sample.fields["gold"])

    def score(self, sample: Sample, outcome: Outcome, verdicts: object) -> Value:
        return part(outcome, "correct")
