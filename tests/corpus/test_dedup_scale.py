"""A 10 GB file goes through deduplication in a process of less than 4 GB. Needs 12 GB of disk."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.dialogue_corpus import make_corpus
from osim_core.corpus.dedup import find_duplicates

ROOT = Path(__file__).parent.parent.parent
TARGET_BYTES = 10_000_000_000
VOWELS = b"aeiouAEIOU"


def write_corpus(path: Path, texts: list[str], target: int) -> int:
    """The corpus again and again, each time in another language: its vowels are exchanged. Returns the copies."""
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    with path.open("wb") as file:
        for copies, vowels in enumerate(itertools.permutations(b"aeiou"), 1):
            table = bytes.maketrans(VOWELS, bytes(vowels) + bytes(vowels).upper())
            key = b'{"text":'.translate(table)
            file.write(rows.translate(table).replace(key, b'{"text":'))
            if copies * len(rows) >= target:
                return copies
    raise ValueError("not enough permutations")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_gigabytes_in_four(tmp_path):
    texts = make_corpus(200_000)
    copies = write_corpus(tmp_path / "in.jsonl", texts, TARGET_BYTES)
    expected = int(find_duplicates(texts).keep.sum())
    command = [sys.executable, "-m", "osim_core.corpus.dedup", "in.jsonl", "--out", "out.parquet", "--threads", "2"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["documents"] == copies * len(texts) and figures["peak_rss_mb"] < 4_000
    kept = pq.read_table(tmp_path / "out.parquet", columns=["keep"])["keep"].to_numpy().reshape(copies, -1).sum(axis=1)
    # Chinese rows and rows without vowels are the same in every language, so later copies keep fewer
    assert kept[0] == expected and (kept[1:] <= expected).all() and (kept[1:] >= 0.94 * expected).all()
