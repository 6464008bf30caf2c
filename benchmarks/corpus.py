"""Records and megabytes per CPU second of each stage of the corpus build, and the memory of its process.

    python -m benchmarks corpus [--rows 20000] [--out FILE]

Two builds from nothing, each in a process of its own so that its peak memory is its own: all packaged dialogue (both
sides of a chat are a document each), and `--rows` generated dialogues (benchmarks/dialogue_corpus.py). One process and
its CPU seconds, so that a busy machine does not show; packaged benchmarks are searched for. MB are of the JSON that the
first stage writes. There is no peer in this run: the clustering has its own benchmark (dedup), as have packing and the
loader.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.dialogue_corpus import make_corpus
from benchmarks.ledger import ROOT, record


def main(argv: list[str]) -> None:
    """Run both builds, record a row for each, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    table = Table("corpus", "stage", "CPU seconds", "records / CPU s", "MB / CPU s", title="one process")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {
            "packaged": (),
            "generated": ("--packaged", "debates", "--rows", str(write_rows(folder / "rows.jsonl", arguments.rows))),
        }
        for case, options in cases.items():
            result = measure(folder / case, *options, "--roles", "generated*", "keep", "--tokenizer-vocab-size", "4096")
            stages = result.pop("stages")
            for stage, seconds in stages.items():
                speed = (f"{result['records'] / seconds:,.0f}", f"{result['megabytes'] / seconds:,.1f}")
                table.add_row(case, stage, f"{seconds:.2f}", *speed)
            result |= {f"{stage}_records_per_cpu_second": result["records"] / s for stage, s in stages.items()}
            result |= {f"{stage}_mb_per_cpu_second": result["megabytes"] / s for stage, s in stages.items()}
            row = record(
                "corpus",
                {"dtype": "utf-8", "corpus": case, "processes": 1, "rows": arguments.rows},
                result,
                arguments.out,
            )
            table.add_row(case, "all", f"{sum(stages.values()):.2f}", f"{row['result']['tokens']:,} tokens", "")
    Console().print(table)


def measure(folder: Path, *options: str) -> dict:
    """Build in `folder`; what the run's summary says, and CPU seconds by stage."""
    folder.mkdir()
    places = ("--cache", str(folder / "data"), "--runs", str(folder / "runs"), "--processes", "1")
    command = [sys.executable, str(ROOT / "recipes" / "corpus.py"), "packaged", *options, *places]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the build failed: {done.stderr.strip()}")
    summary = json.loads((folder / "runs" / "corpus" / "latest" / "summary.json").read_text())
    return {
        "records": summary["records"],
        "megabytes": summary["bytes"] / 1e6,
        "tokens": summary["train/tokens"] + summary["validation/tokens"],
        "stages": {name.partition("/")[2]: s for name, s in summary.items() if name.startswith("cpu_seconds/")},
        "peak_rss_mb": summary["peak_rss_of_one_process_mb"],
        "memory_bound_mb": summary["memory_bound_mb"],
        "load_average": os.getloadavg()[0],
    }


def write_rows(path: Path, count: int) -> Path:
    """The generated dialogues as rows of OdysSim's layout, a line a turn."""
    with path.open("w") as file:
        for number, text in enumerate(make_corpus(count)):
            turns = [line.partition(": ")[2] or line for line in text.splitlines()]
            messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
            if len(messages) > 1:
                row = {"data_source": "generated", "messages": messages, "group": str(number % 1000)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
