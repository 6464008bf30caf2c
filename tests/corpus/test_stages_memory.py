"""A build's memory: below its stated bound, and not growing with the text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from osim_core.corpus.stages.memory import memory_bound
from tests.corpus.planted import Talk, row

ROOT = Path(__file__).parents[2]


def write_rows(path: Path, count: int, words: int) -> Path:
    """`count` rows of four turns of `words` words."""
    talk = Talk(9)
    with path.open("w") as file:
        for number in range(count):
            turns = [talk.sentence(words) for _ in range(4)]
            file.write(json.dumps(row("helpdesk", turns, f"g{number}")) + "\n")
    return path


def summary_of(place: Path, rows: Path) -> dict:
    """Build the rows in a process of its own; what its run says."""
    options = ("--packaged", "debates", "--rows", str(rows), "--roles", "helpdesk", "keep", "--chunk-bytes", "1000000")
    places = ("--cache", str(place / "data"), "--runs", str(place / "runs"), "--processes", "1")
    command = [sys.executable, str(ROOT / "recipes" / "corpus.py"), "packaged", *options, *places]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((place / "runs" / "corpus" / "latest" / "summary.json").read_text())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    """The same 3,000 rows, four times as long: 36 MB more of text, of which a build may not hold a third.

    Both are long enough for the n-gram baselines to reach their limit, which is most of the memory here.
    """
    for name, words in (("short", 140), ("long", 560)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / f"{name}.jsonl", 3_000, words)
    short, long = (summary_of(tmp_path / name, tmp_path / f"{name}.jsonl") for name in ("short", "long"))
    assert long["bytes"] - short["bytes"] > 30e6
    assert long["peak_rss_of_one_process_mb"] - short["peak_rss_of_one_process_mb"] < 12
    assert long["peak_rss_of_one_process_mb"] < long["memory_bound_mb"]


def test_the_bound_is_what_the_readme_says():
    """20 M records of two sides: the columns of the records or those of the sides, and the processes beside them."""
    one = memory_bound(20_000_000, 40_000_000, 1)
    assert one == (1000 << 20) + (512 << 20) + 180 * 40_000_000
    assert memory_bound(20_000_000, 40_000_000, 8) == one + 8 * (1000 << 20)
