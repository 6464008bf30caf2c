"""Near-duplicate detection: ours, verified, against rensa and datasketch, unverified, on one corpus with known truth.

    python -m benchmarks dedup [--documents 200000] [--peer-documents 20000] [--repeats 5]

The corpus is benchmarks/dialogue_corpus.py's; its exact join takes minutes the first time and is kept in data/dedup.
All tools get texts in memory (no JSON) and the same parameters: word 5-grams, 21 bands of 6 rows. Ours goes from an
Arrow column to verified clusters with survivors and their exact indices; the peers, at their fastest documented
route, from Python strings to unverified clusters, on the first `--peer-documents` texts (ours is timed on those as
well). Rates are per CPU second, because the machine is shared. Kernels are compared on pre-hashed shingles.
"""

import argparse
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.dialogue_corpus import cached, corpus_digest
from benchmarks.ledger import ROOT, quantiles, record
from osim_core import _dedup
from osim_core.corpus.dedup import find_duplicates

WORD = re.compile(r"\w+")
BANDS, ROWS = _dedup.BANDS, _dedup.ROWS
THRESHOLD = 0.8


def main(argv: list[str]) -> None:
    """Measure, write the rows, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dedup")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--peer-documents", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5, help="of ours; the peers run once, their kernels too")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="another file for the rows")
    arguments = parser.parse_args(argv)

    texts, pairs, jaccard = cached(ROOT / "data" / "dedup", arguments.documents)
    few = texts[: arguments.peer_documents]
    case = {"dtype": "utf-8", "corpus": corpus_digest(texts)[:16], "bands": BANDS, "rows": ROWS, "threshold": THRESHOLD}
    runs: list[tuple[str, list[str], int, Callable[[list[str]], Callable[[], np.ndarray]], int]] = [
        ("osim_core", texts, 1, ours(threads=1), arguments.repeats),
        ("osim_core", texts, 2, ours(threads=2), arguments.repeats),
        ("osim_core scalar", texts, 1, ours(threads=1, scalar=True), min(arguments.repeats, 2)),
        ("osim_core", few, 1, ours(threads=1), arguments.repeats),
    ]
    if not arguments.skip_peers:
        runs += [("rensa", few, 1, rensa, 1), ("datasketch", few, 1, datasketch, 1)]
    table = Table("tool", "documents", "threads", "MB / CPU s", "MB / s", "edge recall", "precision", "removed")
    for tool, documents, threads, prepare, repeats in runs:
        size = sum(len(text.encode()) for text in documents)
        survivor, wall, cpu = measure(prepare(documents), repeats)
        chosen = (pairs < len(documents)).all(axis=1)
        quality = judge(survivor, pairs[chosen], jaccard[chosen])
        result = {
            "mb_per_cpu_second": size / 1e6 / quantiles(cpu)["p50_s"],
            "mb_per_second": size / 1e6 / quantiles(wall)["p50_s"],
            "cpu_p50_s": quantiles(cpu)["p50_s"],
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **quality,
            **quantiles(wall),
        }
        record(
            "dedup",
            case | {"tool": tool, "documents": len(documents), "bytes": size, "threads": threads},
            result,
            arguments.out,
        )
        table.add_row(
            tool,
            f"{len(documents):,}",
            str(threads),
            f"{result['mb_per_cpu_second']:.1f}",
            f"{result['mb_per_second']:.1f}",
            f"{quality['edge_recall']:.5f}",
            f"{quality['precision']:.4f}",
            f"{quality['removed']:,}",
        )
    Console().print(table)
    kernels(few, case, arguments)


def ours(threads: int, scalar: bool = False) -> Callable[[list[str]], Callable[[], np.ndarray]]:
    def prepare(texts: list[str]) -> Callable[[], np.ndarray]:
        column = pa.array(texts, pa.large_string())
        return lambda: find_duplicates(column, threshold=THRESHOLD, threads=threads, scalar=scalar).survivor

    return prepare


def python_shingles(text: str) -> set[str]:
    """What the peers' users write. A text without a 5-gram stands for itself."""
    words = WORD.findall(text.lower())
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)} or {text}


def rensa(texts: list[str]) -> Callable[[], np.ndarray]:
    """R-MinHash on token sets, inserted and queried in bulk."""
    from rensa import RMinHash, RMinHashLSH

    def run() -> np.ndarray:
        hashes = RMinHash.from_token_sets([list(python_shingles(text)) for text in texts], BANDS * ROWS, 42)
        index = RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS)
        index.insert_many(hashes)
        return connect(index.query_all(hashes))

    return run


def datasketch(texts: list[str]) -> Callable[[], np.ndarray]:
    """The generator of MinHashes that its documentation recommends, with its default hash."""
    from datasketch import MinHash, MinHashLSH

    def run() -> np.ndarray:
        index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        hashes = list(
            MinHash.generator(([s.encode() for s in python_shingles(t)] for t in texts), num_perm=BANDS * ROWS, seed=42)
        )
        with index.insertion_session() as session:
            for row, value in enumerate(hashes):
                session.insert(row, value)
        return connect(index.query(value) for value in hashes)

    return run


def connect(neighbours) -> np.ndarray:
    """int64 [N] smallest row of each row's component, from the lists of candidates of every row."""
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    lists = list(neighbours)
    parent.extend(range(len(lists)))
    for row, others in enumerate(lists):
        for other in others:
            a, b = root(row), root(other)
            parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(len(parent))])


def judge(survivor: np.ndarray, pairs: np.ndarray, jaccard: np.ndarray) -> dict[str, float]:
    """Share of true pairs in one cluster; share of clustered texts that have a true partner in their cluster."""
    joined = survivor[pairs[:, 0]] == survivor[pairs[:, 1]]
    partner = np.zeros(survivor.size, bool)
    partner[pairs[joined].ravel()] = True
    shared = np.bincount(survivor, minlength=survivor.size)[survivor] > 1
    border = jaccard < 0.85
    return {
        "pairs": len(pairs),
        "edge_recall": float(joined.mean()) if len(pairs) else 1.0,
        "edge_recall_80_85": float(joined[border].mean()) if border.any() else 1.0,
        "precision": float(partner[shared].mean()) if shared.any() else 1.0,
        "removed": int((survivor != np.arange(survivor.size)).sum()),
    }


def kernels(texts: list[str], case: dict, arguments: argparse.Namespace) -> None:
    """MinHash alone on pre-hashed shingles: permutations times shingles a CPU second, and the estimator's error."""
    sets = [_dedup.shingles(text.encode()) for text in texts]
    sets = [s for s in sets if s.size]
    shingles = np.concatenate(sets)
    offsets = np.concatenate([[0], np.cumsum([s.size for s in sets])]).astype(np.int64)
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "osim_core": (_dedup.LANES, lambda: _dedup.minhash(shingles, offsets))
    }
    if not arguments.skip_peers:
        from rensa import RMinHash

        wide, borders = shingles.astype(np.uint64), offsets.astype(np.uint64)
        contenders["rensa"] = (
            _dedup.LANES,
            lambda: RMinHash.digest_matrix_from_flat_token_hashes(wide, borders, _dedup.LANES, 42),
        )
    table = Table("MinHash kernel", "lanes", "G lane * shingle / CPU s", "rmse / ideal, J = 0.5 to 0.9")
    for tool, (lanes, run) in contenders.items():
        _, wall, cpu = measure(run, arguments.repeats)
        rate = lanes * shingles.size / quantiles(cpu)["p50_s"] / 1e9
        result = {"g_lane_shingles_per_cpu_second": rate, **quantiles(wall)}
        if tool == "osim_core":
            result["rmse_over_ideal"] = estimator_error()
        shown = f"{result['rmse_over_ideal']:.3f}" if "rmse_over_ideal" in result else ""
        table.add_row(tool, str(lanes), f"{rate:.1f}", shown)
        about = {"tool": tool, "part": "MinHash kernel", "lanes": lanes, "shingles": int(shingles.size)}
        record("dedup", case | {"dtype": "uint32"} | about, result, arguments.out)
    Console().print(table)


def estimator_error(pairs: int = 4_000, size: int = 110) -> float:
    """Largest ratio of the estimate's root mean square error to sqrt(J (1 - J) / K), over five indices."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for asked in (0.5, 0.6, 0.7, 0.8, 0.9):
        common = round(2 * size * asked / (1 + asked))
        values = rng.integers(0, 2**32, (pairs, 2 * size - common), dtype=np.uint32)
        both = np.stack([values[:, :size], values[:, size - common :]], axis=1)
        lanes = _dedup.minhash(both.ravel(), np.arange(2 * pairs + 1, dtype=np.int64) * size)
        true = common / (2 * size - common)
        error = (lanes[::2] == lanes[1::2]).mean(axis=1) - true
        worst = max(worst, float(np.sqrt((error**2).mean() / (true * (1 - true) / _dedup.LANES))))
    return worst


def measure(run: Callable[[], object], repeats: int) -> tuple[object, list[float], list[float]]:
    """The last answer, then wall and CPU seconds of each run; the first of several runs is a warm-up."""
    wall, cpu = [], []
    for _ in range(repeats + (repeats > 1)):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        answer = run()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return answer, wall[repeats > 1 :], cpu[repeats > 1 :]
