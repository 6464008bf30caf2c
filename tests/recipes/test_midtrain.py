"""The outcome of `make midtrain`: on real conversations, with two tensor-parallel ranks, the default config learns more
than n-gram statistics do. This is the README's first command, run to its end.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> dict:
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "recipes" / "midtrain.py"), "tiny-cpu", "--runs", str(runs)]
    # the repository's own data folder, so that a developer's second run starts at once
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = runs / "midtrain" / "latest"
    assert (run / "report.html").stat().st_size > 10_000
    return json.loads((run / "summary.json").read_text())


def test_held_out_loss_falls_by_a_quarter(summary):
    assert summary["val/loss/fall"] >= 0.25
    assert summary["skipped_updates"] == 0


def test_held_out_loss_beats_unigram_and_trigram(summary):
    assert summary["final/loss"] < summary["baseline/trigram"] < summary["baseline/unigram"]
