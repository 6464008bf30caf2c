"""Hi-ToM: where does A think that B thinks that ... the object is? Belief orders 0 to 4, told lies included.

Stories and gold answers of Wu et al. 2023 (arXiv 2310.16755), from the package evals: 120 stories of 1 to 3 chapters,
half of them with deception, 5 questions each, 15 options. The gold letters there are uneven (L: 15 %), so options are
shuffled by item id, and no constant letter scores above chance. A story lies on one side of a split.
"""

import random
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

OPTION = re.compile(r"([A-Z])\. (\w+)")
MAX_TOKENS = 1024
RULES = """\
Read the story, then answer the question about it. In the story:
- A character sees everything that happens in the room while they are in it, and nothing after they have left.
- Characters may lie, in public or in private. Who hears a claim knows that it was made.
- A character believes somebody's claim only if that person left the room later than they did themselves.
- What is said in private is known to the two who talk, and to nobody else."""


@cache
def questions() -> tuple[Sample, ...]:
    """All 600 questions. fields: story, question, options (15 names), gold (letter), order, chapters, deception."""
    samples = []
    for index, (row, prompt, gold) in enumerate(read_theory_of_mind("hitom/hitom-multiple-choice")):
        story, question, listed = _parse(prompt)
        answer = dict(OPTION.findall(listed))[gold]
        options = [name for _, name in OPTION.findall(listed)]
        random.Random(index).shuffle(options)
        fields = {
            "story": story,
            "question": question,
            "options": tuple(options),
            "gold": chr(ord("A") + options.index(answer)),
            "order": len(re.findall(r"\bthinks?\b", question)),
            "chapters": row["story_length"],
            "deception": row["deception"],
        }
        samples.append(Sample(id=f"hitom/{index}", task="hitom", scenario=story, fields=fields))
    return tuple(samples)


def _parse(prompt: str) -> tuple[str, str, str]:
    """(story, question, list of options). Some questions of the package begin with stray asterisks."""
    story, _, rest = prompt.partition("\n\n")
    question, _, options = rest.partition("\n")
    return story, question.lstrip("*"), options


class HiToM:
    spec = TaskSpec(
        id="hitom",
        axis="COG",
        version=1,
        origin="Hi-ToM (arXiv 2310.16755), package evals 3.0.1",
        licence="not stated in the package",
        chance=1 / 15,
        items={"train": 360, "validation": 120, "test": 120},
    )

    def samples(self, split: Split) -> Sequence[Sample]:
        strata = {q.scenario: f"{q.fields['chapters']} {q.fields['deception']}" for q in questions()}
        splits = split_scenarios(strata)
        return [q for q in questions() if splits[q.scenario] == split]

    def episode(self, sample: Sample) -> Episode:
        fields = sample.fields
        prompt = (
            f"{RULES}\n\n{fields['story']}\n\n{fields['question']}\n{lettered(fields['options'])}\n\n"
            "Think step by step. Then write the letter of your answer as <answer>X</answer>."
        )
        return single_turn([Message("user", prompt)], MAX_TOKENS, lambda text: self._examine(sample, text))

    def _examine(self, sample: Sample, text: str) -> Outcome:
        letter = chosen_letter(text, len(sample.fields["options"]))
        return graded(text, letter, letter == sample.fields["gold"])

    def score(self, sample: Sample, outcome: Outcome, verdicts: object) -> Value:
        return part(outcome, "correct")
