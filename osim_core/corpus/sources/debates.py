"""The televised debates of 2016: one document per segment of a debate and candidate who speaks in it."""

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.sources.perspective import as_one_character

SEGMENT_CHARACTERS = 6_000  # a segment ends at the first moderator turn after this, about ten minutes of debate
MIN_TURNS = 2  # a candidate who speaks less often in a segment gives no document

DEBATES = {
    "1st": "the first presidential debate of 2016",
    "2nd": "the second presidential debate of 2016",
    "3rd": "the third presidential debate of 2016",
    "VP": "the vice presidential debate of 2016",
}
SPEAKERS = {
    "CLINTON": "Hillary Clinton",
    "TRUMP": "Donald Trump",
    "KAINE": "Tim Kaine",
    "PENCE": "Mike Pence",
    "HOLT": "Lester Holt",
    "COOPER": "Anderson Cooper",
    "RADDATZ": "Martha Raddatz",
    "WALLACE": "Chris Wallace",
    "QUIJANO": "Elaine Quijano",
}

Turn = tuple[str, str, str]  # speaker, party ("Moderator" for moderators), text


def read(folder: Path, counts: Counter[str]) -> Iterator[Conversation]:
    """Conversations of data/presidential_debates_2016.csv.gz; `counts` receives segments."""
    path = folder / "data" / "presidential_debates_2016.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for debate, statements in groupby(rows, key=lambda row: row["debate"]):
        for number, segment in enumerate(_segments(_turns(statements))):
            counts["segments"] += 1
            yield from _documents(debate, number, segment)


def _turns(statements: Iterator[dict[str, str]]) -> list[Turn]:
    """Adjacent statements of one speaker joined, a paragraph each."""
    turns = []
    for (speaker, party), rows in groupby(statements, key=lambda row: (row["speaker"], row["party"])):
        turns.append((SPEAKERS[speaker], party, "\n".join(row["statement"].strip() for row in rows)))
    return turns


def _segments(turns: list[Turn]) -> Iterator[list[Turn]]:
    segment: list[Turn] = []
    for turn in turns:
        if turn[1] == "Moderator" and sum(len(text) for _, _, text in segment) >= SEGMENT_CHARACTERS:
            yield segment
            segment = []
        segment.append(turn)
    yield segment


def _documents(debate: str, number: int, segment: list[Turn]) -> Iterator[Conversation]:
    turns_of = Counter(speaker for speaker, party, _ in segment if party != "Moderator")
    present = ", ".join(
        f"{speaker} (moderator)" if party == "Moderator" else f"{speaker} ({party})"
        for speaker, party in dict.fromkeys((speaker, party) for speaker, party, _ in segment)
    )
    for candidate in sorted(name for name, turns in turns_of.items() if turns >= MIN_TURNS):
        system = f"You are {candidate} in {DEBATES[debate]}.\nOn stage: {present}."
        yield Conversation(
            id=f"debates/{debate}/{number}/{candidate.split()[-1].lower()}",
            source="debates",
            messages=(
                Message("system", system),
                *as_one_character(candidate, [(speaker, text) for speaker, _, text in segment]),
            ),
            group=debate,
        )
