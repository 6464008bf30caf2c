"""A build's memory: below its stated bound, and not growing with the text."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from osim_core.config import CorpusConfig, DecontaminateConfig
from osim_core.corpus.stages import baselines, vocabulary
from osim_core.corpus.stages.memory import RECORD, SIDE, memory_bound
from tests.corpus.planted import Talk, built, row

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
def test_a_build_stays_below_its_bound(tmp_path):
    """24 MB of text, two thirds of which a process may not even hold at once by the way it reads."""
    rows = write_rows(tmp_path / "rows.jsonl", 3_000, 280)
    summary = summary_of(tmp_path, rows)
    assert summary["bytes"] > 20e6
    assert summary["peak_rss_of_one_process_mb"] < summary["memory_bound_mb"] < 1600


@pytest.mark.slow
def test_what_python_holds_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """Four times the records, 1.4 MB more of text: the columns of the records grow, and nothing else.

    What native code holds has no part in this; tracemalloc sees Python's objects and NumPy's arrays.
    """
    monkeypatch.setattr(baselines, "LOSS_TOKENS", 50_000)
    monkeypatch.setattr(vocabulary, "TOKENIZER_CHARACTERS", 50_000)
    peaks = []
    for number, count in enumerate((50, 300, 1_200)):  # the first one only warms caches up
        config = CorpusConfig(
            name="rows",
            rows=(str(write_rows(tmp_path / f"{count}.jsonl", count, 60)),),
            roles={"helpdesk": "keep"},
            decontaminate=DecontaminateConfig(benchmarks=False),
            tokenizer_vocab_size=300,
            chunk_bytes=100_000,
            cache=str(tmp_path / str(number)),
        )
        tracemalloc.start()
        built(config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = (tmp_path / "1200.jsonl").stat().st_size - (tmp_path / "300.jsonl").stat().st_size
    assert grown > 1.3e6
    assert peaks[2] - peaks[1] < (RECORD + SIDE) * 900


def test_the_bound_is_what_the_readme_says():
    """20 M records of two sides: the columns of the records or those of the sides, and the processes beside them."""
    one = memory_bound(20_000_000, 40_000_000, 1)
    assert one == (1000 << 20) + (512 << 20) + 180 * 40_000_000
    assert memory_bound(20_000_000, 40_000_000, 8) == one + 8 * (1000 << 20)
