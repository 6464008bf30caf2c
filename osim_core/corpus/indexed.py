"""Megatron-core's IndexedDataset format, read through memory maps and written durably.

`PREFIX.bin` is nothing but tokens, end to end. `PREFIX.idx` is, little-endian: the magic "MMIDIDX" and two zero
bytes, uint64 version 1, uint8 dtype code, uint64 sequence count N, uint64 document-border count D, then
int32 lengths [N], int64 byte offsets [N], int64 document borders [D] (sequence indices, from 0 to N), and for
multimodal sets int8 modes [N], which are not read here. Layout: megatron/core/datasets/indexed_dataset.py, 0.19.
The shards of osim_core.corpus.shards hold one sequence per document.
"""

import struct
from array import array
from pathlib import Path

import numpy as np

from osim_core.corpus.durable import DurableFile, map_file

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}  # 6 and 7 are floats
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where Megatron-core would choose it (fewer than 65,500 tokens), else int32."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


class IndexedWriter:
    """Writes one .bin/.idx pair. Nothing is visible until `publish`; use as a context manager to clean up."""

    def __init__(self, prefix: str | Path, dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self._bin = DurableFile(f"{prefix}.bin")
        self._idx_path = Path(f"{prefix}.idx")
        self._lengths, self._borders = array("i"), array("q", [0])
        self.tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """Append one sequence (1-D integers, values already known to fit the dtype) as its own document."""
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype))
        self._lengths.append(len(tokens))
        self._borders.append(len(self._lengths))
        self.tokens += len(tokens)

    def __len__(self) -> int:
        return len(self._lengths)

    def publish(self) -> dict[str, dict]:
        """Make both files durable, the index last; returns {file name: {"bytes", "sha256"}}."""
        lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.zeros(0, np.int32)
        pointers = np.zeros(len(lengths), np.int64)
        np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
        pointers *= self.dtype.itemsize
        files = {self._bin.path.name: self._bin.publish()}
        with DurableFile(self._idx_path) as idx:
            idx.write(_HEADER.pack(_MAGIC, 1, _CODES[self.dtype], len(lengths), len(self._borders)))
            idx.write(lengths)
            idx.write(pointers)
            idx.write(np.frombuffer(self._borders, np.int64))
            files[idx.path.name] = idx.publish()
        return files

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._bin.discard()


class IndexedTokens:
    """A memory-mapped .bin/.idx pair.

    lengths    int32 [N] tokens in each sequence
    pointers   int64 [N] byte offset of each sequence in the .bin
    borders    int64 [D] sequence indices at which documents start, closed by N
    flat       dtype [all tokens] the .bin itself
    Raises ValueError naming the file when one is missing, foreign or truncated.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        for path in (self.bin_path, idx_path):
            if not path.is_file():
                raise ValueError(f"{path}: file is missing; restore it or prepare the corpus again")
        index = map_file(idx_path)
        if len(index) < _HEADER.size:
            raise ValueError(f"{idx_path}: truncated index ({len(index)} bytes); prepare the corpus again")
        magic, version, code, count, border_count = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if magic != _MAGIC or version != 1 or code not in _DTYPES:
            raise ValueError(f"{idx_path}: not a Megatron index of integer tokens, version 1")
        needed = _HEADER.size + 12 * count + 8 * border_count
        if len(index) < needed:
            raise ValueError(f"{idx_path}: truncated index ({len(index)} of {needed} bytes); prepare the corpus again")
        self.dtype = np.dtype(_DTYPES[code])
        self.lengths = np.frombuffer(index, np.int32, count, _HEADER.size)
        self.pointers = np.frombuffer(index, np.int64, count, _HEADER.size + 4 * count)
        self.borders = np.frombuffer(index, np.int64, border_count, _HEADER.size + 12 * count)
        raw = map_file(self.bin_path)
        ends = self.pointers + self.lengths.astype(np.int64) * self.dtype.itemsize
        if count and (self.lengths.min() < 0 or self.pointers.min() < 0 or ends.max() > len(raw)):
            raise ValueError(
                f"{self.bin_path}: {len(raw)} bytes, but its index reaches to {ends.max()}; prepare the corpus again"
            )
        self.flat = np.frombuffer(raw, self.dtype, len(raw) // self.dtype.itemsize)

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, sequence: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """dtype [stop - start] a read-only view of tokens start..stop of one sequence."""
        first = int(self.pointers[sequence]) // self.dtype.itemsize
        length = int(self.lengths[sequence])
        stop = length if stop is None else stop
        assert 0 <= start <= stop <= length, (start, stop, length)
        return self.flat[first + start : first + stop]
