"""Real dialogues through the whole path: chats of students, laid out as a ConvoKit corpus, read back, given contexts,
taken from both sides and filtered. No package ships a ConvoKit corpus, so the layout is made here, the words are real.
"""

import json
from collections import Counter
from itertools import islice, pairwise

import pytest

from osim_core.corpus.context.generate import ContextReport, contextualise
from osim_core.corpus.context.store import ContextStore
from osim_core.corpus.context.writers import RuleWriter
from osim_core.corpus.filters import FilterReport, apply
from osim_core.corpus.filters.personal import Scrub
from osim_core.corpus.filters.shape import Balance, Length
from osim_core.corpus.sources import SOURCES
from osim_core.corpus.sources.load import load
from osim_core.corpus.sources.quarantine import Quarantine


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 chats of two people as ConvoKit dumps them, and what each person says in each, joined by line breaks."""
    folder = tmp_path_factory.mktemp("chitchat-corpus")
    said, topics, chats = {}, {}, {}
    for document in islice(SOURCES["chitchat"].load(Counter()), 200):
        name = document.id.split("/")[1]
        if name in chats or len(chats) == 60:
            continue
        other = document.others[0]
        who = {"assistant": document.group, "user": other}
        chats[name] = [(who[m.role], m.content) for m in document.messages if m.role != "system"]
        topics[name] = document.messages[0].content.rpartition("Suggested topic: ")[2]
        said[name] = {person: [text for speaker, text in chats[name] if speaker == person] for person in who.values()}
    rows = []
    for name, turns in chats.items():
        lines = [(speaker, line) for speaker, text in turns for line in text.split("\n")]  # one message, one utterance
        for number, (speaker, line) in enumerate(lines):
            rows.append(
                (
                    number,
                    {
                        "id": f"{name}-{number}",
                        "conversation_id": f"{name}-0",
                        "text": line,
                        "speaker": speaker,
                        "meta": {},
                        "reply-to": f"{name}-{number - 1}" if number else None,
                        "timestamp": None,
                    },
                )
            )
    rows.sort(key=lambda row: row[0])  # conversations interleaved, as nothing in the layout forbids
    (folder / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for _, row in rows))
    (folder / "speakers.json").write_text("{}")
    conversations = {f"{name}-0": {"meta": {"prompt": topic, "rating": "5"}} for name, topic in topics.items()}
    (folder / "conversations.json").write_text(json.dumps(conversations))
    return folder, said


def test_every_word_comes_back_to_the_person_who_said_it(corpus):
    folder, said = corpus
    quarantine = Quarantine()
    dialogues = list(load("convokit_casino", [folder], quarantine))
    assert len(dialogues) == len(said) == 60 and not quarantine.counts
    for dialogue in dialogues:
        name = dialogue.id.split("/")[-2].removesuffix("-0")
        for person in dialogue.trained:
            own = "\n".join(turn.text for turn in dialogue.turns if turn.speaker == person)
            expected = "\n".join(said[name][person])
            assert own.split() == expected.split() and own


def test_from_files_to_filtered_conversations(corpus):
    folder, said = corpus
    contexts, filters, quarantine = ContextReport(), FilterReport(), Quarantine()
    rows = contextualise(load("convokit_casino", [folder], quarantine), RuleWriter(), ContextStore(), contexts, batch=7)
    kept = [c for c, _ in apply([Length(), Balance(), Scrub()], (c for c, _ in rows), filters)]
    length = filters.rows()[0]
    assert contexts.rows()[0]["written"] == length["seen"] == 2 * len(said)
    assert len(kept) == length["seen"] - length["dropped"]["too short"] > 110  # some say hi, and no more
    assert len({c.id for c in kept}) == len(kept)
    for conversation in kept:
        system, *turns = conversation.messages
        assert (
            system.role == "system" and system.content.startswith("Scene: prompt: ") and "rating" not in system.content
        )
        assert all(a.role != b.role for a, b in pairwise(turns)) and any(m.role == "assistant" for m in turns)
        assert conversation.others and conversation.group not in conversation.others
