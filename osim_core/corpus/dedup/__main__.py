"""Near-duplicates of JSON Lines files; prints one JSON line. See osim_core/corpus/dedup/run.py.

python -m osim_core.corpus.dedup a.jsonl b.jsonl --out OUT.parquet --priority-field source --priorities books,chats
"""

import argparse
import json
import sys
from pathlib import Path

from osim_core.corpus.dedup.run import deduplicate
from osim_core.corpus.dedup.settings import LONGEST_ROW, Settings
from osim_core.observe.progress import Stages


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m osim_core.corpus.dedup", description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", metavar="IN.jsonl", help="rows are numbered over all of them")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet")
    parser.add_argument("--text-field", default="text", help="top-level string of a row to compare")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where texts are sketched")
    parser.add_argument("--threshold", type=float, default=0.8, help="Jaccard index of a duplicate, at least 0.7")
    parser.add_argument("--priority-field", help="top-level string that decides who survives, such as source")
    parser.add_argument(
        "--priorities",
        metavar="A,B,C",
        help='its values, first choice first, or a .json of {value: number, "*": number}',
    )
    parser.add_argument("--bad-rows", choices=("stop", "quarantine"), default="stop")
    parser.add_argument("--longest-row", type=int, default=LONGEST_ROW, help="bytes of a line")
    parser.add_argument("--mask-roles", action="store_true", help="compare without role tags at line starts")
    parser.add_argument(
        "--mask-prompts", type=int, default=0, metavar="ROWS", help="and without first lines that so many rows share"
    )
    parser.add_argument("--store", type=Path, default=None, help="folder of signatures to compare with and add to")
    arguments = vars(parser.parse_args(argv))
    sources, out = arguments.pop("sources"), arguments.pop("out")
    try:
        if not out.parent.is_dir():
            raise ValueError(f"{out.parent}: no such folder for --out")
        arguments["priorities"] = read_priorities(arguments["priorities"])
        figures = deduplicate(sources, out, Settings(**arguments), Stages.on_stderr("dedup"))
    except ValueError as error:
        print(f"dedup: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


def read_priorities(text: str | None) -> dict[str, int] | None:
    """{value: number} of "a,b,c" (0, 1, 2) or of a .json file. Raises ValueError naming what is wrong."""
    if text is None:
        return None
    if not text.endswith(".json"):
        names = text.split(",")
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(f"--priorities {text}: a value is empty or there twice")
        return {name: number for number, name in enumerate(names)}
    try:
        numbers = json.loads(Path(text).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"--priorities {text}: {error}") from error
    if not isinstance(numbers, dict):
        raise ValueError(f"--priorities {text}: must hold an object of {{value: number}}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
