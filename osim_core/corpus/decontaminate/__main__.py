"""Command line of decontamination; prints one JSON line. See osim_core/corpus/decontaminate/__init__.py."""

import argparse
import json
import sys
from pathlib import Path

from osim_core.corpus import decontaminate as package
from osim_core.observe.progress import Stages


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m osim_core.corpus.decontaminate", description=package.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("input", type=Path, metavar="IN.jsonl")
    parser.add_argument("--against", type=Path, required=True, metavar="ITEMS.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--source-field", default="data_source", help="names the source of a row, for the report")
    arguments = vars(parser.parse_args(argv))
    files = [arguments.pop(name) for name in ("input", "against", "out")]
    try:
        counts = package.decontaminate(*files, **arguments, report=Stages.on_stderr("decontaminate"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
