"""Social contexts: checked, not leaking, written once, resumed at no cost, and missing rather than made up."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osim_core.corpus.context import prompt
from osim_core.corpus.context.generate import ContextReport, contextualise
from osim_core.corpus.context.leakage import leakage
from osim_core.corpus.context.schema import JSON_SCHEMA, MAX_CHARACTERS, SchemaError, SocialContext, from_json, parse
from osim_core.corpus.context.store import ContextStore, content_key
from osim_core.corpus.context.writers import Draft, Request, RuleWriter
from osim_core.corpus.conversation import Message
from osim_core.corpus.sources.dialogue import Dialogue, Turn

GOOD = {"persona": "You are a cook.", "relationship": "Friends.", "scene": "A chat.", "goal": "To get help."}
CONTEXT = SocialContext(**GOOD)


def dialogue(*turns, trained=("b",), name="1", **facts):
    spoken = tuple(
        Turn(turn[0], turn[2:]) for turn in turns or ("a:what do you do", "b:i cook fish every day in a bar")
    )
    return Dialogue(name, "s", spoken, trained, **facts)


class Scripted:
    """A writer that gives the drafts it is told, in order, and remembers what it was asked."""

    identity = "scripted"
    stated = False

    def __init__(self, *drafts, attempts=3):
        self.drafts, self.asked, self.attempts = list(drafts), [], attempts

    def write(self, requests):
        self.asked += requests
        return [self.drafts.pop(0) for _ in requests]


def run(dialogues, writer, store=None, report=None, **options):
    report = report or ContextReport()
    return list(contextualise(dialogues, writer, store or ContextStore(), report, **options)), report.rows()


def test_a_context_becomes_the_system_message_with_known_fields_only():
    assert CONTEXT.render() == (
        "Who you are: You are a cook.\nRelationship: Friends.\nScene: A chat.\nWhat you want: To get help."
    )
    assert SocialContext(scene="A chat.").render() == "Scene: A chat." and not SocialContext()
    assert from_json(CONTEXT.to_json()) == CONTEXT


def test_a_fence_around_the_object_is_no_fault():
    assert parse(f"Here it is:\n```json\n{json.dumps(GOOD)}\n```") == CONTEXT


BAD = {
    "no object": ("I cannot do that.", "no JSON object"),
    "cut off": (json.dumps(GOOD)[:-20] + "}", "broken"),
    "one too few": (json.dumps({k: v for k, v in GOOD.items() if k != "goal"}), "exactly persona"),
    "one too many": (json.dumps({**GOOD, "ending": "x"}), "exactly persona.*ending"),
    "empty": (json.dumps({**GOOD, "goal": "  "}), "goal must be a text"),
    "null": (json.dumps({**GOOD, "goal": None}), "goal must be a text"),
    "nested": (json.dumps({**GOOD, "goal": {"a": "b"}}), "goal must be a text"),
    "long": (json.dumps({**GOOD, "scene": "x" * (MAX_CHARACTERS + 1)}), "scene has 601"),
    "half a character": (json.dumps({**GOOD, "scene": "\ud800"}), "not Unicode"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_context_is_refused(name):
    with pytest.raises(SchemaError, match=BAD[name][1]):
        parse(BAD[name][0])


def test_the_schema_that_servers_get_says_what_parse_checks():
    assert JSON_SCHEMA["required"] == list(GOOD) and not JSON_SCHEMA["additionalProperties"]
    assert all(
        field == {"type": "string", "minLength": 1, "maxLength": 600} for field in JSON_SCHEMA["properties"].values()
    )


OPENING = "a:tell me about your day at the harbour please"
REPLY = "b:well the boats came in late and i was so tired that i fell asleep"


@pytest.mark.parametrize(
    ("context", "turns", "too_much"),
    [
        ("You are tired after work at sea.", (OPENING, REPLY), False),
        # a run of eight words of a later turn
        ("You say the boats came in late and I was so busy.", (OPENING, REPLY), True),
        (
            "You say the boats came in late and they were full.",
            (OPENING, REPLY),
            True,
        ),  # few phrases of the context are new
        # what another has said before the person first speaks is no secret
        ("Someone asks: tell me about your day at the harbour please", (OPENING, REPLY), False),
        # but it is when the person speaks first
        ("Someone asks: tell me about your day at the harbour please", ("b:hello", OPENING, REPLY), True),
        # a whole turn of the person
        ("You are one who answers Not On My Watch when asked.", ("a:hm", "b:not on my watch", "b:no"), True),
        # a short turn among many says nothing
        ("You are one who says yes sir often.", ("a:hm", "b:yes sir", "a:hm", "b:no"), False),
        # a single answer is the answer, however short
        ("You would choose seven.", ("a:one to ten", "b:Seven."), True),
        ("You would choose 7.", ("a:one to ten", "b:7"), True),
        ("You have 17 cats.", ("a:one to ten", "b:7"), False),
        # unless the question already had it
        ("You are asked whether you say yes or no.", ("a:yes or no", "b:no"), False),
        ("你是一个昨天去了海边钓鱼回家的人。", ("a:你好", "b:我昨天去了海边钓鱼回家很晚才吃饭"), True),
        ("你是一个年轻人。", ("a:你好", "b:我昨天去了海边钓鱼回家很晚才吃饭"), False),
    ],
)
def test_leaks(context, turns, too_much):
    found = leakage(context, dialogue(*turns), "b")
    assert found.too_much == too_much, found
    if too_much:
        assert found.explain()


WORDS = st.lists(st.sampled_from(["ab", "cd", "ef", "gh", "ij", "kl", "mn"]), min_size=9, max_size=30)


@settings(max_examples=100, deadline=None)
@given(WORDS, st.data())
def test_a_context_that_holds_eight_words_of_a_reply_is_always_found(said, data):
    start = data.draw(st.integers(0, len(said) - 8))
    quoted = " ".join(["x1", *said[start : start + 8], "x2"])
    assert leakage(quoted, dialogue("a:hm", "b:" + " ".join(said), "b:z"), "b").copied


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_overlap_is_a_share_and_nothing_is_shared_with_other_words(given_words, said):
    later = dialogue("a:hm", "b:" + " ".join(said), "b:z")
    assert leakage(" ".join(f"q{word}" for word in given_words), later, "b").overlap == 0
    whole = leakage(" ".join(said), later, "b")
    assert whole.overlap == 1 and 0 <= leakage(" ".join(given_words), later, "b").overlap <= 1


def test_rules_write_what_the_record_states_and_nothing_else():
    stated = dialogue(
        scene="A kitchen.", relationship="Siblings.", personas={"a": "No.", "b": "You are Bo."}, goals={"a": "x"}
    )
    ((conversation, row),), rows = run([stated], RuleWriter())
    assert conversation.messages[0] == Message(
        "system", "Who you are: You are Bo.\nRelationship: Siblings.\nScene: A kitchen."
    )
    assert row.status == "written" and rows[0]["written"] == 1 and rows[0]["cost"] == 0


def test_nothing_stated_is_missing_and_gets_no_system_message():
    ((conversation, row),), rows = run([dialogue()], RuleWriter())
    assert conversation.messages[0] == Message("user", "what do you do")
    assert (row.status, row.fault) == ("missing", "unknown") and rows[0]["missing_by"] == {"unknown": 1}


def test_a_record_with_its_own_context_keeps_it_and_asks_nobody():
    writer = Scripted()
    results, rows = run([dialogue(system="Be Bo."), dialogue(system="", name="2")], writer)
    assert [c.messages[0] for c, _ in results] == [Message("system", "Be Bo."), Message("user", "what do you do")]
    assert not writer.asked and rows[0]["stated"] == 2 and rows[0]["cached"] == 0


def test_a_leak_and_a_broken_draft_are_written_again_with_the_reason():
    leak = SocialContext(**{**GOOD, "persona": "You say: I cook fish every day in a bar"})
    writer = Scripted(
        Draft(leak, "", "", 100, 10), Draft(None, "schema", "no JSON object", 100, 10), Draft(CONTEXT, "", "", 100, 10)
    )
    report = ContextReport(prompt_price=2.0, completion_price=10.0)
    ((conversation, row),), rows = run([dialogue()], writer, report=report)
    assert row.status == "written" and row.attempts == 3 and conversation.messages[0].content == CONTEXT.render()
    assert [request.attempt for request in writer.asked] == [0, 1, 2]
    assert "i cook fish every day in a bar" in writer.asked[1].rejected and "no JSON" in writer.asked[2].rejected
    assert rows[0]["prompt_tokens"] == 300 and rows[0]["retried"] == 1
    assert rows[0]["cost"] == rows[0]["new_cost"] == pytest.approx((300 * 2 + 30 * 10) / 1e6)


def test_what_the_record_states_is_measured_and_kept_though_somebody_repeats_it():
    topic = "What is the most beautiful place that you have ever seen?"
    repeated = dialogue("a:hi", f"b:{topic}", "a:Rome", "b:nice", scene=topic)
    ((conversation, row),), rows = run([repeated], RuleWriter())
    assert row.status == "written" and row.leakage == rows[0]["worst_leakage"] == 1
    assert conversation.messages[0].content == f"Scene: {topic}"


def test_a_context_that_leaks_to_the_end_is_missing_and_never_used():
    leak = SocialContext(**{**GOOD, "persona": "You say: I cook fish every day in a bar"})
    ((conversation, row),), rows = run([dialogue()], Scripted(*[Draft(leak)] * 2, attempts=2))
    assert (row.status, row.fault, row.context) == ("missing", "leak", "")
    assert conversation.messages[0].role == "user" and rows[0]["missing_by"] == {"leak": 1}


def test_only_the_rejected_of_a_batch_are_asked_again():
    writer = Scripted(Draft(CONTEXT), Draft(None, "schema", "x"), Draft(None, "refused", "y"), Draft(CONTEXT))
    results, _ = run([dialogue(f"a:{i}", "b:ok then") for i in range(3)], writer)
    assert [row.status for _, row in results] == ["written", "written", "missing"]
    assert [r.dialogue.turns[0].text for r in writer.asked] == ["0", "1", "2", "1"]


def test_what_is_written_is_never_bought_again(tmp_path):
    dialogues = [dialogue(f"a:question {i}", "b:ok then", name=str(i)) for i in range(5)]
    with ContextStore(tmp_path / "contexts.sqlite") as store:
        first, _ = run(dialogues, Scripted(*[Draft(CONTEXT, "", "", 10, 1)] * 5), store, batch=2)
    writer = Scripted()
    with ContextStore(tmp_path / "contexts.sqlite") as store:
        again, rows = run(dialogues, writer, store, report=ContextReport(1e6, 0.0), batch=3)
    assert again == first and not writer.asked
    assert rows[0]["cached"] == 5 and rows[0]["cost"] == 50 and rows[0]["new_cost"] == 0


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_after_its_last_batch(tmp_path):
    class Dies(Scripted):
        def write(self, requests):
            if len(self.asked) >= 4:
                raise Killed
            return super().write(requests)

    dialogues = [dialogue(f"a:question {i}", "b:ok then", name=str(i)) for i in range(7)]
    store = ContextStore(tmp_path / "contexts.sqlite")
    with pytest.raises(Killed):
        run(dialogues, Dies(*[Draft(CONTEXT)] * 7), store, batch=2)
    store.close()
    writer = Scripted(*[Draft(CONTEXT)] * 3)
    with ContextStore(tmp_path / "contexts.sqlite") as store:
        results, _ = run(dialogues, writer, store, batch=2)
    assert [r.dialogue.id for r in writer.asked] == ["4", "5", "6"] and len(results) == 7


def test_a_transport_failure_is_asked_again_by_the_next_run_and_a_refusal_is_not():
    store = ContextStore()
    lost, refused = dialogue("a:1", "b:ok then"), dialogue("a:2", "b:ok then")
    drafts = Draft(None, "transport", "timeout", None, None), Draft(None, "refused", "HTTP 400", 5, 0)
    _, rows = run([lost, refused], Scripted(*drafts), store)
    assert rows[0]["missing_by"] == {"refused": 1, "transport": 1} and rows[0]["untold_attempts"] == 1
    writer = Scripted(Draft(CONTEXT))
    results, _ = run([lost, refused], writer, store)
    assert [row.status for _, row in results] == ["written", "missing"] and len(writer.asked) == 1


def test_equal_dialogues_of_a_batch_are_written_once():
    writer = Scripted(Draft(CONTEXT))
    results, _ = run([dialogue(name="1"), dialogue(name="2")], writer)
    assert len(writer.asked) == 1 and [row.status for _, row in results] == ["written"] * 2


def test_the_key_covers_everything_that_is_shown():
    base = dialogue(scene="x")
    others = [
        content_key("other", base, "b"),
        content_key("w", base, "a"),
        content_key("w", dialogue(scene="y"), "b"),
        content_key("w", dialogue(scene="x", personas={"b": "z"}), "b"),
        content_key("w", dialogue(scene="x", goals={"b": "z"}), "b"),
        content_key("w", dialogue(scene="x", relationship="z"), "b"),
        content_key("w", dialogue("a:what do you do", "b:nothing", scene="x"), "b"),
        content_key("w", dialogue(scene="x", system=""), "b"),
    ]
    assert len({content_key("w", base, "b"), *others}) == 9
    assert content_key("w", base, "b") == content_key("w", dialogue(scene="x", name="elsewhere"), "b")


def test_both_speakers_get_their_own_context():
    told = dialogue(trained=("a", "b"), personas={"a": "You are Al.", "b": "You are Bo."})
    results, rows = run([told], RuleWriter())
    assert [c.messages[0].content for c, _ in results] == ["Who you are: You are Al.", "Who you are: You are Bo."]
    assert [c.messages[1].role for c, _ in results] == ["assistant", "user"] and rows[0]["written"] == 2


def test_a_prompt_shows_the_facts_the_turns_and_the_reason_but_bounds_their_length():
    long = dialogue(*[f"a:{'x' * 300} {i}" for i in range(100)], "b:the end", scene="A hall.")
    asked = prompt.messages(Request(long, "b", 1, "it repeats"))
    assert [m["role"] for m in asked] == ["system", "user"]
    text = asked[1]["content"]
    assert "Speaker to describe: b" in text and "scene: A hall." in text and "it repeats" in text
    assert "a: xxx" in text and "b: the end" in text and "characters left out" in text
    assert len(text) < prompt.MAX_TRANSCRIPT + 500
