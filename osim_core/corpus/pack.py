"""Documents -> rows: global best-fit-decreasing packing, and dealing rows to ranks.

Where: shards know every document's length; this file decides, once per corpus and row length, which documents
share a row. Nothing is cut here: what is longer than a row was split, truncated or dropped before.
Run:   rows = pack_documents(lengths_N, capacity=16_384); rows.padding_share

Shape suffixes: N documents, R rows. The work is done in C++ (csrc/native/packer.cpp, balance.cpp).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from osim_core import _native


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Which documents share a row.

    row_offsets  int64 [R+1]; row r holds documents[row_offsets[r]:row_offsets[r + 1]]
    documents    int64 [N]; every document index once, longest first within a row
    capacity     tokens in a row
    tokens       tokens in all documents
    """

    row_offsets: np.ndarray
    documents: np.ndarray
    capacity: int
    tokens: int

    def __len__(self) -> int:
        """Number of rows, R."""
        return self.row_offsets.size - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The documents of one row, int64."""
        return self.documents[self.row_offsets[row] : self.row_offsets[row + 1]]

    @property
    def padding_share(self) -> float:
        """Share of row positions that hold no token, 0 to 1."""
        room = len(self) * self.capacity
        return (room - self.tokens) / room if room else 0.0


def pack_documents(lengths_N: ArrayLike, capacity: int) -> PackedRows:
    """Pack whole documents into rows of `capacity` tokens, best fit decreasing.

    Every document, longest first and ties by index, goes into the fullest open row that has room; a new row
    opens only when none has. Deterministic. Needs at most 11/9 of the fewest possible rows, plus 6/9. With
    enough short documents padding practically vanishes; where all documents are longer than half a row, it is
    what their lengths dictate, so report `padding_share` and do not assume it.

    lengths_N: integers [N], each between 1 and capacity; int32 and int64 arrays are read without a copy.
    Raises ValueError naming the first document that is empty or longer than a row.
    """
    lengths_N = _integers(lengths_N, "lengths")
    if lengths_N.ndim != 1:
        raise ValueError(f"lengths: expected one dimension, got {lengths_N.ndim}")
    row_offsets, documents = _native.pack(lengths_N, capacity)
    return PackedRows(
        row_offsets=row_offsets,
        documents=documents,
        capacity=capacity,
        tokens=int(lengths_N.sum(dtype=np.int64)),
    )


def balance_rows(loads_R2: ArrayLike, groups: int) -> np.ndarray:
    """Deal the rows of one global batch to `groups` ranks, R / groups rows each: group of each row, int32 [R].

    loads_R2: integers [R, 2]; tokens (linear work) and the sum of squared document lengths (attention work) of
    each row. Each column counts as a share of its total; rows are dealt largest first to the least loaded rank
    with a place left (Graham 1969, longest processing time), then the heaviest rank swaps single rows with
    lighter ones while that helps. A pure function of the loads.
    Raises ValueError if the groups do not divide the rows.
    """
    loads_R2 = _integers(loads_R2, "loads").astype(np.int64, copy=False)
    if loads_R2.ndim != 2 or loads_R2.shape[1] != 2:
        raise ValueError(f"loads: expected shape [rows, 2], got {list(loads_R2.shape)}")
    return _native.balance(np.ascontiguousarray(loads_R2), groups)


def _integers(values: ArrayLike, name: str) -> np.ndarray:
    """A contiguous int32 or int64 array of `values`; refuses anything that is not whole numbers."""
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    if array.dtype not in (np.int32, np.int64):
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)
