"""Near-duplicates by exact Jaccard index: which rows of a corpus say the same, and which one of them to keep.

    python -m osim_core.corpus.dedup IN.jsonl --out OUT.parquet [--text-field text] [--threads N]

Texts are split into tokens (csrc/common/text.hpp: lower-cased words, single code points of scripts without spaces);
their sets of token 5-grams make a MinHash signature of 128 lanes (Broder 1997), 21 bands of 6 lanes nominate pairs,
and each nominated pair is verified on the sets themselves, so two rows are joined only by an index of at least the
threshold. Clusters are the connected components of verified pairs; the row of the lowest priority number survives,
then the lowest row. They depend on the texts alone, not on their order or on threads. Texts of fewer than
five tokens are duplicates if their tokens are equal, or their bytes where they have no token.

Here is the version for texts in memory; run.py is the one for files of any size. Legend: N texts, K lanes, B bands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from osim_core import _dedup

THRESHOLD = 0.8
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Sketches:
    """One row a text.

    hashes      uint64 [N, 2]     exact hash of the tokens
    widths      uint8 [N]         0 no signature (fewer than five tokens), 1 16-bit lanes, 2 both, 3 32-bit lanes
    keys        uint32 [B, N]     band keys of 16-bit lanes
    digits      uint64 [N, K/16]  four bits of each lane
    signatures  uint16 [N, K]     the lanes (their low halves where they have 32 bits), or [0, K]
    wide_rows   int64 [M]         rows of widths 2 and 3
    wide_keys   uint32 [M, B]     their band keys of 32-bit lanes
    """

    hashes: np.ndarray
    widths: np.ndarray
    keys: np.ndarray
    digits: np.ndarray
    signatures: np.ndarray
    wide_rows: np.ndarray
    wide_keys: np.ndarray


@dataclass(frozen=True, slots=True)
class Statistics:
    """What clustering did; `candidates` and `verified` depend on how threads happened to interleave.

    exact       texts whose tokens an earlier text has
    candidates  pairs that bands nominated, repeats included, but for buckets that were connected already
    verified    exact indices computed for them
    accepted    of those, the ones at or above the threshold
    """

    exact: int
    candidates: int
    verified: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Clusters:
    """survivor int64 [N]: the row each text's cluster keeps (its own if it is kept). jaccard float32 [N]: exact index
    of a text and its survivor, 1 for those kept; a chain of pairs may leave it below the threshold."""

    survivor: np.ndarray
    jaccard: np.ndarray
    statistics: Statistics

    @property
    def keep(self) -> np.ndarray:
        """bool [N]"""
        return self.survivor == np.arange(self.survivor.size)


def text_buffers(texts: pa.Array | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(data uint8, offsets int64 [N + 1]) of texts. A large_string array is used in place, others are converted.

    Raises ValueError naming the first null.
    """
    if not isinstance(texts, pa.Array):
        texts = pa.array(texts, pa.large_string())
    if texts.null_count:
        row = texts.is_null().index(True).as_py()
        raise ValueError(f"dedup: text {row} is null; fill it or leave the row out")
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    offsets_N1 = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8), offsets_N1


def check_settings(threshold: float, threads: int) -> None:
    """Raises ValueError for a threshold that bands of six lanes cannot serve, or no thread."""
    if not 0.7 <= threshold <= 1.0:
        raise ValueError(f"dedup: threshold {threshold} is not in [0.7, 1]: the bands are made for 0.8")
    if threads < 1:
        raise ValueError(f"dedup: threads must be at least 1, got {threads}")


def find_duplicates(
    texts: pa.Array | Sequence[str],
    *,
    threshold: float = THRESHOLD,
    priorities: np.ndarray | None = None,
    threads: int = 1,
    scalar: bool = False,
    device: Device = "cpu",
) -> Clusters:
    """Cluster texts (N of them) whose 5-gram sets have a Jaccard index of at least `threshold`.

    priorities  int32 [N] or None, such as a rank of each text's source; the lowest number survives
    scalar      do without AVX2 (the result is the same)
    device      where to sketch and to sort band keys; the result is the same
    Raises ValueError for a null text, settings out of range, and device "cuda" without a GPU.
    """
    check_settings(threshold, threads)
    data, offsets = text_buffers(texts)
    if priorities is not None:
        priorities = np.ascontiguousarray(priorities, np.int32)
    if device == "cuda":
        from osim_core.corpus.dedup.buckets import band_runs  # these import torch
        from osim_core.corpus.dedup.cuda import CudaSketcher

        sketches = CudaSketcher(threshold, threads=threads)(data, offsets)
        runs = band_runs(sketches, device)
    else:
        sketches = Sketches(*_dedup.sketch(data, offsets, threshold, threads, signatures=False, scalar=scalar))
        runs = None
    survivor, jaccard, counts = _dedup.cluster(
        data,
        offsets,
        sketches.hashes,
        sketches.widths,
        sketches.keys,
        sketches.digits,
        sketches.wide_rows,
        sketches.wide_keys,
        priorities,
        threshold,
        threads,
        scalar=scalar,
        runs=runs,
    )
    return Clusters(survivor, jaccard, Statistics(*counts))
