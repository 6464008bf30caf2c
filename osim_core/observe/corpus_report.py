"""report.html of a corpus."""

from pathlib import Path


def write_corpus_report(run: Path, corpus: Path) -> Path:
    return run
