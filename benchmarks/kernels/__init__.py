"""Kernels: speed beside the peers on a GPU, each contender proved right first; without a GPU, the offline report.

    python -m benchmarks kernels [op ...] [--offline] [--tune] [--out FILE]

Rows go to benchmarks/results/kernels.jsonl, each with the rung of its figures: "measured on <GPU>" or "offline
estimate". An op is a folder of kernels/ with an audit.py and a file here with its problem (inputs, truth, peers).
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.ledger import record
from osim_kernels.proof import audit

OPS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem in audit.ops())


def main(argv: list[str]) -> None:
    """Measure or report the ops, write the rows and print tables. Raises ValueError for an unknown op."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels")
    parser.add_argument("ops", nargs="*", metavar="op", help=f"default: all ({', '.join(OPS)})")
    parser.add_argument("--offline", action="store_true", help="the offline report even where there is a GPU")
    parser.add_argument("--tune", action="store_true", help="also time every candidate configuration (GPU)")
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.ops) - set(OPS):
        raise ValueError(f"no kernel benchmark of {', '.join(sorted(unknown))}; there are: {', '.join(OPS)}")
    offline = arguments.offline or not torch.cuda.is_available()
    if arguments.tune and offline:
        raise ValueError("--tune times kernels and needs a GPU")

    problems = {op: importlib.import_module(f"benchmarks.kernels.{op}") for op in arguments.ops or OPS}
    console = Console(width=None if sys.stdout.isatty() else 200)
    if offline:
        from benchmarks.kernels import offline_report, tile_counts

        rows = [row for op, module in problems.items() for row in offline_report.rows(op, module)]
        console.print(*offline_report.tables(rows))
        if "packed_attention" in problems:
            counted = tile_counts.rows()
            console.print(tile_counts.table(counted))
            rows += counted
    else:
        from benchmarks.kernels import measure

        clock = measure.EventClock()
        peaks = measure.measured_peaks(clock)
        rows = [
            row
            for module in problems.values()
            for problem in module.problems(torch.device("cuda"))
            for row in measure.rows(problem, clock, peaks, tune=arguments.tune)
        ]
        console.print(measure.table(rows))
    for case, result in rows:
        record("kernels", case, result, arguments.out)
