"""Talks of two people with fixed parts: everyday dialogues and tutoring sessions.

dailydialog   a row per dialogue: dialog, a list of turns; the two speakers take turns
empathetic    a row per turn: conv_id, utterance_idx, context (an emotion), prompt, speaker_idx, utterance
mathdial      a row per session: question, student_profile, student_incorrect_solution, conversation, in which
              turns are joined by |EOM| and begin "Teacher:" or the student's name
tutoring      a row per session: conversation, a list of {role: "Teacher" | "Student", text}, and background_info
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.sources.formats.chats import spoken
from osim_core.corpus.sources.quarantine import BadRow, Quarantine, Where
from osim_core.corpus.sources.records import Record, list_of, object_of, text_of

TEACHER, STUDENT = "teacher", "student"
MOVE = re.compile(r"^\((?:generic|focus|probing|telling)\)\s*")  # the annotated tutoring move before a teacher's words


def dailydialog(source: str, row: dict[str, Any]) -> Dialogue:
    """Turns alternate, so the speakers are "A" and "B"; both are people."""
    texts = [text_of(text, f"dialog[{i}]").strip() for i, text in enumerate(list_of(row["dialog"], "dialog"))]
    turns = tuple(Turn("AB"[i % 2], text) for i, text in enumerate(texts) if text)
    if len(turns) < 2:
        raise BadRow("empty", "dialog has fewer than two turns")
    return Dialogue(id="", source=source, turns=turns, trained=("A", "B"))


def empathetic(source: str, records: Iterator[Record], quarantine: Quarantine) -> Iterator[tuple[Where, Dialogue]]:
    """Rows of one conversation lie together. Commas are stored as _comma_. The speaker felt `context` in the
    situation `prompt`; the listener does not know it, so it is only in the speaker's persona."""
    for conversation, rows in groupby(records, key=lambda record: record[1]["conv_id"]):
        group = list(rows)
        where = group[0][0]
        with quarantine.catch(where, len(group)):  # a conversation with a hole in it cannot be understood
            group.sort(key=lambda record: _index(record[1]["utterance_idx"]))
            first = group[0][1]
            starter = str(first["speaker_idx"])
            turns = tuple(
                Turn(str(row["speaker_idx"]), _commas(text_of(row["utterance"], "utterance"))) for _, row in group
            )
            names = tuple(sorted({turn.speaker for turn in turns}))
            if len(names) != 2:
                raise BadRow("empty", f"conversation {conversation} has {len(names)} speaker(s)")
            situation = _commas(text_of(first["prompt"], "prompt"))
            feeling = text_of(first["context"], "context")
            yield (
                where,
                spoken(
                    Dialogue(
                        id=str(conversation),
                        source=source,
                        turns=turns,
                        trained=names,
                        personas={starter: f"You feel {feeling}. {situation}".strip()},
                        people={name: name for name in names},
                    )
                ),
            )


def mathdial(source: str, row: dict[str, Any]) -> Dialogue:
    """The simulated side is the student; the wrong solution they start from is known before the first word."""
    stored = text_of(row["conversation"], "conversation")
    turns = []
    for number, part in enumerate(stored.split("|EOM|")):
        name, colon, text = part.strip().partition(":")
        if not colon:
            raise BadRow("wrong type", f"turn {number} of conversation has no speaker")
        if text.strip():
            teacher = name.strip() == "Teacher"
            turns.append(Turn(TEACHER if teacher else STUDENT, MOVE.sub("", text.strip()) if teacher else text.strip()))
    question = text_of(row["question"], "question")
    wrong = text_of(row.get("student_incorrect_solution") or "", "student_incorrect_solution")
    persona = text_of(row.get("student_profile") or "", "student_profile")
    started = f"\nYour solution so far: {wrong}" if wrong else ""
    return spoken(
        Dialogue(
            id=str(row.get("qid", "")),
            source=source,
            turns=tuple(turns),
            trained=(STUDENT,),
            scene=f"A teacher helps you with this problem: {question}{started}",
            relationship="student and teacher",
            personas={STUDENT: persona} if persona else {},
            people={STUDENT: str(row["qid"])} if row.get("qid") is not None else {},
        )
    )


def tutoring(source: str, row: dict[str, Any]) -> Dialogue:
    """A session of {role, text} turns with its background; the simulated side is the student."""
    turns = []
    for number, message in enumerate(list_of(row["conversation"], "conversation")):
        message = object_of(message, f"conversation[{number}]")
        role = str(message.get("role", "")).strip().lower()
        if role not in (TEACHER, STUDENT):
            raise BadRow(
                "unknown role", f"conversation[{number}]: role {message.get('role')!r} is not Teacher or Student"
            )
        turns.append(Turn(role, text_of(message.get("text"), f"conversation[{number}]")))
    background = row.get("background_info") or {}
    background = object_of(background, "background_info")
    stated = {key: value for key, value in background.items() if isinstance(value, str) and value}
    # Each side may be told of its own preferences only, as the record keeps them apart.
    own = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in stated.items() if STUDENT in key.lower())
    topic = next((value for key, value in stated.items() if key.lower() == "topic"), "")
    return spoken(
        Dialogue(
            id=str(row.get("id", "")),
            source=source,
            turns=tuple(turns),
            trained=(STUDENT,),
            scene=f"A lesson about {topic}" if topic else "",
            relationship="student and teacher",
            personas={STUDENT: own} if own else {},
        )
    )


def _commas(text: str) -> str:
    return text.replace("_comma_", ",").strip()


def _index(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise BadRow("wrong type", f"utterance_idx must be a number, got {value!r}") from error
