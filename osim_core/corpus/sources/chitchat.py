"""Two-person text chats of the Chit-Chat Challenge (2018): one document per participant of each conversation.

The system message holds only what the file records: the setting, when the chat began, and its opening prompt.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.filters.personal import EMAIL, US_PHONE

# A few people wrote a quarter of all text; past this much of one person's words their other chats are left out.
MAX_CHARACTERS_PER_SPEAKER = 50_000

FOUR_DIGITS = re.compile(r"\d{4}")  # as every phone number has


def read(folder: Path, counts: Counter[str]) -> Iterator[Conversation]:
    """Conversations of dataset.json in `folder`, ordered by id.

    Keys added to `counts`: conversations; one_sided (nobody answered, dropped); capped (documents left out by
    MAX_CHARACTERS_PER_SPEAKER); scrubbed (e-mail addresses and phone numbers replaced).
    """
    path = folder / "dataset.json"
    with path.open(encoding="utf-8") as file:
        conversations = json.load(file)
    written: Counter[str] = Counter()  # characters so far, by speaker
    for key, conversation in sorted(conversations.items()):  # ids are random, so this is a random order
        counts["conversations"] += 1
        turns = _turns(conversation["messages"], counts)
        speakers = sorted({speaker for speaker, _ in turns})
        if len(speakers) != 2:
            counts["one_sided"] += 1
            continue
        system = Message("system", _scene(conversation))
        for number, trained in enumerate(speakers):
            if written[trained] >= MAX_CHARACTERS_PER_SPEAKER:
                counts["capped"] += 1
                continue
            written[trained] += sum(len(text) for speaker, text in turns if speaker == trained)
            yield Conversation(
                id=f"chitchat/{key}/{number}",
                source="chitchat",
                messages=(
                    system,
                    *(Message("assistant" if speaker == trained else "user", text) for speaker, text in turns),
                ),
                group=trained,
                others=(speakers[1 - number],),
            )


def _turns(groups: list[list[dict[str, str]]], counts: Counter[str]) -> list[tuple[str, str]]:
    """(speaker, text) of each turn: what one person sent before the other spoke, one message a line."""
    turns: list[tuple[str, str]] = []
    for message in (message for group in groups for message in group):
        text, scrubbed = scrub(message["text"].strip())
        counts["scrubbed"] += scrubbed
        if not text:
            continue
        if turns and turns[-1][0] == message["sender"]:
            turns[-1] = (message["sender"], f"{turns[-1][1]}\n{text}")
        else:
            turns.append((message["sender"], text))
    return turns


def _scene(conversation: dict) -> str:
    # The record's own "start" runs six hours ahead of the messages' UTC stamps, so the first message dates the chat.
    start = datetime.fromisoformat(conversation["messages"][0][0]["timestamp"])
    when = f"{start:%A} {start.day} {start:%B} {start.year}, {start:%H:%M} UTC"
    scene = f"You are one of two people in a casual text chat. It begins on {when}."
    prompt = conversation.get("prompt", "").strip()
    return f"{scene}\nSuggested topic: {prompt}" if prompt else scene


def scrub(text: str) -> tuple[str, int]:
    """Replace e-mail addresses and phone numbers by [email] and [phone]; also returns how many."""
    emails = phones = 0  # both patterns are slow on text where nothing can match
    if "@" in text:
        text, emails = EMAIL.subn("[email]", text)
    if FOUR_DIGITS.search(text):
        text, phones = US_PHONE.subn("[phone]", text)
    return text, emails + phones
