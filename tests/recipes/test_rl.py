"""recipes/rl.py as a person runs it: it learns, goes on after a kill, and ends in one line where it cannot.

The tiny random model learns to reply at all here, with the transformers engine; `make rl` with vLLM and the midtrained
model is test_rl_outcome.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osim_core.observe.metrics import deterministic_lines, read_metrics
from tests.support.starts import random_start

ROOT = Path(__file__).parents[2]
STEPS, SAVE_EVERY = 6, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    random_start(folder / "start")
    return folder


def start(place: Path, name: str, *options: str) -> subprocess.Popen:
    command = [
        *(sys.executable, str(ROOT / "recipes" / "rl.py"), "rl-tiny-cpu", "--base", str(place / "start")),
        *("--runs", str(place / name), "--rollout.engine", "transformers", "--rollout.prompts", "2"),
        *("--rollout.replies", "4", "--rollout.context", "320", "--sequence-length", "512"),
        *("--train.steps", str(STEPS), "--train.evaluate-every", "3", "--train.evaluate-rows", "3"),
        *("--checkpoint.save-every", str(SAVE_EVERY), *options),
    ]
    with open(place / f"{name}.log", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=place, env=environment)


def finish(place: Path, name: str, *options: str) -> Path:
    code = start(place, name, *options).wait(timeout=400)
    assert code == 0, (place / f"{name}.log").read_text()[-3000:]
    return (place / name / "rl" / "latest").resolve()


@pytest.fixture(scope="module")
def whole(place) -> Path:
    return finish(place, "whole")


def test_a_run_leaves_metrics_transcripts_report_and_summary(whole):
    rows = read_metrics(whole / "metrics.jsonl")
    steps = [row for row in rows if "rl/groups" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert all(row["rl/mismatch"] < 1e-5 and row["rl/staleness"] == 0 for row in steps)
    assert [row["step"] for row in rows if "val/reward" in row] == [0, 3, 6]
    assert all(0 < row["val/likelihood"] < 1 for row in rows if "val/reward" in row)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["val/reward/rise"] == pytest.approx(summary["val/reward/last"] - summary["val/reward/first"])
    transcripts = [json.loads(line) for line in (whole / "rollouts" / "step-000003.jsonl").read_text().splitlines()]
    assert len(transcripts) >= 8 and all(
        row["versions"] == [2] for row in transcripts
    )  # written by the weights of step 2
    assert "<h2>Reward</h2>" in (whole / "report.html").read_text()
    assert (whole / "rollouts" / "held-out-000006.md").is_file()


def test_killed_and_resumed_it_is_the_run_that_was_never_killed(place, whole):
    process = start(place, "killed")
    checkpoints = place / "killed" / "rl"
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("*/checkpoints/step-00000004")):
        assert process.poll() is None and time.monotonic() < deadline, (place / "killed.log").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = finish(place, "killed", "--resume", "latest")
    assert deterministic_lines(resumed / "metrics.jsonl") == deterministic_lines(whole / "metrics.jsonl")


def test_rollouts_run_ahead_with_older_weights_and_say_so(place):
    run = finish(place, "ahead", "--rollout.staleness", "1")
    steps = [row for row in read_metrics(run / "metrics.jsonl") if "rl/groups" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert {row["rl/staleness"] for row in steps} <= {0, 1} and steps[-1]["rl/staleness"] == 1
    assert list((run / "checkpoints").glob("rollouts-*.pickle")), "what was rolled out ahead is part of the run's state"


def test_feedback_and_adapters_and_a_reference_train_together(place):
    options = (
        "--feedback",
        "True",
        "--rollout.context",
        "480",
        "--kl",
        "0.05",
        "--lora.rank",
        "4",
        "--lora.alpha",
        "8",
        "--updates",
        "2",
    )
    run = finish(place, "feedback", *options, "--train.steps", "2", "--algorithm", "grpo")
    steps = [row for row in read_metrics(run / "metrics.jsonl") if "rl/groups" in row]
    assert all(row["rl/groups"] > 2 for row in steps), "refined replies are groups of their own as well"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "tomy"), "task 'tomy' is unknown; there are "),
        (("--algorithm", "ppo"), "algorithm 'ppo' is unknown; there are grpo"),
        (("--tasks", "next_turn"), "task next_turn is scored by a judge; set --reward.judge.backend"),
        (("--rollout.replies", "1"), "rollout.replies: a group of one has nothing to compare"),
        (("--rollout.context", "1024"), "rollout.context 1024 exceeds sequence_length 512"),
        (("--base", "nowhere"), "nowhere: no such folder"),
        (("--reward.judge.backend", "http", "--reward.judge.model", "m"), "needs the server's address"),
        (("--rollout.context", "128"), "3 of 3 episodes have no reward (too long; "),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_exit_code_2(place, options, said):
    process = start(place, "refused", *options)
    assert process.wait(timeout=200) == 2
    error = [line for line in (place / "refused.log").read_text().splitlines() if line.startswith("error: ")][-1]
    assert said in error
