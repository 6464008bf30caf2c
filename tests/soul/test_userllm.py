"""User turns: the published rules and their defects, ours beside them, rows in the published layout.

pytest tests/soul/test_userllm.py
"""

import json

import pytest

from osim_core.judge.rubric import Verdict, load_rubric
from osim_core.missing import Missing
from osim_core.soul.episode import Reply, Sample, play
from osim_core.soul.userllm import END, UserLLM, intent_of, options_named, overlap, read_rows

PRISM = {
    "id": "p",
    "source": "prism",
    "intent": "plan a holiday in Norway",
    "conversation_history": "",
    "is_last_turn": False,
}
LAST = {**PRISM, "conversation_history": "User: hi\nAssistant: Done.", "is_last_turn": True}
CSQA = {
    "id": "c",
    "source": "commonsense_qa",
    "intent": "ask",
    "conversation_history": "",
    "choices": ["fire", "ice", "the sea", "sand"],
}
NQ = {
    "id": "n",
    "source": "natural_questions",
    "intent": "ask",
    "conversation_history": "User: who?\nAssistant: a quiz?",
    "question": "who?",
    "assistant_suggestion_turn": "a quiz?",
}


DIMENSION = {"next_turn": "human_likeness", "intent": "adherence"}


def scores(row, text, judged=None, reference=None):
    """(ours, the paper's) of a reply, with the judge's score if it was asked."""
    task = UserLLM()
    sample = Sample(id=row["id"], task="userllm", scenario="s", fields=row, reference=reference)
    outcome = play(task.episode(sample), lambda ask: Reply(text, "stop"))
    verdicts = {}
    if judged is not None:
        for item in outcome.judgements:
            others = dict.fromkeys((d.name for d in load_rubric(item.rubric).dimensions), 0.123)
            values = {**others, DIMENSION[item.rubric]: judged}
            verdicts[item.id] = Verdict(values=values, score=Missing("not read"))
    return task.score(sample, outcome, verdicts), task.paper_score(sample, outcome, verdicts)


def test_items_are_as_the_spec_says_with_no_intent_on_two_sides():
    task = UserLLM()
    sides = {split: task.samples(split) for split in ("train", "validation", "test")}
    assert {split: len(samples) for split, samples in sides.items()} == dict(task.spec.items)
    intents = [{sample.scenario for sample in samples} for samples in sides.values()]
    assert sum(map(len, intents)) == len(set.union(*intents))


class TestPursuingAnIntent:
    def test_the_papers_overlap_rewards_copying_and_ours_does_not(self):
        copied, natural = scores(PRISM, "plan holiday Norway", 1.0), scores(PRISM, "where do i see fjords?", 1.0)
        assert copied == (0.5, 1.0)
        assert natural == (1.0, pytest.approx(2 / 3))

    def test_with_a_real_reply_its_overlap_is_the_target(self):
        reference = "thinking of norway next summer"  # norway, thinking, next, summer: 1 in 4
        ours, _ = scores(PRISM, "norway ideas?", 1.0, reference=reference)
        assert ours == pytest.approx((1.0 + 1 - abs(0.5 - 0.25)) / 2)

    def test_a_correct_end_earns_all_in_ours_and_a_third_in_the_papers(self):
        assert scores(LAST, END) == (1.0, pytest.approx(1 / 3))
        assert scores(LAST, f"thanks! {END}", 0.0) == (1.0, pytest.approx(1 / 3))

    def test_a_missed_or_early_end_earns_nothing_in_ours(self):
        assert scores(LAST, "where do i see fjords?", 1.0) == (0.0, pytest.approx(1 / 3))
        assert scores(PRISM, END) == (0.0, 0.0)
        assert scores(PRISM, f"thanks {END} more", 1.0)[0] == 0.0

    def test_an_empty_reply_earns_nothing_in_ours(self):
        assert scores(PRISM, "  ") == (0.0, pytest.approx(1 / 3))

    def test_without_the_judge_there_is_no_score(self):
        assert scores(PRISM, "where do i see fjords?") == (Missing("not judged", "p"),) * 2
        assert scores(PRISM, "where do i see fjords?", Missing("timeout")) == (Missing("timeout"),) * 2

    def test_a_missing_reply_is_no_score(self):
        assert scores(PRISM, Missing("too long")) == (Missing("too long"),) * 2

    def test_what_follows_the_end_is_not_judged(self):
        task = UserLLM()
        sample = Sample(id="p", task="userllm", scenario="s", fields=PRISM)
        outcome = play(task.episode(sample), lambda ask: Reply(f"bye {END} I am very human", "stop"))
        assert [item.reply for item in outcome.judgements] == ["bye"]


class TestStayingAUser:
    @pytest.mark.parametrize(
        ("text", "ours", "paper"),
        [
            ("what burns?", 1.0, 1.0),
            ("Fire!", 0.0, 0.0),  # it answers its own question
            ("fire or ice", 0.0, 0.0),
            ("fire, ice or The Sea?", 1.0, 1.0),  # it lists options, as people who ask do
            ("fire ice the sea sand", 0.0, 0.0),  # it recites all of them
            ("firearms and icecream", 1.0, 1.0),
            ("", 0.0, 1.0),  # the paper's rule likes silence
        ],
    )
    def test_rules(self, text, ours, paper):
        assert scores(CSQA, text) == (ours, paper)

    def test_options_are_whole_words_in_any_case_and_punctuation(self):
        assert options_named("THE SEA, or the-sea", ["the sea", "sea"]) == 2
        assert options_named("seaside", ["sea"]) == 0


class TestTurningDownADistraction:
    def test_the_judge_decides(self):
        assert scores(NQ, "no, just tell me", 1.0) == (1.0, 1.0)
        assert scores(NQ, "sure!", 0.0) == (0.0, 0.0)
        assert scores(NQ, "no", Missing("timeout")) == (Missing("timeout"),) * 2

    def test_what_is_judged_is_the_rubrics_own_dimension(self):
        assert all(name in {d.name for d in load_rubric(rubric).dimensions} for rubric, name in DIMENSION.items())

    def test_silence_and_walking_off_are_failures(self):
        assert scores(NQ, "") == scores(NQ, END) == (0.0, 0.0)


def test_overlap_counts_content_words_of_the_reply_once():
    assert overlap("plan a holiday in Norway", "a holiday, a HOLIDAY in Spain") == 0.5
    assert overlap("plan a holiday", "to the of") == overlap("", "holiday") == 0.0


class TestPublishedLayout:
    def test_intents_in_order_of_preference(self):
        row = {"intent": "", "intent_summary": "sum", "opening_prompt": "open", "conversation_history": "User: a\nB"}
        assert intent_of(row) == "sum"
        assert intent_of({**row, "intent_summary": None}) == "open"
        assert intent_of({"conversation_history": "User: a\nB"}) == "User: a"

    def test_rows_are_read_from_lines_and_scored(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, (PRISM, LAST, CSQA, NQ))) + "\n")
        task = UserLLM(path)
        assert sum(len(task.samples(split)) for split in ("train", "validation", "test")) == 4
        assert read_rows(path)[0] == PRISM

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ({**PRISM, "source": "wild"}, "source 'wild' is none of"),
            ({**CSQA, "choices": None}, "row 1: needs choices"),
            ({**PRISM, "intent": ""}, "row 1: needs an intent"),
            ({k: v for k, v in NQ.items() if k != "question"}, "row 1: needs question"),
        ],
    )
    def test_a_bad_row_is_one_line(self, tmp_path, row, complaint):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=complaint):
            read_rows(path)

    def test_a_file_that_is_no_json_is_named(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text("{oops")
        with pytest.raises(ValueError, match=r"rows\.jsonl"):
            read_rows(path)
