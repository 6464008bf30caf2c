"""Dedup sketches on a GPU: what nvcc's code allows, and, on a GPU, its rate against one CPU thread of the same machine.

    python -m benchmarks dedup_cuda --offline      # no GPU: registers, occupancy, instructions, ceilings
    python -m benchmarks dedup_cuda                # on a GPU: the columns are compared first, then timed

Ceilings are targets: they assume that one resource is the only limit (issue slots, or one of two integer pipes) and are
counted from machine code; memory waits, launches and tails are outside them. The loop over lanes is counted by itself;
the rest of a text by the constants below, read off the listing of nvcc 13.0 for sm_90a along the path of ASCII text.
"""

import argparse
import re
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.dialogue_corpus import corpus_digest, make_corpus
from benchmarks.ledger import quantiles, record
from osim_core import _dedup
from osim_core.corpus.dedup import Sketches, text_buffers
from osim_kernels.proof import nvcc
from osim_kernels.proof.occupancy import STREAMING_MULTIPROCESSORS

THRESHOLD = 0.8
CLOCK = 1.755e9  # H100 SXM under load, as in roofline.py's peaks
QUARTERS = 4  # of an SM, each issues one instruction a cycle
WARP = 32
WARPS_PER_BLOCK = 4
SHINGLES_PER_TURN = 4  # of the loop over lanes, on four lanes a thread
PCIE = 55e9  # bytes a second, PCIe 5 x16 in practice: an assumption
PAPER_RATE = 14.8e12  # lanes x shingles a second, if a lane cost one multiplication and nothing else
LISTED = "13.0"  # the nvcc whose listing gives these issue slots:
SLOTS_PER_TEXT = 400  # start, exact hash's end, band keys, digits
SLOTS_PER_CHUNK = 343  # 512 bytes: classify, scan, token borders
SLOTS_PER_ROUND = 200  # up to 32 tokens: their hashes, their shingles
SLOTS_PER_TOKEN = 7  # the exact hash's chains, 14 for every other token of a round


def main(argv: list[str]) -> None:
    """Measure or count, write the rows, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dedup_cuda")
    parser.add_argument("--offline", action="store_true", help="machine code only")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)
    if find_spec("osim_core._cuda") is None:
        raise ValueError("osim_core._cuda is not built: put nvcc on PATH and run make setup")
    if arguments.offline:
        offline(make_corpus(2_000), arguments.out)
    else:
        measured(make_corpus(arguments.documents), arguments.repeats, arguments.out)


def offline(texts: list[str], out: Path | None) -> None:
    """One row a kernel and architecture; ceilings for sm_90a."""
    table = Table(
        "kernel", "arch", "registers", "shared", "warps / SM", "loop", "G lane * shingle / s", "GB / s of text"
    )
    module = Path(find_spec("osim_core._cuda").origin)
    for architecture, minimum in (("sm_90a", "VIMNMX3"), ("sm_80", "IMNMX")):
        for kernel in nvcc.kernels(module, architecture):
            if "sketch_kernel" not in kernel.name:
                continue
            loop = kernel.loop_around(minimum)
            result = {
                "registers": kernel.resources.registers,
                "shared_bytes": kernel.shared_bytes,
                "spills": kernel.spills,
                "loop_instructions": len(loop.instructions),
                "slots_per_shingle_and_warp": len(loop.instructions) / SHINGLES_PER_TURN,
            }
            if architecture == "sm_90a":
                result["warps_per_sm"] = kernel.occupancy(WARPS_PER_BLOCK).warps
                result |= ceilings(loop.instructions, [text for text in texts if text.isascii()])
            name = "long texts" if "ILb1E" in kernel.name else "short texts"
            case = {
                "kernel": name,
                "dtype": "uint16",
                "architecture": architecture,
                "rung": "target",
                "listed": f"nvcc {LISTED}",
            }
            record("dedup_cuda", case, result, out)
            table.add_row(
                name,
                architecture,
                str(result["registers"]),
                f"{kernel.shared_bytes:,}",
                str(result.get("warps_per_sm", "")),
                str(len(loop.instructions)),
                f"{result['lane_shingles_per_second'] / 1e9:,.0f}" if "warps_per_sm" in result else "",
                f"{result['text_bytes_per_second'] / 1e9:.0f}" if "warps_per_sm" in result else "",
            )
    Console().print(table)
    Console().print(
        f"target, not measured; for comparison: {PAPER_RATE / 1e9:,.0f} on paper, PCIe {PCIE / 1e9:.0f} GB/s"
    )


def ceilings(loop: tuple[nvcc.Instruction, ...], texts: list[str]) -> dict[str, float]:
    """Most lanes x shingles a second by the loop's tightest resource; most bytes of ASCII texts by issue slots."""
    cycles = nvcc.issue_cycles(loop)
    quarters = STREAMING_MULTIPROCESSORS * QUARTERS * CLOCK
    lanes = WARP * SHINGLES_PER_TURN * _dedup.LANES // WARP
    turns = tokens = rounds = chunks = 0
    for text in texts:
        ends = [match.end() for match in re.finditer(r"\w+", text)]
        counts = np.bincount(np.array(ends, np.int64) // 512, minlength=len(text) // 512 + 1)
        chunks += counts.size
        rounds += int(np.ceil(counts / WARP).sum())
        tokens += len(ends)
        turns += -(-max(0, len(ends) - 4) // SHINGLES_PER_TURN)
    slots = SLOTS_PER_TEXT * len(texts) + SLOTS_PER_CHUNK * chunks
    slots += SLOTS_PER_ROUND * rounds + SLOTS_PER_TOKEN * tokens + len(loop) * turns
    size = sum(map(len, texts))
    return {
        **{f"loop_cycles_{name}": value for name, value in cycles.items()},
        "lane_shingles_per_second": lanes * quarters / max(cycles.values()),
        "paper_lane_shingles_per_second": PAPER_RATE,
        "slots_per_text_byte": slots / size,
        "share_of_loop": len(loop) * turns / slots,
        "share_of_exact_hash": SLOTS_PER_TOKEN * tokens / slots,
        "text_bytes_per_second": size * quarters / slots,
        "pcie_bytes_per_second": PCIE,
    }


def measured(texts: list[str], repeats: int, out: Path | None) -> None:
    """Equality, then seconds of one CPU thread, of the GPU from host memory, and of the GPU alone."""
    from osim_core import _cuda
    from osim_core.corpus.dedup.cuda import CudaSketcher, order_rows, require_gpu

    require_gpu()
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    sketcher = CudaSketcher(THRESHOLD, threads=2)

    def on_cpu() -> Sketches:
        return Sketches(*_dedup.sketch(data, offsets, THRESHOLD, 1, signatures=False))

    mine, theirs = sketcher(data, offsets), on_cpu()
    wrong = [name for name in Sketches.__slots__ if not np.array_equal(getattr(mine, name), getattr(theirs, name))]
    if wrong:
        raise ValueError(f"the GPU's columns differ from the CPU's: {', '.join(wrong)}")
    rows, long_rows = order_rows(offsets, _cuda.least_wide_bytes(THRESHOLD))
    padded = np.zeros(-(-data.size // 16) * 16, np.uint8)
    padded[: data.size] = data
    resident = [torch.from_numpy(array).cuda() for array in (padded, offsets.copy(), rows)]

    def on_gpu() -> None:
        _cuda.sketch_texts(*resident, len(long_rows), THRESHOLD, False)
        torch.cuda.synchronize()

    runs = {"cpu, one thread": on_cpu, "gpu, host to host": lambda: sketcher(data, offsets), "gpu, resident": on_gpu}
    about = {"corpus": corpus_digest(texts)[:16], "documents": len(texts), "bytes": int(data.size), "dtype": "utf-8"}
    table = Table("what", "GB / s", "x one CPU thread")
    seconds: dict[str, list[float]] = {}
    for name, run in runs.items():
        run()
        seconds[name] = [timed(run) for _ in range(repeats)]
        ratio = quantiles(seconds["cpu, one thread"])["p50_s"] / quantiles(seconds[name])["p50_s"]
        rate = data.size / quantiles(seconds[name])["p50_s"]
        result = {"bytes_per_second": rate, "ratio_to_one_cpu_thread": ratio, **quantiles(seconds[name])}
        record("dedup_cuda", about | {"what": name}, result, out)
        table.add_row(name, f"{rate / 1e9:.2f}", f"{ratio:.1f}")
    Console().print(table)


def timed(run) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
