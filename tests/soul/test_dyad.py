"""Dyads: the protocol action by action, what the judge is told, and Sotopia's scales kept apart.

pytest tests/soul/test_dyad.py
"""

import json

import pytest

from osim_core.judge.rubric import Verdict, load_rubric
from osim_core.missing import Missing
from osim_core.soul.dyad import SOTOPIA, Action, Dyad, normalised_score, paper_score, parse_action, scenarios
from osim_core.soul.episode import Reply, play


def act(kind, argument=""):
    return json.dumps({"action_type": kind, "argument": argument})


def scripted(*texts):
    """The scene's texts in order, whoever is asked; records the asks."""
    asks, left = [], list(texts)

    def answer(ask):
        asks.append(ask)
        text = left.pop(0)
        return Reply(text, "missing" if isinstance(text, Missing) else "stop")

    return answer, asks


def verdict(value, **dimensions):
    """Every dimension at `value` of its range, but for those given."""
    return Verdict(values={**dict.fromkeys(SOTOPIA, value), **dimensions}, score=Missing("not read"))


def played(sample, *texts, self_play=False):
    answer, asks = scripted(*texts)
    return play(Dyad(self_play).episode(sample), answer), asks


@pytest.fixture
def first():
    """A sample in which the policy acts first."""
    return next(s for s in Dyad().samples("train") if s.fields["plays"] == (0,))


@pytest.fixture
def second():
    return next(s for s in Dyad().samples("train") if s.fields["plays"] == (1,))


@pytest.mark.parametrize("task", [Dyad(), Dyad(self_play=True)], ids=lambda task: task.spec.id)
def test_items_are_as_the_spec_says_with_no_scenario_on_two_sides(task):
    sides = {split: task.samples(split) for split in ("train", "validation", "test")}
    assert {split: len(samples) for split, samples in sides.items()} == dict(task.spec.items)
    names = [{sample.scenario for sample in samples} for samples in sides.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == len(scenarios()) == 24


def test_every_scenario_is_complete_and_its_goals_private(first):
    for scenario in scenarios():
        one, two = scenario["characters"]
        assert all(map(str.strip, (scenario["setting"], scenario["relationship"], *one.values(), *two.values())))
        assert one["name"] != two["name"] and one["goal"] not in scenario["setting"]
    _, asks = played(first, act("speak", "Hi"), act("leave"))
    own, other = first.fields["characters"]
    assert own["goal"] in asks[0].messages[0].content and other["goal"] not in asks[0].messages[0].content
    assert other["goal"] in asks[1].messages[0].content and own["goal"] not in asks[1].messages[0].content


def test_each_side_hears_the_others_actions_once_and_its_own_never(first):
    name, other = (c["name"] for c in first.fields["characters"])
    outcome, asks = played(
        first, act("speak", "Hi"), act("non-verbal communication", "nods"), act("action", "sits down"), act("leave")
    )
    assert [ask.speaker for ask in asks] == ["policy", "partner", "policy", "partner"]
    assert [[m.role for m in ask.messages] for ask in asks] == [
        ["system", "user"],
        ["system", "user"],
        ["user"],
        ["user"],
    ]
    assert asks[0].messages[1].content == "You act first."
    assert asks[1].messages[1].content == f'{name} said: "Hi"'
    assert asks[2].messages[0].content == f"[non-verbal communication] {other} nods"
    assert asks[3].messages[0].content == f"[action] {name} sits down"
    assert [turn.text for turn in outcome.turns][-1] == f"{other} left."
    assert outcome.ended == "done" and outcome.values == {"acted": 1.0, "well_formed": 1.0}


def test_the_second_character_waits_for_the_first(second):
    _, asks = played(second, act("speak", "Hi"), act("leave"))
    assert [ask.speaker for ask in asks] == ["partner", "policy"]
    assert [m.role for m in asks[1].messages] == ["system", "user"]


def test_a_scene_ends_after_fifteen_actions(first):
    outcome, asks = played(first, *[act("speak", str(n)) for n in range(15)])
    assert len(asks) == len(outcome.turns) == 15 and outcome.ended == "turns"
    assert [ask.speaker for ask in asks].count("policy") == 8


def test_what_is_no_action_does_nothing_and_is_never_read_out(first):
    name = first.fields["characters"][0]["name"]
    outcome, asks = played(first, "I would like the bike", act("speak", "Yes?"), act("speak", "Hi"), act("leave"))
    assert asks[1].messages[-1].content == f"{name} did nothing."
    assert "bike" not in asks[1].messages[-1].content
    assert outcome.values["well_formed"] == 0.5 and outcome.ended == "done"


def test_three_unreadable_replies_in_a_row_end_it_for_whoever_wrote_them(first):
    talk = act("speak", "Hello?")
    outcome, _ = played(first, "a", talk, "b", talk, "c")
    assert outcome.ended == "malformed" and Dyad().score(first, outcome, {}) == 0.0
    outcome, _ = played(first, talk, "a", talk, "b", talk, "c")
    assert Dyad().score(first, outcome, {}) == Missing("partner malformed")
    outcome, _ = played(first, "a", talk, "b", talk, talk, talk, "c", act("leave"))
    assert outcome.ended == "done"


def test_a_missing_reply_of_either_side_is_no_score(first):
    for texts in ([Missing("too long")], [act("speak", "Hi"), Missing("partner down")]):
        outcome, _ = played(first, *texts)
        assert Dyad().score(first, outcome, {}) == texts[-1] and not outcome.judgements
    assert "down" not in " ".join(turn.text for turn in outcome.turns)


def test_a_partner_that_leaves_before_the_policy_acts_leaves_nothing_to_judge(second):
    outcome, _ = played(second, act("leave"))
    assert Dyad().score(second, outcome, {}) == Missing("partner left at once") and not outcome.judgements


def test_the_judge_is_told_whom_to_judge_and_the_score_is_its(first):
    outcome, _ = played(first, act("speak", "Hi"), act("leave"))
    (item,) = outcome.judgements
    own, other = first.fields["characters"]
    assert f"To be judged: {own['name']}" in item.context
    assert own["goal"] in item.context and other["goal"] in item.context
    assert item.reply == f'{own["name"]} said: "Hi"\n{other["name"]} left.'
    assert Dyad().score(first, outcome, {item.id: verdict(0.4)}) == pytest.approx(0.4)
    assert Dyad().paper_score(first, outcome, {item.id: verdict(1.0)}) == pytest.approx(0.5714, abs=5e-5)
    broken = {item.id: verdict(0.4, secret=Missing("timeout"))}
    assert Dyad().score(first, outcome, broken) == Missing("timeout")
    assert Dyad().score(first, outcome, {}) == Missing("not judged", item.id)


def test_self_play_keeps_two_ledgers_and_scores_both():
    task = Dyad(self_play=True)
    sample = task.samples("train")[0]
    outcome, asks = played(sample, act("speak", "Hi"), act("leave"), self_play=True)
    names = [c["name"] for c in sample.fields["characters"]]
    assert [(ask.speaker, ask.ledger) for ask in asks] == [("policy", names[0]), ("policy", names[1])]
    one, two = outcome.judgements
    assert names[0] in one.context.splitlines()[-1] and names[1] in two.context.splitlines()[-1].split(",")[0]
    verdicts = {one.id: verdict(0.2), two.id: verdict(0.6)}
    assert task.score(sample, outcome, verdicts) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (act("speak", "Hi"), Action("speak", "Hi")),
        (f"```json\n{act('speak', 'Hi')}\n```", Action("speak", "Hi")),
        ('I {think} so: {"action_type": "action", "argument": " waves "}', Action("action", "waves")),
        (f'{{"thought": "hm"}} {act("leave")}', Action("leave", "")),
        ('{"action_type": "leave"}', Action("leave", "")),
        (f"<think>{act('leave')}</think>{act('speak', 'Hi')}", Action("speak", "Hi")),
        (act("none"), None),
        (act("speak", "  "), None),
        (act("shout", "Hi"), None),
        ('{"action_type": "speak", "argument": 3}', None),
        ('{"action_type": ["speak"], "argument": "Hi"}', None),
        ('{"action_type": "speak", "argument": "Hi"', None),
        ("", None),
        ("{" * 5000, None),
        ('{"a":' * 900, None),
    ],
)
def test_actions_are_read_as_they_are_meant(text, action):
    assert parse_action(text) == action


def raw(*values):
    names = ("believability", "relationship", "knowledge", "secret", "social_rules", "financial", "goal")
    return dict(zip(names, map(float, values), strict=True))


class TestScales:
    def test_the_worked_example(self):
        example = raw(8, 1, 3, 0, 0, 0, 7)
        assert paper_score(example) == pytest.approx(0.271, abs=5e-4)
        assert normalised_score(example) == pytest.approx(0.658, abs=5e-4)

    def test_bounds(self):
        lowest, highest = ({name: float(SOTOPIA[name][end]) for name in SOTOPIA} for end in (0, 1))
        assert paper_score(lowest) == pytest.approx(-0.4286, abs=5e-5)
        assert paper_score(highest) == pytest.approx(0.5714, abs=5e-5)
        assert (normalised_score(lowest), normalised_score(highest)) == (0.0, 1.0)

    def test_weights_are_sotopias_and_the_rubrics_too(self):
        assert [SOTOPIA[name][2] for name in raw(*range(7))] == [0.5, 1, 1, 0.5, 0.5, 0.5, 2]
        rubric = load_rubric("sotopia")
        assert {d.name: (*d.scale, d.weight) for d in rubric.dimensions} == SOTOPIA

    def test_a_dimension_without_a_score_is_no_midpoint(self):
        broken = {**raw(8, 1, 3, 0, 0, 0, 7), "secret": Missing("timeout")}
        assert paper_score(broken) == normalised_score(broken) == Missing("timeout")
        del broken["secret"]
        assert paper_score(broken) == normalised_score(broken) == Missing("not judged", "secret")
