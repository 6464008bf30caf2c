"""The judge that a config names, and the one line for a config that names none that works."""

from dataclasses import replace

import pytest

from osim_core.config import JudgeConfig, LayoutConfig
from osim_core.judge.open import open_judge
from osim_core.judge.panel import CountedJudge
from osim_core.judge.rubric import FOLDER, JudgeItem
from osim_core.reward.planted import PlantedJudge
from tests.judge.cases import tiny_judge

HTTP = JudgeConfig(backend="http", model="m", url="http://localhost:1/v1", concurrency=3, deadline=7.0)


def opened(config, tmp_path, layout=None):
    return open_judge(config, "train", layout or LayoutConfig(), tmp_path)


def test_none_and_planted(tmp_path):
    assert opened(JudgeConfig(), tmp_path) is None
    judge = opened(JudgeConfig(backend="planted"), tmp_path)
    assert isinstance(judge, PlantedJudge)
    (verdict,) = judge.score([JudgeItem(id="1", rubric="any", context="", reply="goal relationship stance emotion")])
    assert verdict.values["recital"] == 1.0


def test_http(tmp_path):
    judge = opened(HTTP, tmp_path)
    assert isinstance(judge, CountedJudge) and judge.name == "train"
    patience = judge.judge.transport.patience
    assert (patience.concurrency, patience.deadline_s) == (3, 7.0)
    assert set(judge.judge.rubrics) == {path.stem for path in FOLDER.glob("*.json")}
    assert (tmp_path / "judge" / "train.sqlite").is_file()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (replace(HTTP, url=""), "judge train: backend http needs the server's address"),
        (replace(HTTP, url="ftp://x"), "judge train: 'ftp://x' is not an http"),
        (replace(HTTP, model=""), "judge train: backend http needs a model"),
        (JudgeConfig(backend="inprocess"), "judge train: backend inprocess needs a model"),
    ],
)
def test_what_a_person_has_to_mend(tmp_path, config, complaint):
    with pytest.raises(ValueError, match=complaint):
        opened(config, tmp_path)


def test_an_in_process_judge_of_an_rl_run_is_asked_by_one_rank(tmp_path):
    folder = tiny_judge(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"needs layout.tensor 1, got 2"):
        opened(JudgeConfig(backend="inprocess", model=str(folder)), tmp_path, LayoutConfig(tensor=2))
