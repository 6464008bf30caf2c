"""Command line of near-duplicate detection; prints one JSON line. See osim_core/corpus/dedup/run.py."""

import argparse
import json
import sys
from pathlib import Path

from osim_core.corpus.dedup.run import LONGEST_ROW, Settings, deduplicate


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m osim_core.corpus.dedup", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="IN.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet")
    parser.add_argument("--text-field", default="text", help="top-level string of a row to compare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8, help="Jaccard index of a duplicate, at least 0.7")
    parser.add_argument("--bad-rows", choices=("stop", "quarantine"), default="stop")
    parser.add_argument("--longest-row", type=int, default=LONGEST_ROW, help="bytes of a line")
    parser.add_argument("--mask-roles", action="store_true", help="compare without role tags at line starts")
    parser.add_argument(
        "--mask-prompts", type=int, default=0, metavar="ROWS", help="and without first lines that so many rows share"
    )
    parser.add_argument("--store", type=Path, default=None, help="folder of signatures to compare with and add to")
    arguments = vars(parser.parse_args(argv))
    source, out = arguments.pop("source"), arguments.pop("out")
    try:
        if not out.parent.is_dir():
            raise ValueError(f"{out.parent}: no such folder for --out")
        print(json.dumps(deduplicate(source, out, Settings(**arguments))))
    except ValueError as error:
        print(f"dedup: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
