"""Chats of people with an AI: lists of messages, OASST trees, PRISM conversations and preference pairs.

The person is the speaker to simulate, the AI only answers. Layouts:

    chat        a row per conversation with a list of {role, content}: WildChat, LMSYS-Chat-1M, StudyChat; also rows
                that already carry their social context in a system message (OdysSim's own layout)
    oasst       one tree per row: {message_tree_id, prompt: {text, role: "prompter", replies: [...]}}; or one message
                per row, as in the released tables: message_id, parent_id, message_tree_id, role, text
    prism       conversation_history: [{turn, role: "user" | "model", content, if_chosen}]
    preference  a transcript "Human: ... Assistant: ..." in `chosen` (HH-RLHF) or `prompt` (Nectar)
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.sources.formats.paths import paths as tree_paths
from osim_core.corpus.sources.quarantine import BadRow, Quarantine, Where
from osim_core.corpus.sources.records import Record, list_of, object_of, text_of

PERSON, AI = "user", "assistant"
SPEAKERS = {
    "user": PERSON,
    "human": PERSON,
    "prompter": PERSON,
    "assistant": AI,
    "gpt": AI,
    "model": AI,
    "chatbot": AI,
}
TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def chat(source: str, row: dict[str, Any], field: str, trained: str = PERSON) -> Dialogue:
    """One row whose `field` is a list of {role, content} (or {from, value}). Tool messages are left out: the person
    never saw them. `trained` is the stored role to simulate."""
    turns: list[Turn] = []
    system: str | None = None
    for number, message in enumerate(list_of(row[field], field)):
        what = f"{field}[{number}]"
        message = object_of(message, what)
        role = message.get("role", message.get("from"))
        text = text_of(message.get("content", message.get("value")), f"{what} content")
        if role == "system" and number == 0:
            system = text
        elif role in SPEAKERS:
            turns.append(Turn(SPEAKERS[role], text))
        elif role != "tool":
            raise BadRow("unknown role", f"{what}: role {role!r} is not one of system, tool, {', '.join(SPEAKERS)}")
    return spoken(Dialogue(id="", source=source, turns=tuple(turns), trained=(trained,), system=system))


def prism(source: str, row: dict[str, Any]) -> Dialogue:
    """A PRISM conversation: of the models' answers in one turn, only the one the person went on with."""
    turns = []
    for number, message in enumerate(list_of(row["conversation_history"], "conversation_history")):
        message = object_of(message, f"conversation_history[{number}]")
        role = message.get("role")
        if role not in ("user", "model"):
            raise BadRow("unknown role", f"conversation_history[{number}]: role {role!r} is not user or model")
        if role == "user" or message.get("if_chosen"):
            turns.append(Turn(SPEAKERS[role], text_of(message.get("content"), f"conversation_history[{number}]")))
    person = row.get("user_id")
    return spoken(
        Dialogue(
            id="",
            source=source,
            turns=tuple(turns),
            trained=(PERSON,),
            people={PERSON: str(person)} if person else {},
        )
    )


def preference(source: str, row: dict[str, Any], field: str) -> Dialogue:
    """A transcript of "Human:" and "Assistant:" paragraphs."""
    text = text_of(row[field], field)
    parts = TRANSCRIPT.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise BadRow("wrong type", f"{field} does not begin with 'Human:' or 'Assistant:'")
    turns = tuple(
        Turn(PERSON if name == "Human" else AI, said.strip())
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
        if said.strip()
    )
    return spoken(Dialogue(id="", source=source, turns=turns, trained=(PERSON,)))


def oasst(source: str, records: Iterator[Record], quarantine: Quarantine) -> Iterator[tuple[Where, Dialogue]]:
    """Every kept path of every tree. Rows of single messages must come tree by tree, as they are released."""

    def tree_of(record: Record) -> Any:
        return record[1]["message_tree_id"]

    for tree, rows in groupby(records, key=tree_of):
        group = list(rows)
        where = group[0][0]
        with quarantine.catch(where):
            nested = "prompt" in group[0][1]
            nodes = _nested(group[0][1], quarantine) if nested else _flat(group, quarantine)
            kept, dropped = tree_paths({key: parent for key, (parent, _, _) in nodes.items()})
            quarantine.notes["paths_overlapping"] += dropped
            for number, path in enumerate(kept):
                turns = tuple(Turn(nodes[key][1], nodes[key][2]) for key in path)
                if not any(turn.speaker == PERSON for turn in turns):
                    quarantine.notes["nobody_to_simulate"] += 1
                    continue
                # one tree has many authors, so the tree is what must stay on one side of the split
                people = {PERSON: str(tree)}
                name = f"{tree}/{number}"
                yield where, Dialogue(id=name, source=source, turns=turns, trained=(PERSON,), people=people)


Nodes = dict[str, tuple[str | None, str, str]]  # id -> parent, speaker, text


def _flat(group: Sequence[Record], quarantine: Quarantine) -> Nodes:
    nodes: Nodes = {}
    for where, row in group:
        if row.get("deleted"):
            quarantine.notes["messages_deleted"] += 1
            continue
        with quarantine.catch(where):
            nodes[str(row.get("message_id"))] = _node(row, row.get("parent_id"))
    # Replies to a message that is deleted or damaged cannot be understood either.
    while lost := [key for key, (parent, _, _) in nodes.items() if parent is not None and parent not in nodes]:
        quarantine.notes["replies_to_lost"] += len(lost)
        for key in lost:
            del nodes[key]
    return nodes


def _nested(row: dict[str, Any], quarantine: Quarantine) -> Nodes:
    nodes: Nodes = {}
    stack: list[tuple[Any, str | None]] = [(row["prompt"], None)]
    while stack:
        message, parent = stack.pop()
        message = object_of(message, "prompt" if parent is None else "reply")
        key = str(message.get("message_id", len(nodes)))
        if message.get("deleted"):
            quarantine.notes["messages_deleted"] += 1  # with all replies to it
            continue
        nodes[key] = _node(message, parent)
        stack += [(reply, key) for reply in reversed(message.get("replies") or [])]
    return nodes


def _node(message: dict[str, Any], parent: str | None) -> tuple[str | None, str, str]:
    role = message.get("role")
    if role not in ("prompter", "assistant"):
        raise BadRow("unknown role", f"role {role!r} is not prompter or assistant")
    return parent, SPEAKERS[role], text_of(message.get("text"), "text")


def spoken(dialogue: Dialogue) -> Dialogue:
    """The dialogue if somebody who is to be simulated says something. Raises BadRow otherwise."""
    said = {turn.speaker for turn in dialogue.turns if turn.text.strip()}
    if not said & set(dialogue.trained):
        raise BadRow("empty", f"{' and '.join(dialogue.trained)} says nothing")
    return dialogue
