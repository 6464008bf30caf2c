"""Real human replies as specimens, in two halves by person, play or debate: to calibrate on, and to hold out.

Each reply comes with what its writer had before them: the scene and the last turns of the others. The topic that the
chats suggest is left out, since people are meant to read it aloud. Where a detector wants what a corpus lacks, there is
a stand-in: the published rubrics below take turns, "yes" and "no" are the candidate answers to every question, and a
group is GROUP replies in a row by one person, who repeats themselves more than strangers do. No corpus here has private
goals, so that reciting one is calibrated only as copying the context is, by the same measure.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from osim_core.corpus.conversation import Conversation
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.split import rank
from osim_core.reward.detectors import Specimen

Half = Literal["calibration", "held_out"]
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


def human_specimens(half: Half, per_source: int | None = None) -> list[Specimen]:
    """Replies of one half; `per_source` takes about so many of each source, whole groups, chosen by a hash."""
    found = []
    for source in SOURCES.values():
        conversations = [c for c in source.load(Counter()) if _half(c) == half]
        specimens = [specimen for conversation in conversations for specimen in _specimens(conversation)]
        found += specimens if per_source is None else _sample(specimens, per_source)
    return found


def _half(conversation: Conversation) -> Half:
    in_first = rank(f"detectors/{conversation.source}/{conversation.group}", SEED) < 0.5
    return "calibration" if in_first else "held_out"


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
