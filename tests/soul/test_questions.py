"""Hi-ToM, ToMi and Social IQa: what was read, the splits, the parsers' edge cases, and what chance and constants score.

pytest tests/soul/test_questions.py
"""

import random
from collections import Counter
from dataclasses import replace

import pytest

from osim_core.missing import Missing
from osim_core.soul.answers import chosen_letter, strip_thinking, tagged_answer
from osim_core.soul.episode import Reply, play
from osim_core.soul.hitom import HiToM
from osim_core.soul.socialiqa import SocialIQa
from osim_core.soul.tomi import ToMi, names_only

TASKS = (HiToM(), ToMi(), SocialIQa())
SPLITS = ("train", "validation", "test")


def answer(task, sample, text) -> float | Missing:
    outcome = play(task.episode(sample), lambda ask: Reply(text, "stop"))
    return task.score(sample, outcome, {})


def possible(sample) -> tuple[str, ...]:
    """The answers that a guesser would choose from."""
    fields = sample.fields
    return fields["places"] if "places" in fields else tuple("ABCDEFGHIJKLMNO"[: len(fields["options"])])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.spec.id)
class TestEveryTask:
    def test_items_are_as_many_as_the_spec_says_and_no_scenario_lies_on_two_sides(self, task):
        sides = {split: task.samples(split) for split in SPLITS}
        assert {split: len(samples) for split, samples in sides.items()} == dict(task.spec.items)
        scenarios = [{sample.scenario for sample in samples} for samples in sides.values()]
        assert sum(map(len, scenarios)) == len(set.union(*scenarios))
        ids = [sample.id for samples in sides.values() for sample in samples]
        assert len(set(ids)) == len(ids)

    def test_the_gold_answer_scores_one(self, task):
        for sample in task.samples("test"):
            assert answer(task, sample, f"So, I think.\n<answer>{sample.fields['gold']}</answer>") == 1.0

    def test_a_random_policy_scores_chance(self, task):
        rng = random.Random(0)
        samples = [sample for split in SPLITS for sample in task.samples(split)]
        scores = [answer(task, sample, f"<answer>{rng.choice(possible(sample))}</answer>") for sample in samples]
        mean = sum(scores) / len(scores)
        tolerance = 3 * (task.spec.chance * (1 - task.spec.chance) / len(scores)) ** 0.5
        assert mean == pytest.approx(task.spec.chance, abs=tolerance)

    def test_replies_that_only_look_like_answers_score_nothing(self, task):
        sample = task.samples("test")[0]
        gold = sample.fields["gold"]
        everything = " or ".join(possible(sample))
        for text in ("", gold, f"The answer is {gold}.", f"<answer>{everything}</answer>", "<answer></answer>"):
            assert answer(task, sample, text) == 0.0, text

    def test_a_missing_reply_is_no_score(self, task):
        sample = task.samples("test")[0]
        assert answer(task, sample, Missing("too long")) == Missing("too long")


def test_hitom_constant_letters_score_chance_because_options_are_shuffled():
    gold = Counter(sample.fields["gold"] for split in SPLITS for sample in HiToM().samples(split))
    assert len(gold) == 15
    assert max(gold.values()) < 600 / 15 + 3 * (600 / 15) ** 0.5  # the package's own order: 93 times L


def test_hitom_balances_orders_lengths_and_deception():
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        cells = Counter(
            (q.fields["order"], q.fields["chapters"], q.fields["deception"]) for q in HiToM().samples(split)
        )
        assert set(cells.values()) == {count} and len(cells) == 5 * 3 * 2


def test_hitom_questions_have_lost_the_packages_asterisks():
    assert not any("*" in sample.fields["question"] for sample in HiToM().samples("train"))


def test_socialiqa_constant_letters_score_a_third():
    gold = Counter(sample.fields["gold"] for sample in SocialIQa().samples("train"))
    assert all(abs(count / 1322 - 1 / 3) < 0.04 for count in gold.values())


def test_tomi_stories_hold_two_places_first_the_remembered_and_last_the_real_one():
    for sample in (sample for split in SPLITS for sample in ToMi().samples(split)):
        first, last = sample.fields["places"]
        assert sample.fields["gold"] in (first, last)
        assert sample.fields["kind"] != "memory" or sample.fields["gold"] == first
        assert sample.fields["kind"] != "reality" or sample.fields["gold"] == last


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("bathtub", True),
        ("The Bathtub.", True),
        ("in the bathtub, not the pantry", False),
        ("bathtubs", False),
        ("blue_bathtub", False),
        ("red-bathtub", False),
        ("hall bathtub", True),
        ("pantry", False),
    ],
)
def test_tomi_wants_the_gold_place_as_a_word_and_no_other_place(text, right):
    assert names_only(text, {"gold": "bathtub", "places": ("bathtub", "pantry")}) is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<ANSWER> b </ANSWER>", "B"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>B.</answer>", "B"),
        ("<answer>B. bathtub</answer>", None),
        ("<answer>D</answer>", None),  # only A to C are offered
        ("<answer>A</answer> no, <answer>B</answer>", None),  # hedging both ways
        ("<answer>B</answer> that is <answer>B</answer>", "B"),
        ("<think><answer>A</answer></think><answer>B</answer>", "B"),
        ("<thinking>\n<answer>A</answer>\n</thinking>\n<answer>B</answer>", "B"),
        ("<think>it may be <answer>B</answer>", None),  # unfinished reasoning
        ("B", None),
        ("I cannot decide", None),
        ("The answer about this is B", None),
        ("<answer>", None),
        ("<answer>\n</answer>", None),
        ("<answer>AB</answer>", None),
        ("<answer>ß</answer>", None),
    ],
)
def test_letters(text, letter):
    assert chosen_letter(text, 3) == letter


def test_thinking_is_stripped_whole_and_only_as_a_tag():
    assert strip_thinking("<think>a</think> b <THINKING>c</THINKING>d") == "b d"
    assert strip_thinking("I think <that> is it") == "I think <that> is it"
    assert tagged_answer("<answer>two\nlines</answer>") == "two\nlines"


def test_an_option_list_of_another_length_is_read_as_such():
    sample = HiToM().samples("test")[0]
    two = replace(sample, fields={**sample.fields, "options": ("x", "y"), "gold": "A"})
    assert answer(HiToM(), two, "<answer>A</answer>") == 1.0
    assert answer(HiToM(), two, "<answer>O</answer>") == 0.0
