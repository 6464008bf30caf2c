"""A run directory is complete or absent, unique, and found again."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from osim_core.config import MidtrainConfig
from osim_core.observe.run_dir import RunDirectory
from tests.support.workers import Workers


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Config:
    name: str
    inner: Inner = field(default_factory=Inner)
    rate: float = 1e-5


def test_create_writes_the_folders_and_a_config_that_reads_back(tmp_path):
    config = Config(name="tiny", inner=Inner((3, 4, 5)))
    run = RunDirectory.create("midtrain", "tiny", config, root=tmp_path)
    assert run.path.parent == tmp_path / "midtrain" and run.path.name.startswith("tiny-20")
    assert run.checkpoints.is_dir() and run.rollouts.is_dir() and run.profile.is_dir()
    assert run.read_config(Config) == config
    assert not list(run.path.glob("*.partial"))


def test_two_runs_in_one_second_are_two_folders_and_latest_is_the_second(tmp_path):
    first = RunDirectory.create("midtrain", "tiny", Config(name="a"), root=tmp_path)
    second = RunDirectory.create("midtrain", "tiny", Config(name="b"), root=tmp_path)
    assert first.path != second.path
    link = tmp_path / "midtrain" / "latest"
    assert link.is_symlink() and not link.readlink().is_absolute()  # a moved runs/ keeps its links
    for way in (RunDirectory.open(link), RunDirectory.open("latest", recipe="midtrain", root=tmp_path)):
        assert way.path == second.path and way.read_config(Config).name == "b"
    assert RunDirectory.open(str(first.path)).read_config(Config).name == "a"


def test_open_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no such run directory"):
        RunDirectory.open(tmp_path / "midtrain" / "latest")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        RunDirectory.open(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such run directory"):
        RunDirectory.open("latest", recipe="rl", root=tmp_path)


def test_a_config_of_another_kind_or_broken_json_is_one_clear_line(tmp_path):
    run = RunDirectory.create("midtrain", "tiny", Config(name="a"), root=tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: unknown key"):
        run.read_config(MidtrainConfig)
    (run.path / "config.json").write_text('{"name": \n')
    with pytest.raises(ValueError, match=r"config\.json: line 2: not valid JSON"):
        run.read_config(Config)


def test_an_unwritable_root_is_one_clear_line_and_leaves_latest_alone(tmp_path):
    (tmp_path / "midtrain").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="cannot create a run directory"):
        RunDirectory.create("midtrain", "tiny", Config(name="a"), root=tmp_path)


def test_summary_is_replaced_whole(tmp_path):
    run = RunDirectory.create("midtrain", "tiny", Config(name="a"), root=tmp_path)
    run.write_summary({"val/loss": 4.0})
    run.write_summary({"val/loss": 3.5, "outcome": "fell by 25 %"})
    assert json.loads((run.path / "summary.json").read_text()) == {"val/loss": 3.5, "outcome": "fell by 25 %"}


def create_in(roots: list[Path]) -> list[str]:
    """On each rank: the path made under each root, or the error."""
    results = []
    for root in roots:
        try:
            results.append(str(RunDirectory.create("midtrain", "tiny", Config(name="a"), root=root).path))
        except ValueError as error:
            results.append(str(error))
    return results


def test_ranks_agree_on_one_directory_and_on_its_failure(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    group = Workers(2)
    try:
        first, second = group.run(create_in, roots=[tmp_path / "good", tmp_path / "file"])
    finally:
        group.close()
    assert first == second
    made, error = first
    assert [str(path) for path in (tmp_path / "good" / "midtrain").glob("tiny-*")] == [made]
    assert "cannot create a run directory" in error
