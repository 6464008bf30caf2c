"""The detectors: their measures by hand, the set they were written with, panels, and what a flag costs."""

import dataclasses

import numpy as np
import pytest

from osim_core.reward.detectors import Batch, Finding, Panel, Specimen
from osim_core.reward.detectors.collapse import Collapse
from osim_core.reward.detectors.copying import Copying
from osim_core.reward.detectors.formatting import KINDS, Formatting, count_marks
from osim_core.reward.detectors.hedging import asserts
from osim_core.reward.detectors.length import HumanLengths, Length
from osim_core.reward.detectors.repetition import loops, missing_vocabulary, pronoun_excess, repeated_trigrams
from osim_core.reward.detectors.rubric_recital import RubricRecital
from osim_core.reward.detectors.standard import read_calibration, standard_panel
from osim_core.reward.detectors.text import sentences, words
from tests.support.hacks import inspect, read_cases, recall

LENGTHS = HumanLengths(
    words=np.array([1, 10, 100, 101]),
    share=np.array([0.0, 0.5, 0.99, 1.0]),
    z=np.array([0.0, 1.0, 2.0]),
    group_share=np.array([0.0, 0.7, 1.0]),
    mean=np.log(10),
    between=0.5,
    within=2.0,
)


def score(detector, *specimens):
    return detector.score(Batch(specimens, encoder=None)).tolist()


def reply(text, **known):
    return Specimen(owner="a", text=text, **known)


def test_words_and_sentences():
    assert words("It's 5 o'clock -- NOT_yet, naïve!") == ["it's", "5", "o'clock", "not", "yet", "naïve"]
    assert sentences('He said "no." Then? ...\n- a list\n\n!!!') == ['He said "no.', "Then?", "- a list"]


def test_copying_is_the_share_in_shared_runs_scaled_by_the_longest():
    source = "one two three four five six seven eight nine ten eleven twelve"
    assert score(Copying(), reply(source, context=source)) == [1.0]
    eight = "one two three four five six seven eight"  # the longest run is eight of a sure ten, six being free
    assert score(Copying(), reply(f"{eight} so what then now", context=source)) == [pytest.approx(8 / 12 * 2 / 4)]
    assert score(Copying(), reply("one two three four five six", context=source)) == [0.0]
    # all of the goal inside a long reply
    long = f"well I thought about that for quite a while and came up with this {source} what do you say"
    assert score(Copying(), reply(long, intent=source)) == [1.0]
    assert score(Copying(), reply(long, context=source))[0] < 0.5
    assert score(Copying(), reply("", context="", intent="")) == [0.0]


def test_copying_sees_through_a_change_of_person():
    goal = "You want your neighbour to give you back your ladder before the weekend"
    assert score(Copying(), reply("I want my neighbour to give me back my ladder before the weekend", intent=goal)) == [
        1.0
    ]


def test_rubric_recital_counts_distinct_terms_and_thins_out():
    rubric = ("politeness", "tone", "goal completion")
    assert score(RubricRecital(), reply("so polite", rubric=rubric)) == [0.5]
    assert score(RubricRecital(), reply("polite, polite and politely", rubric=rubric)) == [0.5]
    assert score(RubricRecital(), reply("a polite tone", rubric=rubric)) == [0.75]
    assert score(RubricRecital(), reply("the completion of goals", rubric=rubric)) == [pytest.approx(1 - 0.5**1.5)]
    assert score(RubricRecital(), reply("my goal is far", rubric=rubric)) == [0.0]
    assert score(RubricRecital(), reply("polite " + "word " * 59, rubric=rubric)) == [pytest.approx(0.5 * 15 / 60)]
    assert score(RubricRecital(), reply("politeness and tone")) == [0.0]


def test_repetition_measures():
    assert loops(words("a b a b a b")) == 1.0
    assert loops(words("x y a a a")) == pytest.approx(3 / 5)
    assert loops(words("a b a b")) == 0.0  # twice is no loop
    assert repeated_trigrams(words("a b c a b c")) == pytest.approx(1 / 4)
    assert pronoun_excess(words("i you we go")) == pytest.approx(0.5)
    assert pronoun_excess(words("i go home now")) == 0.0
    assert missing_vocabulary(["a"] * 100) == pytest.approx(1 - 1 / 100**0.88)
    assert [f([]) for f in (loops, repeated_trigrams, pronoun_excess, missing_vocabulary)] == [0.0] * 4


def test_marks_are_counted_by_kind():
    text = "# Title\n- **bold** one\n2. *two*\n> quoted\n| a | b |\n---\n`code` — x -- y\nwell-known 5-3 😀🎉"
    counts = dict(zip(KINDS, count_marks(text), strict=True))
    assert counts == {
        "bold": 1,
        "emphasis": 1,
        "heading": 1,
        "list": 2,
        "rule": 1,
        "quote": 1,
        "code": 1,
        "table": 1,
        "dash": 2,
        "emoji": 2,
    }
    assert sum(count_marks("a 2*3*4 sum, snake_case, c# and an a-b pair; 3 > 2")) == 0


def test_formatting_grows_with_surprise_and_knows_the_register():
    rates = {"chitchat": dict.fromkeys(KINDS, 0.0), "debates": {**dict.fromkeys(KINDS, 0.0), "dash": 0.05}}
    detector = Formatting(rates)
    none, one, two = (score(detector, reply("so " + "**x** " * n))[0] for n in range(3))
    # lambda = 0.001 * (words + 8); P(N >= 1) = 1 - exp(-lambda)
    surprise = -np.log10(1 - np.exp(-0.001 * 10))
    assert none == 0.0 and one == pytest.approx(surprise / (surprise + 4)) and two > one
    dashes = "well -- I think -- we had -- a deal"
    assert score(detector, reply(dashes, register="debates"))[0] < score(detector, reply(dashes))[0]


def test_length_long_alone_short_only_together():
    detector = Length({"chitchat": LENGTHS})
    assert score(detector, reply("w " * 10), reply("w " * 100), reply("w " * 5000), reply("w"), reply(" ")) == [
        0.5,
        0.99,
        1.0,
        0.0,
        1.0,
    ]
    group = [reply("w", group="g")] * 4
    z = (np.log(10) - np.log(2)) / np.sqrt(0.5 + 2.0 / 4)
    assert score(detector, *group) == pytest.approx([0.7 + 0.3 * (z - 1)] * 4)
    assert score(detector, *group[:3]) == [0.0] * 3  # too few to tell
    assert score(detector, *(reply("w", group=str(n)) for n in range(4))) == [0.0] * 4


def test_collapse_is_the_mean_jaccard_of_bigrams_in_the_group():
    text = " ".join(map(str, range(12)))
    other = " ".join(map(str, range(20, 32)))
    same = [reply(text, group="g")] * 3
    assert score(Collapse(), *same) == pytest.approx([1.0] * 3)
    mixed = [*same[:2], reply(other, group="g")]
    assert score(Collapse(), *mixed) == pytest.approx([(0.5 - 0.25) / 0.75] * 2 + [0.0])
    assert score(Collapse(), *same[:2]) == [0.0, 0.0]  # a pair is no group
    assert score(Collapse(), *(reply(text, group=str(n)) for n in range(3))) == [0.0] * 3
    assert score(Collapse(), *[reply("yes please", group="g")] * 8) == [0.0] * 8


@pytest.mark.parametrize(
    ("text", "option", "said"),
    [
        ("In the basket, not in the box.", "box", False),
        ("In the basket, not in the box.", "basket", True),
        ("It isn't in the box", "box", False),
        ("a boxer", "box", False),
        ("B", "B", True),
        ("A dog", "A", False),
        ("A or B", "A", True),
        ("no idea", "no", False),
        ("No, never", "no", True),
    ],
)
def test_which_answer_is_asserted(text, option, said):
    assert asserts(text, option) == said


def test_the_set_that_they_were_written_with(panel):
    """Fit to this set, so the figures say that nothing broke, not how good the detectors are."""
    cases = read_cases("writing")
    table = recall(cases, inspect(panel, cases))
    assert len(table) == len(panel.detectors) == 11
    for name, (hacks, flagged, benign, false) in table.items():
        assert hacks >= 15 and benign >= 7
        assert flagged >= 0.9 * hacks and false <= 1, (name, hacks, flagged, benign, false)


def test_batch_and_order_do_not_matter(panel):
    specimens = [case.specimens[0] for case in read_cases("writing")][::9]
    together = panel.inspect(specimens)
    for specimen in specimens[:: len(specimens) // 5]:
        alone = panel.inspect([specimen])[specimen.owner]
        for name, finding in together[specimen.owner].items():
            if name not in ("collapse", "length"):  # a lone reply has no group
                assert finding.score == pytest.approx(alone[name].score, abs=1e-4), name
    assert panel.inspect(specimens[::-1]).keys() == together.keys()


def test_empty_and_strange_texts(panel):
    texts = ["", " \n", "?!", "日本語だけ", "a" * 10_000, "\u0000\u200b", "1. " * 500, "😀"]
    found = panel.inspect([Specimen(owner=str(n), text=text) for n, text in enumerate(texts)])
    for findings in found.values():
        assert all(0.0 <= finding.score <= 1.0 for finding in findings.values())
    assert found["0"]["length"].flagged
    assert panel.inspect([]) == {}


class Constant:
    name = "constant"

    def score(self, batch):
        return np.array([float(specimen.text) for specimen in batch.specimens])


def constant_panel(**settings):
    return Panel([Constant()], {"constant": {"chitchat": 0.5}}, encoder=None, **settings)


def test_what_a_flag_costs_by_mode():
    specimens = [Specimen(owner="low", text="0.49"), Specimen(owner="high", text="0.5")]
    audit = constant_panel().inspect(specimens)
    assert audit["high"]["constant"] == Finding(0.5, True, 1.0)
    assert audit["low"]["constant"] == Finding(0.49, False, 1.0)
    assert constant_panel(mode="train").inspect(specimens)["high"]["constant"] == Finding(0.5, True, 0.0)
    assert constant_panel(mode="train").inspect(specimens)["low"]["constant"].multiplier == 1.0
    milder = constant_panel(mode="train", penalty=0.1, penalties={"constant": 0.25})
    assert milder.inspect(specimens)["high"]["constant"].multiplier == 0.25


def test_of_several_turns_the_worst_counts():
    turns = [Specimen(owner="a", text=text) for text in ("0.1", "0.9", "0.2")]
    assert constant_panel(mode="train").inspect(turns)["a"]["constant"] == Finding(0.9, True, 0.0)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mode": "on"}, "no mode 'on'"),
        ({"penalty": 1.0}, "penalty 1.0"),
        ({"penalties": {"length": 0.5}}, "no such detector"),
        ({"thresholds": {}}, "constant has no threshold"),
    ],
)
def test_panels_that_make_no_sense(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(constant_panel(), **settings)


def test_an_uncalibrated_register_is_refused():
    with pytest.raises(ValueError, match="a is of no register that was calibrated: opera"):
        constant_panel().inspect([Specimen(owner="a", text="0.1", register="opera")])


def test_the_standard_panel_and_its_provenance(encoder):
    fewer = standard_panel(encoder, without=("length", "collapse"))
    assert {"length", "collapse"}.isdisjoint(detector.name for detector in fewer.detectors)
    with pytest.raises(ValueError, match="no lenght; there are"):
        standard_panel(encoder, without=("lenght",))
    calibration = read_calibration()
    assert calibration["about"]["command"] == "python -m osim_core.reward.detectors.calibrate"
    assert min(calibration["about"]["replies"].values()) > 3000
    assert sum(row["rate"] for row in calibration["detectors"].values()) <= 0.01 + 1e-9
    for name, row in calibration["detectors"].items():
        assert all(share <= row["rate"] for share in row["flagged"].values()), name
