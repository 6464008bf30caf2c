"""The outcome of `make rl`: from the midtrained tiny model, on real vLLM, the reward on held-out samples rises.

Slow, because it midtrains first where the checkout has no model yet: three seeds, and what a judge that can be fooled
does to a policy.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARGIN = 0.10  # of the task's [0, 1] scale; the first evaluation is about 0.43, the best constant style 0.66


def run(recipe: str, *options: str) -> Path:
    """A recipe run to its end from the repository; returns what it printed last: the run's folder."""
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("report: ")]
    return Path(line.removeprefix("report: ")).parent


@pytest.fixture(scope="module")
def start() -> str:
    latest = ROOT / "runs" / "midtrain" / "latest"
    return str(latest if (latest / "summary.json").is_file() else run("midtrain", "tiny-cpu"))


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_held_out_reward_rises_by_the_margin_and_sampler_and_trainer_agree(start, tmp_path, seed):
    options = ("--base", start, "--runs", str(tmp_path), "--train.seed", seed)
    outcome = summary(run("rl", "rl-tiny-cpu", *options))
    assert outcome["val/reward/rise"] >= MARGIN
    assert outcome["rl/mismatch/largest"] < 1e-4
    assert outcome["skipped_updates"] == 0


@pytest.mark.slow
def test_a_judge_that_can_be_fooled_is_fooled_and_what_no_judge_decides_shows_it(start, tmp_path):
    outcome = summary(run("rl", "rl-planted-cpu", "--base", start, "--runs", str(tmp_path), "--train.steps", "20"))
    assert outcome["val/reward_raw/last"] > outcome["val/reward_raw/first"] + 0.2, "the policy exploits the judge"
    assert outcome["val/length_ratio/last"] < outcome["val/length_ratio/first"] - 0.2
    assert outcome["val/likelihood/last"] < outcome["val/likelihood/first"] - 0.03
