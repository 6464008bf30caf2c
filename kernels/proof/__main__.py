"""Audit the kernels' machine code for an H100: `python -m osim_kernels.proof [op ...] [--slow] [--update]`.

Exit status 1 when a case fails. --update records the figures as golden rows; spills, TF32 and missed expectations fail
all the same, and are not recorded.
"""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from osim_kernels.proof import audit


def main(argv: list[str]) -> int:
    """Audit the ops, print a table and the faults; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m osim_kernels.proof", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="op", help=f"default: all ({', '.join(audit.ops()) or 'none yet'})")
    parser.add_argument("--slow", action="store_true", help="also the cases marked slow")
    parser.add_argument("--update", action="store_true", help="write golden.json")
    arguments = parser.parse_args(argv)

    results = []
    for op in arguments.ops or audit.ops():
        golden = audit.golden_rows(op)
        done = []
        for case in audit.cases(op):
            if arguments.slow or not case.slow:
                rows = {} if arguments.update else golden
                done.append(audit.audit(op, case, rows))
                if arguments.update:
                    done[-1].faults = [fault for fault in done[-1].faults if "no golden row" not in fault]
        if arguments.update:
            audit.write_golden(op, [result for result in done if not result.faults])
        results += done
    show(results)
    return 1 if any(result.faults for result in results) else 0


def show(results: list[audit.Result]) -> None:
    """Print what was compiled, then what is wrong with it."""
    columns = ("op", "case", "kernel", "regs", "shared", "spills", "blocks/SM", "HGMMA", "TMA", "cp.async")
    table = Table(*columns, "128-bit", "setmaxnreg", "loop")
    for result in results:
        for name, kernel in result.kernels.items():
            count = kernel.counts
            table.add_row(
                result.op,
                result.case,
                name,
                f"{kernel.registers} x {kernel.warps}w",
                f"{kernel.shared_bytes:,}",
                str(count["ldl"] + count["stl"]),
                f"{kernel.blocks_per_sm} ({kernel.limiter})",
                str(count["hgmma"]),
                f"{count['utmaldg']}/{count['utmastg']}",
                str(count["ldgsts"]),
                f"{count['ldg_128']}/{count['stg_128']}",
                str(count["usetmaxreg"]),
                " ".join(str(length) for length, _ in kernel.loops),
            )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    for result in results:
        for fault in result.faults:
            print(f"FAIL {result.op} / {result.case}: {fault}")
    failed = sum(bool(result.faults) for result in results)
    print(f"{len(results)} cases, {failed} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
