"""ToMi: where will A look for it, where does A think that B searches, where was it, where is it?

Stories and gold answers of Le et al. 2019 (ToMi), from the package evals: 999 stories, 6 questions each but for one.
The answer is a word. It is right if it names the gold place and no other place of the story, so listing every place
earns nothing. A story lies on one side of a split.
"""

import re
from collections.abc import Sequence
from functools import cache

from osim_core.corpus.conversation import Message
from osim_core.missing import Value
from osim_core.soul.answers import tagged_answer
from osim_core.soul.episode import Episode, Outcome, Sample, Split, TaskSpec
from osim_core.soul.packaged import read_theory_of_mind
from osim_core.soul.single_turn import graded, part, single_turn
from osim_core.soul.splits import split_scenarios

PLACE = re.compile(r"(?:The [\w-]+ is in the | moved the [\w-]+ to the )([\w-]+)")  # people are in rooms, not in places
MAX_TOKENS = 512
RULES = """\
Read the story, then answer the question about it. A character knows what happens in the room while they are in it, and
nothing of what happens there after they have left. Answer with the most exact place: a container, not a room."""


@cache
def questions() -> tuple[Sample, ...]:
    """All 5,993 questions. fields: story, question, places (of the object, in order of mention), gold, kind."""
    samples = []
    for index, (_, prompt, gold) in enumerate(read_theory_of_mind("tomi/test")):
        # the last sentence of a story may lack its full stop, so only the question word tells where it ends
        story, _, question = prompt.rpartition(" Where ")
        fields = {
            "story": story,
            "question": f"Where {question}",
            "places": tuple(dict.fromkeys(PLACE.findall(story))),
            "gold": gold,
            "kind": _kind(question),
        }
        samples.append(Sample(id=f"tomi/{index}", task="tomi", scenario=story, fields=fields))
    return tuple(samples)


def _kind(question: str) -> str:
    if question.startswith("will "):
        return "first order"
    if question.startswith("does "):
        return "second order"
    return "memory" if question.endswith("at the beginning?") else "reality"


class ToMi:
    spec = TaskSpec(
        id="tomi",
        axis="COG",
        version=1,
        origin="ToMi (Le et al. 2019), package evals 3.0.1",
        licence="CC BY-NC 4.0",
        chance=0.5,  # every story holds its object in two places
        items={"train": 3594, "validation": 1200, "test": 1199},
    )

    def samples(self, split: Split) -> Sequence[Sample]:
        splits = split_scenarios({q.scenario: "all" for q in questions()})
        return [q for q in questions() if splits[q.scenario] == split]

    def episode(self, sample: Sample) -> Episode:
        prompt = (
            f"{RULES}\n\n{sample.fields['story']}\n\n{sample.fields['question']}\n\n"
            "Think step by step. Then write the place as <answer>place</answer>."
        )
        return single_turn([Message("user", prompt)], MAX_TOKENS, lambda text: self._examine(sample, text))

    def _examine(self, sample: Sample, text: str) -> Outcome:
        answer = tagged_answer(text)
        return graded(text, answer, answer is not None and names_only(answer, sample.fields))

    def score(self, sample: Sample, outcome: Outcome, verdicts: object) -> Value:
        return part(outcome, "correct")


def names_only(answer: str, fields: dict) -> bool:
    """Whether an answer holds the gold place as a whole word and none of the other places."""

    def holds(place: str) -> bool:
        return re.search(rf"(?<![\w-]){re.escape(place)}(?![\w-])", answer, re.IGNORECASE) is not None

    return holds(fields["gold"]) and not any(holds(place) for place in fields["places"] if place != fields["gold"])
