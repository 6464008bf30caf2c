"""Each layout, as its source publishes it, in a few hand-made rows: who says what and who is simulated."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osim_core.corpus.conversation import Message
from osim_core.corpus.sources.dialogue import Dialogue, Turn, take_side
from osim_core.corpus.sources.formats.paths import is_chain, paths
from osim_core.corpus.sources.load import load
from osim_core.corpus.sources.quarantine import Quarantine


def jsonl(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(name, path):
    quarantine = Quarantine()
    return list(load(name, [path], quarantine)), quarantine


def said(dialogue):
    return [(turn.speaker, turn.text) for turn in dialogue.turns]


def test_wildchat_rows_in_parquet_and_jsonl_give_the_same(tmp_path):
    row = {
        "conversation_hash": "ab",
        "language": "English",
        "conversation": [
            {"content": "how do i boil an egg", "role": "user", "toxic": False},
            {"content": "Put it in water.", "role": "assistant", "toxic": False},
            {"content": "thx", "role": "user", "toxic": False},
        ],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    jsonl(tmp_path / "b.jsonl", row)
    (first, second), quarantine = read("wildchat", tmp_path)
    assert (
        said(first)
        == said(second)
        == [
            ("user", "how do i boil an egg"),
            ("assistant", "Put it in water."),
            ("user", "thx"),
        ]
    )
    assert first.trained == ("user",) and first.system is None and first.id != second.id
    assert first.scene == "You write messages to an AI assistant."
    assert quarantine.rows == 2 and not quarantine.counts
    assert take_side(first, "user", "S").messages == (
        Message("system", "S"),
        Message("assistant", "how do i boil an egg"),
        Message("user", "Put it in water."),
        Message("assistant", "thx"),
    )


BAD = {
    "null message": [{"role": "user", "content": None}],
    "unknown role": [{"role": "wizard", "content": "x"}],
    "empty": [],
    "wrong type": "hello",
    "not Unicode": [{"role": "user", "content": "\ud800"}],
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_chat_is_quarantined_between_good_ones(tmp_path, kind):
    good = {"conversation": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    path = jsonl(tmp_path / "rows.jsonl", good, {"conversation": BAD[kind]}, good)
    dialogues, quarantine = read("wildchat", path)
    assert len(dialogues) == 2 and quarantine.rows == 3
    assert quarantine.counts == {kind: 1} and quarantine.examples[0]["row"] == 2


def test_a_chat_in_which_the_person_says_nothing_is_not_a_dialogue(tmp_path):
    only = {"conversation": [{"role": "user", "content": " "}, {"role": "assistant", "content": "hello"}]}
    dialogues, quarantine = read("lmsys", jsonl(tmp_path / "rows.jsonl", only))
    assert not dialogues and quarantine.counts == {"empty": 1}


def node(key, role, text, *replies, **more):
    return {"message_id": key, "role": role, "text": text, "replies": list(replies), **more}


TREE = node(
    "r",
    "prompter",
    "question",
    node("a", "assistant", "answer A", node("a1", "prompter", "and then?", node("a2", "assistant", "then that"))),
    node("b", "assistant", "answer B"),
    node("d", "assistant", "removed", node("d1", "prompter", "why?"), deleted=True),
)


def test_an_oasst_tree_gives_its_paths_nested_or_flat(tmp_path):
    jsonl(tmp_path / "trees" / "a.jsonl", {"message_tree_id": "r", "tree_state": "ready", "prompt": TREE})
    flat = []

    def flatten(message, parent):
        row = {key: value for key, value in message.items() if key != "replies"}
        flat.append({"deleted": False, **row, "parent_id": parent, "message_tree_id": "r"})
        for reply in message["replies"]:
            flatten(reply, message["message_id"])

    flatten(TREE, None)
    (tmp_path / "flat").mkdir()
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "flat" / "a.parquet")
    for folder in ("trees", "flat"):
        dialogues, quarantine = read("oasst1", tmp_path / folder)
        assert [said(d) for d in dialogues] == [
            [("user", "question"), ("assistant", "answer A"), ("user", "and then?"), ("assistant", "then that")],
            [("user", "question"), ("assistant", "answer B")],
        ]
        assert len({d.person("user") for d in dialogues}) == 1  # one tree, one side of the split
        assert not quarantine.counts


def test_a_damaged_oasst_message_costs_itself_and_the_replies_to_it(tmp_path):
    def message(key, parent, text, **more):
        role = "prompter" if key in "rc" else "assistant"
        return {"message_id": key, "parent_id": parent, "message_tree_id": "r", "role": role, "text": text, **more}

    rows = [message("r", None, "q"), message("a", "r", None), message("c", "a", "why"), message("b", "r", "fine")]
    (dialogue,), quarantine = read("oasst2", jsonl(tmp_path / "a.jsonl", *rows, message("d", "r", "x", deleted=True)))
    assert said(dialogue) == [("user", "q"), ("assistant", "fine")]
    assert quarantine.counts == {"null message": 1} and quarantine.examples[0]["row"] == 2
    assert quarantine.notes["replies_to_lost"] == quarantine.notes["messages_deleted"] == 1


def test_prism_goes_on_with_the_chosen_answer(tmp_path):
    history = [
        {"turn": 0, "role": "user", "content": "tell me"},
        {"turn": 0, "role": "model", "content": "no", "if_chosen": False, "score": 10},
        {"turn": 0, "role": "model", "content": "yes", "if_chosen": True, "score": 90},
        {"turn": 1, "role": "user", "content": "good"},
    ]
    row = {"conversation_id": "c1", "user_id": "user7", "conversation_history": history}
    (dialogue,), _ = read("prism", jsonl(tmp_path / "conversations.jsonl", row))
    assert said(dialogue) == [("user", "tell me"), ("assistant", "yes"), ("user", "good")]
    assert dialogue.person("user") == "prism/user7"


def test_preference_transcripts(tmp_path):
    chosen = "\n\nHuman: Hi\n\nthere\n\nAssistant: Hello.\n\nHuman: Human: is a word\n\nAssistant: It is."
    path = jsonl(
        tmp_path / "a.jsonl", {"chosen": chosen, "rejected": "x"}, {"chosen": "Note\n\nHuman: a\n\nAssistant: b"}
    )
    (dialogue,), quarantine = read("hh_rlhf", path)
    assert said(dialogue) == [
        ("user", "Hi\n\nthere"),
        ("assistant", "Hello."),
        ("user", "Human: is a word"),
        ("assistant", "It is."),
    ]
    assert quarantine.counts == {"wrong type": 1}


def utterance(key, speaker, text, reply=None, conversation="u0", **meta):
    return {
        "id": key,
        "conversation_id": conversation,
        "text": text,
        "speaker": speaker,
        "meta": meta,
        "reply-to": reply,
        "timestamp": None,
        "vectors": [],
    }


def corpus(folder, *utterances):
    jsonl(folder / "utterances.jsonl", *utterances)
    speakers = {name: {"meta": {"gender": "f", "won": True}, "vectors": []} for name in ("ann", "bob")}
    (folder / "speakers.json").write_text(json.dumps(speakers))
    conversations = {"u0": {"meta": {"topic": "camping", "winner": "ann"}, "vectors": []}}
    (folder / "conversations.json").write_text(json.dumps(conversations))
    (folder / "corpus.json").write_text("{}")
    (folder / "index.json").write_text('{"version": 1}')
    return folder


def test_a_convokit_chain_is_one_dialogue_with_facts_and_no_outcomes(tmp_path):
    folder = corpus(
        tmp_path / "casino-corpus",
        utterance("u0", "ann", "hello"),
        utterance("a0", "cyd", "elsewhere", conversation="a0"),
        utterance("u1", "bob", "hi there", "u0"),
        utterance("x1", "dan", "indeed", "a0", conversation="a0"),
        utterance("u2", "ann", "   ", "u1"),
        utterance("u3", "ann", "water?", "u2"),
    )
    (first, second), quarantine = read("convokit_casino", folder)
    assert said(first) == [("ann", "hello"), ("bob", "hi there"), ("ann", "water?")]
    assert said(second) == [("cyd", "elsewhere"), ("dan", "indeed")]
    assert first.scene == "topic: camping" and first.personas == {"ann": "gender: f", "bob": "gender: f"}
    assert first.trained == ("ann", "bob") and second.scene == "CaSiNo: negotiations over camp supplies."
    assert quarantine.notes["empty_utterances"] == 1 and not quarantine.counts
    assert take_side(first, "bob", "").others == ("convokit_casino/ann",)


def test_a_convokit_thread_that_branches_gives_paths_and_names_speakers(tmp_path):
    folder = corpus(
        tmp_path,
        utterance("u0", "ann", "post"),
        utterance("u1", "bob", "no", "u0"),
        utterance("u2", "cyd", "yes", "u0"),
        utterance("u3", "ann", "why", "u2"),
        utterance("u4", "cyd", "because", "u3"),
    )
    dialogues, quarantine = read("convokit_reddit_small", folder)
    assert [said(d) for d in dialogues] == [
        [("ann", "post"), ("cyd", "yes"), ("ann", "why"), ("cyd", "because")],
        [("ann", "post"), ("bob", "no")],
    ]
    assert not quarantine.counts


def test_of_many_speakers_those_who_speak_twice_are_simulated(tmp_path):
    folder = corpus(
        tmp_path,
        utterance("u0", "ann", "one"),
        utterance("u1", "bob", "two", "u0"),
        utterance("u2", "cyd", "three", "u1"),
        utterance("u3", "ann", "four", "u2"),
    )
    (dialogue,), _ = read("convokit_friends", folder)
    assert dialogue.trained == ("ann",)
    assert take_side(dialogue, "ann", "").messages[1] == Message("user", "bob: two\n\ncyd: three")


def test_convokit_bad_rows_old_names_and_lonely_speakers(tmp_path):
    old = {"id": "o1", "root": "o0", "user": "ann", "reply_to": None, "text": "old"}
    folder = corpus(
        tmp_path,
        old,
        {**old, "id": "o2", "user": "bob", "reply_to": "o1", "text": "names"},
        {**old, "id": "o3", "text": None},
        {"id": "o4", "text": "no speaker"},
        utterance("u0", "ann", "only me"),
        utterance("u1", "bob", "  ", "u0"),
    )
    (dialogue,), quarantine = read("convokit_wiki", folder)
    assert said(dialogue) == [("ann", "old"), ("bob", "names")]
    assert quarantine.counts == {"null message": 1, "wrong column": 1}
    assert quarantine.notes["one_speaker"] == 1
    with pytest.raises(ValueError, match=r"source 'convokit_wiki': .* has no utterances\.jsonl"):
        read("convokit_wiki", tmp_path / "nowhere")


def test_dailydialog_speakers_take_turns_and_both_are_people(tmp_path):
    (dialogue,), quarantine = read(
        "dailydialog", jsonl(tmp_path / "a.jsonl", {"dialog": [" Hi . ", "Hello !", "Bye ."]}, {"dialog": ["alone"]})
    )
    assert said(dialogue) == [("A", "Hi ."), ("B", "Hello !"), ("A", "Bye .")] and dialogue.trained == ("A", "B")
    assert quarantine.counts == {"empty": 1}


def test_empathetic_rows_are_gathered_and_the_listener_is_not_told(tmp_path):
    path = tmp_path / "train.csv"
    fields = ["conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance", "selfeval", "tags"]
    rows = [
        ["hit:0_conv:1", "2", "sad", "I lost my dog_comma_ Rex.", "9", "oh no_comma_ sorry", "", ""],
        ["hit:0_conv:1", "1", "sad", "I lost my dog_comma_ Rex.", "3", '"my dog', "", ""],
        ["hit:0_conv:2", "1", "glad", "x", "3", "nobody answers", "", ""],
        ["hit:0_conv:2", "2", "glad", "x", "3", "still nobody", "", ""],
    ]
    path.write_text("".join(",".join(row) + "\n" for row in [fields, *rows]))  # as released: no quoting
    (dialogue,), quarantine = read("empathetic", path)
    assert said(dialogue) == [("3", '"my dog'), ("9", "oh no, sorry")]
    assert dialogue.personas == {"3": "You feel sad. I lost my dog, Rex."}
    assert quarantine.counts == {"empty": 2} and quarantine.rows == 4  # both rows of the talk that nobody answers


def test_mathdial_simulates_the_student(tmp_path):
    row = {
        "qid": 5000012,
        "question": "2 + 2?",
        "student_incorrect_solution": "22",
        "student_profile": "Ana is in grade 7.",
        "conversation": "Teacher: (generic)Hi Ana: ready?|EOM|Ana: yes|EOM|Teacher: (focus)What is plus?",
    }
    (dialogue,), _ = read("mathdial", jsonl(tmp_path / "a.jsonl", row))
    assert said(dialogue) == [("teacher", "Hi Ana: ready?"), ("student", "yes"), ("teacher", "What is plus?")]
    assert dialogue.trained == ("student",) and "22" in dialogue.scene and "2 + 2?" in dialogue.scene
    assert dialogue.personas == {"student": "Ana is in grade 7."}


def test_education_dialogue_keeps_the_teachers_preferences_from_the_student(tmp_path):
    row = {
        "background_info": {"topic": "optics", "student_preferences": "hands on", "teacher_preferences": "lectures"},
        "conversation": [{"role": "Teacher", "text": "Hello"}, {"role": "Student", "text": "hi"}],
    }
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([row, {"conversation": [{"role": "Parent", "text": "x"}]}]))
    (dialogue,), quarantine = read("education_dialogue", path)
    assert said(dialogue) == [("teacher", "Hello"), ("student", "hi")]
    assert dialogue.scene == "A lesson about optics" and dialogue.personas == {
        "student": "student preferences: hands on"
    }
    assert quarantine.counts == {"unknown role": 1}


def test_psych101_choices_are_the_participants(tmp_path):
    row = {
        "text": "Press J or K.\nYou press <<J>>. You win 1.\nYou press <<K>>.",
        "experiment": "e1",
        "participant": "7",
    }
    (dialogue,), quarantine = read("psych101", jsonl(tmp_path / "a.jsonl", row, {**row, "text": "no <<end"}))
    assert said(dialogue) == [
        ("experiment", "Press J or K.\nYou press"),
        ("participant", "J"),
        ("experiment", ". You win 1.\nYou press"),
        ("participant", "K"),
        ("experiment", "."),
    ]
    assert dialogue.person("participant") == "psych101/e1/7"
    assert quarantine.counts == {"wrong type": 1}


def test_long_psych101_records_train_the_last_turns_and_read_the_rest(tmp_path):
    text = "Start. " + " ".join(f"Trial {i}: you press <<{i % 10}>>." for i in range(300))
    (dialogue,), _ = read("psych101", jsonl(tmp_path / "a.jsonl", {"text": text, "experiment": "e", "participant": 1}))
    first, *rest = said(dialogue)
    assert first[0] == "experiment" and first[1].startswith("Start. Trial 0: you press <<0>> . Trial 1")
    assert len(rest) <= 20 and rest[0][0] == "participant"
    everything = first[1] + " ".join(text for _, text in rest)
    assert all(f"Trial {i}:" in everything for i in range(300))


def test_socsci210_answers_without_the_models_reasoning(tmp_path):
    row = {
        "sample_id": 1,
        "participant": 2,
        "demographic": {"age": 34},
        "stimuli": "s",
        "prompt": "Age 34. How likely, 1-7?",
        "reasoning": "As a model I think",
        "response": 5.0,
        "study_id": "9nphm",
    }
    path = jsonl(tmp_path / "a.jsonl", row, {**row, "response": None})
    (dialogue,), quarantine = read("socsci210", path)
    assert said(dialogue) == [("experiment", "Age 34. How likely, 1-7?"), ("participant", "5")]
    assert dialogue.person("participant") == "socsci210/9nphm" and quarantine.counts == {"null message": 1}


def test_humanual_answers_the_thread_with_the_stored_persona(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "Lunch?"}],
        "completion": "sure, noon",
        "persona": "Terse.",
        "user_id": "u1",
        "post_id": "p",
        "turn_id": 2,
        "metadata": "{}",
    }
    (dialogue,), _ = read("humanual_email", jsonl(tmp_path / "a.jsonl", row))
    assert said(dialogue) == [("thread", "Lunch?"), ("participant", "sure, noon")]
    assert dialogue.personas == {"participant": "Terse."} and dialogue.person("participant") == "humanual_email/u1"


def test_coser_books_give_a_dialogue_a_scene_and_lose_only_the_damaged_one(tmp_path):
    scene = {
        "scenario": "A cold wall.",
        "topic": "oaths",
        "key_characters": [{"name": "Jon", "motivation": "to leave", "thought": "..."}],
        "dialogues": [
            {"character": "Jon", "message": "[I must go] I go."},
            {"character": "Environment", "message": "Snow falls."},
            {"character": "Sam", "message": "(sighs) Stay."},
        ],
    }
    broken = {**scene, "dialogues": [{"character": "Jon", "message": None}]}
    book = {
        "book": "A Book",
        "plots": [{"text": "t", "summary": "s", "conversation": [broken, scene]}],
        "character_datasets": {"Jon": {"profile": "A watchman."}, "Sam": {"profile": None}},
    }
    path = tmp_path / "A Book.json"
    path.write_text(json.dumps(book))
    (dialogue,), quarantine = read("coser", path)
    assert dialogue.trained == ("Jon", "Sam") and dialogue.goals == {"Jon": "to leave"}
    assert dialogue.personas == {"Jon": "You are Jon. A watchman.", "Sam": "You are Sam."}
    assert dialogue.scene == "A scene of A Book. A cold wall."
    assert take_side(dialogue, "Jon", "").messages[1] == Message(
        "user", "Environment: Snow falls.\n\nSam: (sighs) Stay."
    )
    assert quarantine.counts == {"null message": 1}
    assert quarantine.examples[0]["row"] == "plots[0].conversation[0]"


EPISODE = {
    "episode_id": "e1",
    "scenario": "Two flatmates share one blanket.",
    "agents_background": {"Ava Lin": "A nurse.", "Ben Roe": "A cook."},
    "social_goals": {"Ava Lin": "keep the blanket", "Ben Roe": "get the blanket"},
}


@pytest.mark.parametrize(
    "stored",
    [
        {
            "social_interactions": 'Turn #0\nAva Lin said: "It is mine."\n\nTurn #1\nBen Roe said: "Half?"\n\n'
            "Ava Lin did nothing"
        },
        {
            "messages": [
                [["Environment", "Ava Lin", "Two flatmates ..."], ["Environment", "Ben Roe", "..."]],
                [["Ava Lin", "Environment", 'said: "It is mine."'], ["Ben Roe", "Environment", "did nothing"]],
                [["Ava Lin", "Environment", "did nothing"], ["Ben Roe", "Environment", 'said: "Half?"']],
            ]
        },
    ],
    ids=["text", "messages"],
)
def test_sotopia_episodes(tmp_path, stored):
    (dialogue,), quarantine = read("sotopia_pi", jsonl(tmp_path / "a.jsonl", {**EPISODE, **stored}))
    assert said(dialogue) == [("Ava Lin", "It is mine."), ("Ben Roe", "Half?")]
    assert dialogue.trained == ("Ava Lin", "Ben Roe") and dialogue.goals["Ben Roe"] == "get the blanket"
    assert dialogue.personas["Ava Lin"] == "You are Ava Lin. A nurse."
    assert dialogue.scene == "Two flatmates share one blanket." and not quarantine.counts


def test_odyssim_rows_are_taken_by_source_with_their_context(tmp_path):
    def row(source):
        return {
            "data_source": source,
            "messages": [
                {"role": "system", "content": "Be Sally."},
                {"role": "user", "content": "Where is the ball?"},
                {"role": "assistant", "content": "In the basket."},
            ],
        }

    path = jsonl(tmp_path / "a.jsonl", row("tom_hitom"), row("tom_fantom"), row("tom_hitom"))
    dialogues, quarantine = read("tom_hitom", path)
    assert len(dialogues) == 2 and quarantine.notes["other_sources"] == 1
    assert dialogues[0].system == "Be Sally." and dialogues[0].trained == ("assistant",)


def test_paths_take_the_longest_first_and_leave_out_repeats():
    trunk = {str(i): str(i - 1) if i else None for i in range(10)}
    leaf = {"leaf": "8"}  # nine of its ten nodes are in the trunk
    early = {"e1": "0", "e2": "e1"}
    kept, dropped = paths(trunk | leaf | early)
    assert kept == [[str(i) for i in range(10)], ["0", "e1", "e2"]] and dropped == 1
    assert paths({"a": "b", "b": "a"}) == ([], 0)  # a cycle has no beginning
    assert paths({"a": "missing"}) == ([["a"]], 0)


def test_chains():
    assert is_chain([("a", None), ("b", "a"), ("c", "b")])
    assert is_chain([("a", None), ("b", None), ("c", "elsewhere")])
    assert not is_chain([("a", None), ("b", "a"), ("c", "a")])
    assert not is_chain([("b", "a"), ("a", None)])  # stored out of order


def test_sides_of_a_dialogue():
    dialogue = Dialogue("1", "s", (Turn("a", "x"), Turn("a", "y"), Turn("b", "z")), ("a", "b"), people={"b": "bea"})
    mine, theirs = take_side(dialogue, "a", "S"), take_side(dialogue, "b", "")
    assert mine.messages == (Message("system", "S"), Message("assistant", "x\ny"), Message("user", "z"))
    assert theirs.messages == (Message("user", "x\ny"), Message("assistant", "z"))
    assert (mine.group, mine.others) == ("s/1/a", ("s/bea",)) and (theirs.group, theirs.others) == ("s/bea", ())
    with pytest.raises(ValueError, match="'c' says nothing"):
        take_side(dialogue, "c", "")
