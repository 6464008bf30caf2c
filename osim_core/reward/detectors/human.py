"""Real human replies as specimens, in three parts by person or play: to fit on, to calibrate on, and to hold out.

Each reply comes with what its writer had before them: the scene and the last turns of the others. The topic that the
chats suggest is left out, since people are meant to read it aloud. Where a detector wants what a corpus lacks, there is
a stand-in: the published rubrics below take turns, "yes" and "no" are the candidate answers to every question, and a
group is GROUP replies in a row by one person, who repeats themselves more than strangers do. No corpus here has private
goals, so that reciting one is calibrated only as copying the context is, by the same measure. The debates are no
register: four evenings say how their speakers spoke, and thresholds of 0.1 % need thousands of replies.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.split import rank
from osim_core.reward.detectors import Specimen

Part = Literal["fit", "calibration", "held_out"]
REGISTERS = ("chitchat", "shakespeare")  # sources whose people are many enough
GROUP = 8
SEED = 5
CONTEXT_TURNS = 4  # of the others, beside the scene
TOPIC = "Suggested topic: "
RUBRICS = (
    (
        "believability",
        "relationship",
        "knowledge",
        "secret",
        "social rules",
        "financial and material benefits",
        "goal completion",
    ),  # Sotopia
    ("belief", "goal", "value", "stance", "tone", "communication style"),
    ("coherence", "empathy", "engagement", "fluency", "naturalness", "clarity"),
    ("character fidelity", "storyline quality", "anthropomorphism", "storyline consistency"),  # CoSER
)


def human_specimens(part: Part, per_source: int | None = None) -> list[Specimen]:
    """Replies of one part; `per_source` takes about so many of each source, whole groups, chosen by a hash."""
    found = []
    for register in REGISTERS:
        conversations = [c for c in SOURCES[register].load(Counter()) if part_of(c) == part]
        specimens = [specimen for conversation in conversations for specimen in _specimens(conversation)]
        found += specimens if per_source is None else _sample(specimens, per_source)
    return found


def part_of(conversation: Conversation) -> Part:
    """Where a person or play belongs: a quarter, a quarter and a half of them."""
    place = rank(f"detectors/{conversation.source}/{conversation.group}", SEED)
    return "fit" if place < 0.25 else "calibration" if place < 0.5 else "held_out"


def _specimens(conversation: Conversation) -> list[Specimen]:
    scene, heard, specimens = "", [], []
    for message in conversation.messages:
        if message.role == "system":
            scene = message.content.partition(TOPIC)[0]
        elif message.role == "user":
            heard.append(message.content)
        else:
            number = len(specimens)
            specimens.append(
                Specimen(
                    owner=f"{conversation.id}/{number}",
                    text=message.content,
                    context="\n".join([scene, *heard[-CONTEXT_TURNS:]]),
                    rubric=RUBRICS[number % len(RUBRICS)],
                    options=("yes", "no") if heard and heard[-1].rstrip().endswith("?") else (),
                    group=f"{conversation.id}/{number // GROUP}",
                    register=conversation.source,
                )
            )
    return specimens


def _sample(specimens: Sequence[Specimen], wanted: int) -> list[Specimen]:
    groups: dict[str, list[Specimen]] = {}
    for specimen in specimens:
        groups.setdefault(specimen.group, []).append(specimen)
    chosen: list[Specimen] = []
    for group in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) >= wanted:
            break
        chosen += groups[group]
    return chosen
