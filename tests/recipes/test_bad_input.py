"""Bad input ends the real command with one `error:` line, exit code 2, no traceback, and nothing half-written.

What can be checked before ranks start is, so most of these cost one import.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs import CONFIGS
from osim_core.observe.run_dir import RunDirectory
from osim_core.preflight import check_config, check_data
from tests.support.documents import make_documents, write_shards

ROOT = Path(__file__).parents[2]
TINY = replace(CONFIGS["tiny-cpu"], model=replace(CONFIGS["tiny-cpu"].model, vocab_size=1024))


def command(place: Path, *options: str) -> subprocess.CompletedProcess:
    arguments = ["tiny-cpu", "--runs", str(place / "runs"), "--data.cache", str(place / "data"), *options]
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "midtrain.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def refused(place: Path, *options: str) -> str:
    """The one line that the command prints before it gives up."""
    ended = command(place, *options)
    assert ended.returncode == 2, ended.stderr[-2000:]
    line = ended.stderr.strip()
    assert line.startswith("error: ") and "\n" not in line, line
    assert not (place / "runs").exists(), "a run directory of a run that never began"
    assert not list(place.glob("data/*.partial")), "half a corpus"
    return line


def test_an_unknown_option_is_named(tmp_path):
    assert "unknown option --layout.tensr" in refused(tmp_path, "--layout.tensr", "2")


def test_a_row_without_messages_is_named_by_file_and_row(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}, {"text": "x"}]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"data_source": "t", **row}) + "\n" for row in rows))
    line = refused(tmp_path, "--data.paths", str(tmp_path / "talks.jsonl"), "--data.roles", "t", "keep")
    assert "talks.jsonl" in line and "messages" in line and "2" in line


def test_resume_without_a_run_is_refused(tmp_path):
    assert "no such run directory" in refused(tmp_path, "--resume", "latest")


def test_a_world_that_the_layout_does_not_divide():
    with pytest.raises(ValueError, match="world size 3 is not a multiple of tensor 2"):
        check_config(TINY, processes=3)


def test_a_tokenizer_larger_than_the_model_names_both_numbers_and_the_fix():
    config = replace(TINY, data=replace(TINY.data, tokenizer_vocab_size=4097))
    with pytest.raises(ValueError, match=r"4097, model\.vocab_size only 1024: raise --model\.vocab-size to 4098"):
        check_config(config, processes=2)


@pytest.mark.parametrize("section, key", [("train", "steps"), ("train", "evaluate_every"), ("checkpoint", "keep")])
def test_counts_must_be_positive(section, key):
    config = replace(TINY, **{section: replace(getattr(TINY, section), **{key: 0})})
    with pytest.raises(ValueError, match=rf"{section}\.{key}: 0 is not a positive number"):
        check_config(config, processes=2)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A prepared folder with three shards of each split."""
    folder = tmp_path / "corpus"
    documents = make_documents(40)
    write_shards(folder, documents, split="validation")
    manifest = json.loads((folder / "manifest.json").read_text())
    write_shards(folder, documents, split="train")
    both = json.loads((folder / "manifest.json").read_text())
    both["shards"] |= manifest["shards"]
    (folder / "manifest.json").write_text(json.dumps(both))
    check_data(folder, TINY)
    return folder


def test_a_missing_shard_is_named(corpus):
    (corpus / "train-00001.bin").unlink()
    with pytest.raises(ValueError, match=r"train-00001\.bin: file is missing; restore it or prepare"):
        check_data(corpus, TINY)


def test_a_damaged_shard_is_named_or_quarantined_as_configured(corpus):
    shard = corpus / "validation-00002.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"validation-00002\.bin: checksum differs"):
        check_data(corpus, TINY)
    check_data(corpus, replace(TINY, data=replace(TINY.data, on_damaged_shard="quarantine")))


def test_a_token_outside_the_model_is_refused(corpus):
    with pytest.raises(ValueError, match=r"holds token 99[0-9], but the declared vocabulary has 500"):
        check_data(corpus, replace(TINY, model=replace(TINY.model, vocab_size=500)))


SAME = ("model", "data", "optimizer")


@pytest.mark.parametrize("section, key, value", [("data", "sequence_length", 512), ("model", "num_layers", 8)])
def test_resuming_with_another_config_names_both_values(tmp_path, section, key, value):
    run = RunDirectory.create("midtrain", "tiny-cpu", TINY, root=tmp_path)
    run.check_resumable(TINY, same=SAME)
    other = replace(TINY, **{section: replace(getattr(TINY, section), **{key: value})})
    with pytest.raises(ValueError, match=rf"started with {section}\.{key} = .* asked to resume with {value}"):
        run.check_resumable(other, same=SAME)


def test_an_unknown_key_in_a_runs_config_is_refused(tmp_path):
    run = RunDirectory.create("midtrain", "tiny-cpu", TINY, root=tmp_path)
    file = run.path / "config.json"
    values = json.loads(file.read_text())
    values["data"]["squence_length"] = 3
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json\.data: unknown key 'squence_length'"):
        run.check_resumable(TINY, same=SAME)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.3 MB, mounted for the test: room for one checkpoint (0.8 MB) of the model below, not two."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


SMALL = (
    *("--data.tokenizer-vocab-size", "300", "--data.sequence-length", "128", "--model.vocab-size", "300"),
    *("--model.hidden-size", "32", "--model.ffn-hidden-size", "64", "--model.num-layers", "2", "--model.head-dim", "8"),
    *("--train.steps", "6", "--train.evaluate-rows", "2", "--train.final-evaluate-rows", "2"),
    *("--train.device-peak-tflops", "1", "--checkpoint.save-every", "2"),
)


def test_a_full_disk_is_one_line_keeps_older_checkpoints_and_resumes_after_space_is_freed(tmp_path, small_disk):
    talks = tmp_path / "talks.jsonl"
    turns = [{"role": role, "content": f"{role} says this"} for role in ("user", "assistant") * 3]
    talks.write_text(
        "".join(json.dumps({"messages": turns, "data_source": "t", "group": str(n)}) + "\n" for n in range(60))
    )
    data = ("--data.paths", str(talks), "--data.roles", "t", "keep")

    ended = command(tmp_path, *SMALL, *data, "--runs", str(small_disk))
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr and ended.stderr.count("error: ") == 1, ended.stderr[-3000:]
    assert "make room and resume" in ended.stderr
    folder = small_disk / "midtrain" / "latest" / "checkpoints"
    complete = sorted(path.name for path in folder.iterdir())
    assert complete and all(name.startswith("step-") for name in complete), complete
    assert all((folder / name / "osim.json").is_file() for name in complete)

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    resumed = command(tmp_path, *SMALL, *data, "--runs", str(small_disk), "--resume", "latest")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert (folder / "step-00000006" / "osim.json").is_file()
