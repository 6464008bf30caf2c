"""Filters: what each drops, edits and labels; that the report adds up; how often they misfire on real chats."""

import json
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.filters import KEEP, FilterReport, Outcome, apply
from osim_core.corpus.filters.language import Language, identify
from osim_core.corpus.filters.machine import MachineWritten, flags
from osim_core.corpus.filters.personal import Scrub, iban_check, luhn, scrub
from osim_core.corpus.filters.shape import Balance, Length, count_words
from osim_core.corpus.filters.toxicity import Toxicity
from osim_core.corpus.sources import SOURCES

GERMAN = "Ich habe heute keine Zeit, aber morgen können wir gerne zusammen ins Kino gehen."
ENGLISH = "I have no time today, but tomorrow we could go to the cinema together if you like."


def chat(*turns, source="s", name="1"):
    roles = {"S": "system", "U": "user", "A": "assistant"}
    return Conversation(name, source, tuple(Message(roles[t[0]], t[2:]) for t in turns), "g")


def test_the_report_has_a_row_per_source_and_filter_and_adds_up():
    conversations = [
        chat("U:hello there my friend", f"A:{ENGLISH} Write to ann@example.org", source="a", name="1"),
        chat("U:hello there my friend", f"A:{GERMAN}", source="a", name="2"),
        chat("U:hi", "A:ok", source="b", name="3"),
    ]
    filters = [Language(["en"]), Length(), Scrub()]
    report = FilterReport()
    kept = list(apply(filters, conversations, report))
    assert [c.id for c, _ in kept] == ["1"] and kept[0][1] == {"language": "en"}
    assert kept[0][0].messages[1].content.endswith("Write to [email]")
    empty = {"dropped": {}, "labels": {}, "edits": {}}
    assert report.rows() == [
        {
            "source": "a",
            "filter": "language",
            "seen": 2,
            "kept": 1,
            "edited": 0,
            "dropped": {"in de": 1},
            "labels": {"language=de": 1, "language=en": 1},
            "edits": {},
        },
        {"source": "a", "filter": "length", "seen": 1, "kept": 1, "edited": 0, **empty},
        {"source": "a", "filter": "personal", "seen": 1, "kept": 1, "edited": 1, **empty, "edits": {"email": 1}},
        {
            "source": "b",
            "filter": "language",
            "seen": 1,
            "kept": 1,
            "edited": 0,
            **empty,
            "labels": {"language=und": 1},
        },
        {"source": "b", "filter": "length", "seen": 1, "kept": 0, "edited": 0, **empty, "dropped": {"too short": 1}},
    ]
    parts = [FilterReport(), FilterReport()]
    for part, some in zip(parts, (conversations[:2], conversations[2:]), strict=True):
        list(apply(filters, some, part))
    parts[0].merge(parts[1])
    assert json.dumps(parts[0].rows()) == json.dumps(report.rows())
    assert all(row["seen"] == row["kept"] + sum(row["dropped"].values()) for row in report.rows())


def test_two_filters_of_one_name_are_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="length, length are not all different"):
        apply([Length(), Length()], iter(()), FilterReport())


def test_a_filter_sees_what_the_one_before_it_wrote():
    class Upper:
        name = "upper"

        def __call__(self, conversation):
            return Outcome(edited=chat("A:LOUD"), edits={"upper": 1})

    class Check:
        name = "check"

        def __call__(self, conversation):
            return KEEP if conversation.messages[0].content == "LOUD" else Outcome(dropped="quiet")

    report = FilterReport()
    assert [c.messages[0].content for c, _ in apply([Upper(), Check()], [chat("A:soft")], report)] == ["LOUD"]
    assert not list(apply([Check(), Upper()], [chat("A:soft")], FilterReport()))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        ("Je n'ai pas le temps aujourd'hui mais demain nous pourrions aller au cinéma.", "fr"),
        ("我今天没有时间，但是明天我们可以一起去看电影，你觉得怎么样？", "zh"),
        ("今日は時間がありませんが、明日なら一緒に映画を見に行けますよ。", "ja"),
        ("lol ok", "und"),
        ("haha ya i like pizza", "und"),
        ("bonjour mes amis comment allez-vous", "und"),  # sure, but too short to rely on
        ("haha ya ikr smh tbh idk lol omg bruh nah fam lmao yeet sus af fr fr", "und"),  # long enough, but unsure
        ("12345 67890 !!! ??? 12345 67890 12345 67890 12345", "und"),
        ("", "und"),
    ],
)
def test_languages_and_texts_too_short_to_tell(text, language):
    assert identify(text) == language


def test_the_trained_side_decides_the_language_and_both_where_it_is_short():
    assert Language(["en"])(chat(f"U:{ENGLISH}", f"A:{GERMAN}")).dropped == "in de"
    assert Language(["en"])(chat(f"U:{GERMAN}", "A:ja")).dropped == "in de"
    assert not Language(["en"])(chat("U:hm", "A:ja")).dropped
    assert not Language()(chat(f"U:{GERMAN}", "A:ja")).dropped
    with pytest.raises(ValueError, match="language 'english': not an ISO"):
        Language(["english"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a b  c\nd", 4), ("", 0), ("你好吗", 3), ("hi 你好 there", 4), ("don't stop...", 2), ("ไทย", 3)],
)
def test_words(text, words):
    assert count_words(text) == words


def test_length_bounds_are_kept_exactly_and_the_scene_does_not_count():
    bounds = Length(min_trained=2, min_words=4, max_words=6)
    system = "S:" + "word " * 50
    assert bounds(chat(system, "U:a b", "A:c")).dropped == "too short"
    assert bounds(chat(system, "U:a", "A:c d")).dropped == "too short"
    assert not bounds(chat(system, "U:a b", "A:c d")).dropped
    assert not bounds(chat(system, "U:a b c d", "A:e f")).dropped
    assert bounds(chat(system, "U:a b c d e", "A:f g")).dropped == "too long"
    with pytest.raises(ValueError, match="do not make a range"):
        Length(min_words=5, max_words=4)


@pytest.mark.parametrize(
    ("turns", "kind", "dropped"),
    [
        (("A:alone here",), "monologue", True),
        (("U:alone here", "A: "), "silent", True),
        (("U:" + "w " * 99, "A:w"), "listener", False),
        (("U:w", "A:" + "w " * 99), "speaker", False),
        (("U:" + "w " * 49, "A:w"), "both", False),
    ],
)
def test_balance(turns, kind, dropped):
    outcome = Balance()(chat(*turns))
    assert outcome.labels == {"balance": kind} and bool(outcome.dropped) == dropped
    assert Balance(drop=[kind])(chat(*turns)).dropped == kind
    with pytest.raises(ValueError, match="no kind 'loud'"):
        Balance(drop=["loud"])


@pytest.mark.parametrize(
    ("message", "kinds"),
    [
        ("As an AI language model, I do not have feelings.", ["self"]),
        ("as a language model i think", ["self"]),
        ("I'm sorry, but I can't do that.", ["refusal"]),
        ("I\u2019m sorry, but I cannot", ["refusal"]),
        ("write it like so: <|im_start|>user", ["template"]),
        ("### Instruction:\ndo it", ["template"]),
        ("# Plan\n\n1. **Start** now\n2. **End** later", ["structure"]),
        ("sorry but i cant come tonight", []),
        ("my dad is an ai researcher", []),
        ("# of people: 3", []),
    ],
)
def test_tells_of_machines(message, kinds):
    assert flags([message]) == kinds


def test_a_repeated_long_message_is_a_script_and_a_short_one_is_not():
    assert flags(["Buy cheap watches at our shop in the high street!"] * 5) == ["repeats"]
    assert flags(["Buy cheap watches at our shop in the high street!"] * 4) == []
    assert flags(["ok"] * 50) == []


def test_only_the_trained_side_is_searched_and_dropping_is_by_kind():
    ai = "As an AI language model, I cannot say."
    assert MachineWritten()(chat(f"U:{ai}", "A:why not")).labels == {"machine": "no"}
    assert MachineWritten()(chat("U:why", f"A:{ai}")).labels == {"machine": "self"}
    assert MachineWritten(["self"])(chat("U:why", f"A:{ai}")).dropped == "machine: self"
    assert not MachineWritten(["template"])(chat("U:why", f"A:{ai}")).dropped


PERSONAL = {
    "write to ann.b+c@mail.example.org now": ("write to [email] now", "email"),
    "call (801) 555-1234 or": ("call [phone] or", "phone"),
    "call 801-555-1234.": ("call [phone].", "phone"),
    "+44 20 7946 0958": ("[phone]", "phone"),
    "+49 (0)30 901820 bitte": ("[phone] bitte", "phone"),
    "card 4111 1111 1111 1111 ok": ("card [card] ok", "card"),
    "DE89 3704 0044 0532 0130 00": ("[iban]", "iban"),
    "GB82WEST12345698765432": ("[iban]", "iban"),
    "ssn 078-05-1120": ("ssn [ssn]", "ssn"),
    "from 192.168.10.254": ("from [ip]", "ip"),
    "student 20231234567": ("student [id]", "id"),
}


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_is_replaced(text):
    edits = Counter()
    assert (scrub(text, edits), dict(edits)) == (PERSONAL[text][0], {PERSONAL[text][1]: 1})


@pytest.mark.parametrize(
    "text",
    [
        "it was 1,234,567,890 dollars in 2019-2020",
        "version 1.2.3 and 10.5.300.1",
        "pi is 3.14159265358979",
        "4111 1111 1111 1112 fails its check",
        "2018-05-02 19:38",
        "12345678",
        "on 24/11/2026 at 10:30",
        "localhost is 127.0.0.1",
        "000-12-3456",
    ],
)
def test_numbers_that_are_nobodys_stay(text):
    assert "[phone]" not in scrub(text, Counter()) and "[card]" not in scrub(text, Counter())
    if not text.startswith("4111"):  # an id all the same
        assert scrub(text, Counter()) == text


@given(st.text(alphabet="0123456789 -+().@abcDE[]", max_size=60))
@settings(max_examples=300, deadline=None)
def test_scrubbing_twice_changes_nothing_more_and_counts_are_right(text):
    edits = Counter()
    once = scrub(text, edits)
    again = Counter()
    assert scrub(once, again) == once and not again
    tags = Counter(re.findall(r"\[(email|phone|card|iban|ssn|ip|id)\]", once))
    before = Counter(re.findall(r"\[(email|phone|card|iban|ssn|ip|id)\]", text))
    assert tags - before == edits


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18).filter(lambda digits: len(set(digits)) > 1))
@settings(max_examples=100, deadline=None)
def test_exactly_one_last_digit_makes_a_card(digits):
    text = "".join(map(str, digits))
    assert sum(luhn(f"{text}{last}") for last in range(10)) == 1


@pytest.mark.parametrize("number", ["378282246310005", "6011111111111117", "5555555555554444", "30569309025904"])
def test_published_test_numbers_of_cards_pass(number):
    assert luhn(number) and not luhn(f"{number[:-1]}{(int(number[-1]) + 1) % 10}")


def test_iban_finds_swapped_characters():
    assert iban_check("GB82 WEST 1234 5698 7654 32") and not iban_check("GB82 WEST 1234 5698 7654 23")
    assert scrub("GB82 WEST 1234 5698 7654 23", Counter()) == "GB82 WEST 1234 5698 7654 23"


def test_every_message_is_scrubbed_and_untouched_conversations_are_the_same_object():
    outcome = Scrub()(chat("S:x@y.org", "U:none", "A:801-555-1234 and a@b.cd"))
    assert [m.content for m in outcome.edited.messages] == ["[email]", "none", "[phone] and [email]"]
    assert outcome.edits == {"email": 2, "phone": 1}
    assert Scrub()(chat("A:none")) is KEEP


def test_toxicity_labels_who_swears_and_keeps_everything():
    label = Toxicity(["darn", "holy cow"])
    assert label(chat("U:d4rn it", "A:hello")).labels == {"toxicity": "other"}
    assert label(chat("U:hello", "A:Holy  COW!")).labels == {"toxicity": "trained"}
    assert label(chat("U:darn", "A:darn")).labels == {"toxicity": "both"}
    assert label(chat("U:darning socks", "A:holy smoke, a cow")).labels == {"toxicity": "none"}
    assert label.listed("darn darn holy cow") == 3
    assert Toxicity(["b4d"]).listed("b4d bad") == 1  # an entry that is itself written with a digit
    assert not label(chat("A:darn")).dropped


def test_the_packaged_word_list_is_read():
    label = Toxicity()
    assert label.listed("what the hell") == 1 and label.listed("what the shell") == 0


@pytest.fixture(scope="module")
def real():
    return list(islice(SOURCES["chitchat"].load(Counter()), 400))


def test_on_real_chats_of_students_little_is_dropped_and_much_is_recognised(real):
    report = FilterReport()
    kept = list(apply([Language(["en"]), Length(), Balance(), MachineWritten(), Scrub(), Toxicity()], real, report))
    rows = {row["filter"]: row for row in report.rows()}
    assert len(kept) > 0.97 * len(real)
    assert rows["language"]["labels"]["language=en"] > 0.9 * len(real)
    assert rows["machine"]["labels"].get("machine=no", 0) > 0.99 * rows["machine"]["seen"]
    assert rows["personal"]["edited"] < 0.02 * len(real)
    labels = rows["toxicity"]["labels"]
    assert 0 < labels["toxicity=none"] < len(kept)


def test_what_has_no_spaces_is_too_long_by_its_characters():
    blob = chat("U:what is in the file?", f"A:{'x' * 1000}")
    assert Length(max_characters=1020)(blob).dropped == ""  # with the question
    assert Length(max_characters=1019)(blob).dropped == "too long"
