"""Scenes with characters: CoSER books and Sotopia episodes.

coser    a book per file or row: plots, each with `conversation`, a list of {scenario, topic, key_characters:
         [{name, motivation}], dialogues: [{character, message}]}; profiles in character_profiles {name: text} or
         character_datasets {name: {profile}}
sotopia  an episode per row: scenario (or social_scenario), agents_background, social_goals, social_interactions
         as text, or messages as [[sender, receiver, text], ...] per turn
"""

import re
from collections.abc import Iterator
from typing import Any

from osim_core.corpus.sources.dialogue import Dialogue, Turn
from osim_core.corpus.sources.formats.chats import spoken
from osim_core.corpus.sources.quarantine import BadRow, Quarantine, Where
from osim_core.corpus.sources.records import list_of, object_of, text_of

ENVIRONMENT = "Environment"  # narrates in CoSER and Sotopia; nobody to simulate
SPEECH = re.compile(r"^([^\n:]{1,80}?) said: \"(.*)\"$", re.DOTALL)
ENDING = re.compile(r"^(.{1,80}?) (?:did nothing|left the conversation)$")


def coser(source: str, where: Where, book: dict[str, Any], quarantine: Quarantine) -> Iterator[Dialogue]:
    """Every conversation of a book; each character who speaks is simulated, the Environment is not. A damaged
    conversation is quarantined alone."""
    title = text_of(book.get("book", book.get("title", "")), "book")
    profiles = _profiles(book)
    for at, plot in enumerate(list_of(book["plots"], "plots")):
        scenes = object_of(plot, f"plots[{at}]").get("conversation") or []
        for number, scene in enumerate(scenes):
            what = f"plots[{at}].conversation[{number}]"
            with quarantine.catch(Where(where.file, what if where.row is None else f"{where.row}, {what}")):
                yield _scene(source, title, f"{title}/{at}/{number}", object_of(scene, what), profiles)


def _scene(source: str, title: str, name: str, scene: dict[str, Any], profiles: dict[str, str]) -> Dialogue:
    turns = []
    for line, said in enumerate(list_of(scene.get("dialogues"), "dialogues")):
        said = object_of(said, f"dialogues[{line}]")
        speaker = text_of(said.get("character"), f"dialogues[{line}].character")
        turns.append(Turn(speaker, text_of(said.get("message"), f"dialogues[{line}].message")))
    names = sorted({turn.speaker for turn in turns} - {ENVIRONMENT})
    goals = {
        str(entry["name"]): entry["motivation"]
        for entry in scene.get("key_characters") or []
        if isinstance(entry, dict) and entry.get("name") in names and isinstance(entry.get("motivation"), str)
    }
    place = text_of(scene.get("scenario") or "", "scenario")
    return spoken(
        Dialogue(
            id=name,
            source=source,
            turns=tuple(turns),
            trained=tuple(names),
            scene=f"A scene of {title}. {place}".strip() if title else place,
            personas={name: f"You are {name}. {profiles.get(name, '')}".strip() for name in names},
            goals=goals,
            people={turn.speaker: title for turn in turns} if title else {},  # one book, one side of the split
        )
    )


def sotopia(source: str, row: dict[str, Any]) -> Dialogue:
    """An episode as both agents live it; the other's goal and secret stay out of the context."""
    scene = text_of(row.get("scenario", row.get("social_scenario")), "scenario")
    goals = object_of(row.get("social_goals"), "social_goals")
    people = object_of(row.get("agents_background") or {}, "agents_background")
    stored = row.get("social_interactions")
    turns = tuple(_messages(row["messages"])) if stored is None else tuple(_interactions(stored))
    names = sorted({turn.speaker for turn in turns} - {ENVIRONMENT})
    unknown = [name for name in names if name not in goals]
    if unknown:
        raise BadRow("unknown role", f"{unknown[0]!r} speaks but has no goal; goals are for {', '.join(goals)}")
    return spoken(
        Dialogue(
            id=str(row.get("episode_id", row.get("pk", ""))),
            source=source,
            turns=turns,
            trained=tuple(names),
            scene=scene,
            personas={
                name: f"You are {name}. {text_of(people.get(name) or '', f'background of {name}')}".strip()
                for name in names
            },
            goals={name: text_of(goals[name], f"goal of {name}") for name in names},
            # scenarios repeat with other pairs of agents, so the scenario is what must stay on one side of the split
            people=dict.fromkeys(names, str(row.get("environment_id", row.get("environment", scene)))),
        )
    )


def _messages(stored: Any) -> Iterator[Turn]:
    for at, batch in enumerate(list_of(stored, "messages")):
        for number, message in enumerate(list_of(batch, f"messages[{at}]")):
            if not isinstance(message, list | tuple) or len(message) != 3:
                raise BadRow("wrong type", f"messages[{at}][{number}] must be [sender, receiver, text]")
            sender, _, text = (text_of(part, f"messages[{at}][{number}]") for part in message)
            if sender != ENVIRONMENT:  # its messages are what the agents observe of each other
                if quoted := re.fullmatch(r"said: \"(.*)\"", text, re.DOTALL):
                    yield Turn(sender, quoted[1])
                elif text not in ("did nothing", "left the conversation"):
                    yield Turn(sender, f"[{text}]")


def _interactions(stored: Any) -> Iterator[Turn]:
    for block in re.split(r"\n{2,}", text_of(stored, "social_interactions")):
        block = re.sub(r"^(?:Turn #\d+\s*:?\s*)", "", block.strip()).strip()
        if not block or ENDING.fullmatch(block):
            continue
        said = SPEECH.fullmatch(block)
        if said is None:
            raise BadRow("wrong type", f'social_interactions: expected NAME said: "...", got {block[:60]!r}')
        yield Turn(said[1].strip(), said[2])


def _profiles(book: dict[str, Any]) -> dict[str, str]:
    if book.get("character_profiles") is not None:
        stored = object_of(book["character_profiles"], "character_profiles")
    else:
        datasets = object_of(book.get("character_datasets") or {}, "character_datasets")
        stored = {name: entry.get("profile") for name, entry in datasets.items() if isinstance(entry, dict)}
    return {name: text for name, text in stored.items() if isinstance(text, str) and text}
