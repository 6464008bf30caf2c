"""Score tiles that packed attention computes, against what is needed and what others compute at the same tile size.

Per head, forward, rows of 16,384 tokens. `allowed` is the causal minimum of each document alone plus one diagonal tile
a document; `dense` is a causal kernel that ignores documents and masks them out; `flex` is FlexAttention's block mask.
Exact counts on the CPU, no estimate.
"""

from itertools import pairwise

import numpy as np
from rich.table import Table

from benchmarks.packing import draw_lengths
from osim_core.corpus.pack import pack_documents
from osim_kernels.packed_attention.tiles import build_tile_plan, causal_tile_minimum

CAPACITY = 16_384
TILES = ((128, 128), (128, 64), (64, 64))
DISTRIBUTIONS = ("odyssim", "uniform")
DOCUMENTS = 1_000


def lengths_of(distribution: str, documents: int = DOCUMENTS) -> np.ndarray:
    """int32 [N]: log-normal of mean 467 as OdysSim's conversations, or uniform over 16 to 2,048."""
    if distribution == "odyssim":
        return draw_lengths(documents, CAPACITY)
    if distribution == "uniform":
        return np.random.default_rng(467).integers(16, 2_049, documents).astype(np.int32)
    raise ValueError(f"no distribution of lengths {distribution!r}; there are: {', '.join(DISTRIBUTIONS)}")


def packed_rows(lengths_N: np.ndarray) -> list[list[int]]:
    """Document lengths of each row of CAPACITY tokens, as osim_core packs them."""
    packed = pack_documents(lengths_N, CAPACITY)
    return [[int(lengths_N[document]) for document in packed[row]] for row in range(len(packed))]


def count(lengths: list[int], block_q: int, block_k: int, capacity: int = CAPACITY) -> dict[str, int]:
    """Tiles of one row, by method."""
    borders = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    spans = [(start, stop, start, stop, 0) for start, stop in pairwise(borders)]
    minimum = causal_tile_minimum(lengths, block_q, block_k)
    return {
        "ours": build_tile_plan(spans, capacity, capacity, block_q, block_k).forward_tiles,
        "minimum": minimum,
        "allowed": minimum + len(lengths),
        "flex": flex_tiles(borders, block_q, block_k),
        "dense": causal_tile_minimum([capacity], block_q, block_k),
    }


def flex_tiles(borders: list[int], block_q: int, block_k: int) -> int:
    """Blocks that FlexAttention's document-causal block mask keeps, partial and full; its grid ignores borders.

    The keys of a block of queries run from the start of its first row's document to its last row. Counted so, because
    create_block_mask evaluates every pair of a row; a test holds the two together.
    """
    starts_Q = np.arange(0, borders[-1], block_q)
    last_Q = np.minimum(starts_Q + block_q, borders[-1]) - 1
    first_key_Q = np.asarray(borders)[np.searchsorted(borders, starts_Q, side="right") - 1]
    return int((last_Q // block_k - first_key_Q // block_k + 1).sum())


def rows(row_limit: int = 8) -> list[tuple[dict, dict]]:
    """(case, result) for each distribution and tile size, summed over an even sample of a packed corpus."""
    found = []
    for distribution in DISTRIBUTIONS:
        chosen = _sample(packed_rows(lengths_of(distribution)), row_limit)
        for block_q, block_k in TILES:
            counts = [count(lengths, block_q, block_k) for lengths in chosen]
            total = {method: sum(c[method] for c in counts) for method in counts[0]}
            case = {
                "kind": "tiles",
                "op": "packed_attention",
                "lengths": distribution,
                "tile": [block_q, block_k],
                "dtype": "int32",
            }
            case |= {"capacity": CAPACITY, "rows": len(chosen), "documents": sum(map(len, chosen))}
            found.append((case, {"rung": "counted", **total, "ours_over_allowed": total["ours"] / total["allowed"]}))
    return found


def _sample(packed: list[list[int]], number: int) -> list[list[int]]:
    """An even sample: best-fit packing puts long documents into the first rows and short ones into the last."""
    return [packed[index] for index in np.linspace(0, len(packed) - 1, min(number, len(packed))).astype(int)]


def table(rows: list[tuple[dict, dict]]) -> Table:
    """One line per distribution and tile."""
    drawn = Table("lengths", "tile", "documents", "ours", "minimum", "allowed", "ours/allowed", "flex", "dense")
    drawn.title = f"score tiles a head, rows of {CAPACITY:,}, counted"
    for case, result in rows:
        numbers = (result[name] for name in ("ours", "minimum", "allowed"))
        drawn.add_row(
            case["lengths"],
            "x".join(map(str, case["tile"])),
            str(case["documents"]),
            *(f"{number:,}" for number in numbers),
            f"{result['ours_over_allowed']:.1%}",
            *(f"{result[name]:,} ({result[name] / result['ours']:.2f}x)" for name in ("flex", "dense")),
        )
    return drawn
