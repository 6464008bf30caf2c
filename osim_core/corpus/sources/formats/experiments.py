"""Records of experiments, surveys and posts: a stimulus, and what one person answered.

psych101   a row per participant and session: text, in which every choice stands in << >>, experiment, participant
socsci210  a row per answer: prompt (profile, stimulus and instructions), response, study_id, participant; its
           `reasoning` column is written by a model and is not used
humanual   a row per response: prompt (list of {role, content}), completion, persona, user_id
"""

import re
from typing import Any

from osim_core.corpus.roles import KEPT_TURNS
from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.sources.formats.chats import spoken
from osim_core.corpus.sources.quarantine import BadRow
from osim_core.corpus.sources.records import list_of, object_of, text_of

EXPERIMENT, PARTICIPANT = "experiment", "participant"
CHOICE = re.compile(r"<<(.*?)>>", re.DOTALL)


def psych101(source: str, row: dict[str, Any]) -> Dialogue:
    """Text between choices is the experiment's turn, each choice the participant's. All but the last KEPT_TURNS turns
    become part of the first one kept, with the choices still in << >>, so they are read but not trained."""
    text = text_of(row["text"], "text")
    if text.count("<<") != text.count(">>"):
        raise BadRow("wrong type", "text has unpaired << or >>")
    turns: list[Turn] = []
    for number, part in enumerate(CHOICE.split(text)):
        if part.strip():
            turns.append(Turn(PARTICIPANT if number % 2 else EXPERIMENT, part.strip()))
    if len(turns) > KEPT_TURNS:
        # an odd number of turns is folded or kept so that the block, as context, is the experiment's
        first = len(turns) - KEPT_TURNS
        first += turns[first].speaker == PARTICIPANT
        earlier = " ".join(f"<<{turn.text}>>" if turn.speaker == PARTICIPANT else turn.text for turn in turns[:first])
        turns = [Turn(EXPERIMENT, f"{earlier} {turns[first].text}"), *turns[first + 1 :]]
    participant = f"{row['experiment']}/{row['participant']}"
    return spoken(
        Dialogue(
            id=participant,
            source=source,
            turns=tuple(turns),
            trained=(PARTICIPANT,),
            scene="You take part in a psychology experiment.",
            people={PARTICIPANT: participant},
        )
    )


def socsci210(source: str, row: dict[str, Any]) -> Dialogue:
    """The stored prompt, then the number that the respondent gave."""
    response = row["response"]
    if response is None or isinstance(response, bool) or not isinstance(response, int | float | str):
        kind = "null message" if response is None else "wrong type"
        raise BadRow(kind, f"response must be a number or a label, got {response!r}")
    if isinstance(response, float) and response.is_integer():
        response = int(response)  # a column with gaps comes as floats
    prompt = text_of(row["prompt"], "prompt")
    turns = (Turn(EXPERIMENT, prompt), Turn(PARTICIPANT, str(response)))
    # of one study, so that a held-out study is never trained on through its other respondents
    return spoken(
        Dialogue(
            id=f"{row['study_id']}/{row.get('sample_id', '')}",
            source=source,
            turns=turns,
            trained=(PARTICIPANT,),
            scene="You answer a survey experiment.",
            people={PARTICIPANT: str(row["study_id"])},
        )
    )


def humanual(source: str, row: dict[str, Any]) -> Dialogue:
    """The thread that the person saw, then what they wrote; the persona is the record's own."""
    turns = []
    for number, message in enumerate(list_of(row["prompt"], "prompt")):
        message = object_of(message, f"prompt[{number}]")
        turns.append(Turn("thread", text_of(message.get("content"), f"prompt[{number}]")))
    turns.append(Turn(PARTICIPANT, text_of(row["completion"], "completion")))
    user = str(row["user_id"])
    persona = text_of(row["persona"], "persona") if row.get("persona") is not None else ""
    return spoken(
        Dialogue(
            id=f"{user}/{row.get('post_id', '')}/{row.get('turn_id', '')}",
            source=source,
            turns=tuple(turns),
            trained=(PARTICIPANT,),
            personas={PARTICIPANT: persona} if persona else {},
            people={PARTICIPANT: user},
        )
    )
