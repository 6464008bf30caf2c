"""Whichever rank fails, the job ends, says why once and returns the right code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from osim_core.parallel import launch

ROOT = Path(__file__).parents[2]

# Two real ranks: one fails as told while the other waits for it in a collective that would never end.
JOB = """
import os, sys
import torch.distributed as dist
from osim_core.parallel import launch

def main():
    if not launch.under_torchrun():
        raise SystemExit(launch.start_ranks(2))
    dist.init_process_group("gloo")
    dist.barrier()
    failing, error = sys.argv[1], sys.argv[2]
    if failing in ("both", os.environ["RANK"]):
        exec(error)
    dist.barrier()

launch.run(main)
"""


def job(tmp_path: Path, failing: str, error: str) -> subprocess.CompletedProcess:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), failing, error]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    "failing, error, code, line",
    [
        ("1", "raise ValueError('row 3: no messages')", 2, "error: row 3: no messages"),
        ("both", "raise ValueError('no such file')", 2, "error: no such file"),
        ("0", "raise FloatingPointError('step 7: loss nan')", 3, "error: step 7: loss nan"),
    ],
)
def test_an_error_on_some_rank_is_one_line_and_ends_the_job(tmp_path, failing, error, code, line):
    ended = job(tmp_path, failing, error)
    assert (ended.returncode, ended.stderr.strip()) == (code, line)


def test_a_rank_that_is_killed_is_named_with_its_signal(tmp_path):
    ended = job(tmp_path, "1", "os.kill(os.getpid(), 9)")
    assert ended.returncode == 137
    assert "rank 1 was ended by SIGKILL" in ended.stderr


def test_a_bug_shows_its_traceback(tmp_path):
    ended = job(tmp_path, "1", "{}['missing']")
    assert ended.returncode == 1
    assert re.search(r"Traceback .*KeyError: 'missing'", ended.stderr, re.DOTALL)


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("x"), ("x", 2)),
        (FloatingPointError("x"), ("x", 3)),
        (OSError(122, "Disk quota exceeded", "f"), ("disk full: f; free some space and resume", 2)),
        (PermissionError(13, "Permission denied", "f"), (None, 1)),
        (RuntimeError("x"), (None, 1)),
    ],
)
def test_what_is_explained(error, expected):
    assert launch.explain(error) == expected
