"""Rubrics: what is shipped can be read and asked; a wrong file is named; composition never counts what is missing."""

import json

import pytest

from osim_core.judge.rubric import FOLDER, JudgeItem, check_item, compose, load_rubric
from osim_core.missing import Missing

GOOD = {
    "id": "mine",
    "version": 1,
    "task": "Judge.",
    "dimensions": [
        {"name": "warm", "question": "Is it warm?", "scale": "yes-no", "weight": 3},
        {"name": "risk", "question": "Is it risky?", "labels": ["a", "b"], "values": [4, 0], "worst": 4, "best": 0},
    ],
}


def written(tmp_path, **change):
    path = tmp_path / "rubric.json"
    path.write_text(json.dumps({**GOOD, **change}))
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_shipped_rubrics(name):
    rubric = load_rubric(name)
    assert rubric.id == name
    for dimension in rubric.dimensions:
        normalised = [dimension.normalise(value) for value in dimension.values]
        assert min(normalised) == 0.0 and max(normalised) == 1.0, dimension.name


def test_a_file_becomes_a_rubric(tmp_path):
    warm, risk = load_rubric(written(tmp_path)).dimensions
    assert (warm.labels, warm.values, warm.anchors, warm.weight) == (("yes", "no"), (1.0, 0.0), ("", ""), 3)
    assert [risk.normalise(value) for value in risk.values] == [0.0, 1.0]  # less is better: worst lies above best


def dimension(**change):
    return [{**GOOD["dimensions"][0], **change}]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dimension": []}, "unknown key dimension of a rubric"),
        ({"dimensions": []}, "needs dimensions"),
        ({"dimensions": dimension(colour="red")}, "unknown key colour of a dimension"),
        ({"dimensions": dimension(scale="1-7")}, "scale '1-7': one of 1-5"),
        ({"dimensions": dimension() * 2}, "different names"),
        ({"dimensions": dimension(weight=-1)}, "at least 0"),
        ({"dimensions": dimension(weight=0)}, "weight above 0"),
        ({"dimensions": dimension(anchors={"maybe": "x"})}, "anchors for .'maybe'."),
        ({"dimensions": dimension(worst=1, best=1)}, "must differ"),
        ({"dimensions": [{"name": "x", "question": "?", "labels": ["a", "A"], "values": [0, 1]}]}, "different answer"),
        ({"dimensions": [{"name": "x", "question": "?", "labels": ["a", "b"], "values": [0]}]}, "needs a value"),
        ({"pairwise": True}, "pairwise dimension has the labels"),
        ({"dimensions": ["warm"]}, "a dimension is an object"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, change, complaint):
    path = written(tmp_path, **change)
    with pytest.raises(ValueError, match=f"{path}: .*{complaint}"):
        load_rubric(path)


def test_no_such_rubric_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'nexturn': neither a file nor one of .*next_turn"):
        load_rubric("nexturn")


def test_composition_is_over_what_is_present(tmp_path):
    rubric = load_rubric(written(tmp_path))
    gone = Missing("timeout", "x")
    assert compose(rubric, {"warm": 1.0, "risk": 0.0}) == 0.75
    assert compose(rubric, {"warm": gone, "risk": 0.25}) == 0.25
    assert compose(rubric, {"warm": gone, "risk": Missing("other")}) == gone


def test_an_item_must_fit_its_rubric():
    rubrics = {name: load_rubric(name) for name in ("next_turn", "turing_pair")}
    with pytest.raises(ValueError, match=r"item 'a': no rubric 'dyad'; this judge has .'next_turn'"):
        check_item(JudgeItem(id="a", rubric="dyad", context="", reply="x"), rubrics)
    with pytest.raises(ValueError, match="compares two replies"):
        check_item(JudgeItem(id="a", rubric="turing_pair", context="", reply="x"), rubrics)
    with pytest.raises(ValueError, match="compares one reply"):
        check_item(JudgeItem(id="a", rubric="next_turn", context="", reply="x", other="y"), rubrics)
