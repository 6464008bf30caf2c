"""Packing documents into rows: osim_core's packer against TRL's pack_dataset, same lengths, one run.

    python -m benchmarks packing [--documents 200000] [--repeats 5] [--capacities 2048 8192 16384 32768]

Lengths are drawn like a corpus of conversations: log-normal around a mean of 467 tokens, cut to [8, capacity].
TRL is run as it comes (it packs each 1,000 documents by themselves) and with one global batch. The comparison is not
even: TRL also moves the tokens into their rows (one-byte tokens here, to keep that small), while osim_core decides
which document goes where and reads the tokens later from a memory map; TRL's public interface cannot separate the two.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.ledger import quantiles, record
from osim_core.corpus.pack import pack_documents

MEAN_LENGTH = 467
SIGMA = 1.0  # of log length: half the documents below 283 tokens, one in a hundred above 2,900


def main(argv: list[str]) -> None:
    """Measure every packer at every capacity, write the rows and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks packing")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5, help="of osim_core; TRL runs once")
    parser.add_argument("--capacities", type=int, nargs="+", default=[2_048, 8_192, 16_384, 32_768])
    parser.add_argument("--skip-trl", action="store_true", help="for millions of documents")
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)

    table = Table("capacity", "packer", "ns / document", "CPU ns / document", "rows", "padding")
    for capacity in arguments.capacities:
        lengths_N = draw_lengths(arguments.documents, capacity)
        packers: dict[str, tuple[Callable[[], int], int]] = {
            "osim_core": (lambda: len(pack_documents(lengths_N, capacity)), arguments.repeats)  # noqa: B023
        }
        if not arguments.skip_trl:
            packers["trl bfd, batches of 1000"] = (trl_packer(lengths_N, capacity, batch_size=1_000), 1)
            packers["trl bfd, one batch"] = (trl_packer(lengths_N, capacity, batch_size=lengths_N.size), 1)
        for name, (run, repeats) in packers.items():
            rows, wall, cpu = measure(run, repeats)
            padding = 1.0 - int(lengths_N.sum()) / (rows * capacity)
            timings = quantiles(wall)
            per_document = timings["p50_s"] / lengths_N.size * 1e9
            cpu_per_document = quantiles(cpu)["p50_s"] / lengths_N.size * 1e9
            case = {
                "packer": name,
                "documents": lengths_N.size,
                "capacity": capacity,
                "dtype": "int32",
                "mean_length": float(lengths_N.mean()),
                "threads": 1,
            }
            result = {
                "ns_per_document": per_document,
                "cpu_ns_per_document": cpu_per_document,
                "rows": rows,
                "padding_share": padding,
                **timings,
            }
            record("packing", case, result, arguments.out)
            table.add_row(
                f"{capacity:,}",
                name,
                f"{per_document:,.0f}",
                f"{cpu_per_document:,.0f}",
                f"{rows:,}",
                f"{padding:.4%}",
            )
    Console().print(table)


def draw_lengths(documents: int, capacity: int) -> np.ndarray:
    """Log-normal document lengths, int32 [N], the same for every call with the same arguments."""
    normal_N = np.random.default_rng(467).standard_normal(documents)
    lengths_N = np.exp(np.log(MEAN_LENGTH) - SIGMA**2 / 2 + SIGMA * normal_N)
    return np.clip(lengths_N, 8, capacity).astype(np.int32)


def trl_packer(lengths_N: np.ndarray, capacity: int, batch_size: int) -> Callable[[], int]:
    """A function that packs with TRL and returns the number of rows; the data set is built outside the timing."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset

    offsets = np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)])
    tokens = pa.array(np.zeros(offsets[-1], dtype=np.uint8))
    dataset = datasets.Dataset(pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, tokens)}))
    dataset = dataset.with_format("arrow")
    datasets.disable_caching()
    datasets.disable_progress_bars()
    settings = {"batch_size": batch_size, "keep_in_memory": True}
    pack_dataset(
        dataset.select(range(min(1_000, len(dataset)))), capacity, strategy="bfd", map_kwargs=settings
    )  # warm up
    return lambda: len(pack_dataset(dataset, capacity, strategy="bfd", map_kwargs=settings))


def measure(run: Callable[[], int], repeats: int) -> tuple[int, list[float], list[float]]:
    """The function's answer, then wall and CPU seconds of each run; the first of several runs is a warm-up.

    CPU time is what compares on a machine that others use too; both packers are single-threaded.
    """
    wall, cpu = [], []
    for _ in range(repeats + (repeats > 1)):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        rows = run()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return rows, wall[repeats > 1 :], cpu[repeats > 1 :]
