"""Signature files: what a text has to leave behind so that it never has to be sketched again.

A store is a folder of parts. A part is, little-endian: the magic, uint32 header length, a JSON header, and the columns
one after the other. The header names the parameters, the source file and each column's dtype, shape, offset and
CRC-32, so a part explains itself and a damaged one is found by name. The same parts, in a temporary folder, keep
the memory of a single run bounded. Legend: N rows of a part, M of them with 32-bit lanes, K lanes, B bands.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osim_core import _dedup
from osim_core.corpus.durable import DurableFile

MAGIC = b"OSIMSIG1"
PARAMETERS = {
    "tokens_per_shingle": 5,
    "lanes": _dedup.LANES,
    "bands": _dedup.BANDS,
    "rows_per_band": _dedup.ROWS,
    "wide_shingles": _dedup.WIDE_SHINGLES,
    "lane_seed": 20261124,
}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Part:
    """A part on disk; `header` as it was written."""

    path: Path
    header: dict

    @property
    def rows(self) -> int:
        return self.header["rows"]

    @property
    def base(self) -> int:
        """Where the columns begin in the file."""
        return len(MAGIC) + _LENGTH.size + self.header["header_bytes"]

    def offset(self, name: str) -> int:
        return self.base + self.header["columns"][name]["offset"]

    def column(self, name: str) -> np.ndarray:
        """The column, checked. Raises ValueError naming the file if its bytes are not those written."""
        entry = self.header["columns"][name]
        with self.path.open("rb") as file:
            file.seek(self.offset(name))
            data = file.read(entry["bytes"])
        if len(data) != entry["bytes"] or zlib.crc32(data) != entry["crc32"]:
            raise ValueError(f"{self.path}: column {name} is damaged; delete the store and run again")
        return np.frombuffer(data, entry["dtype"]).reshape(entry["shape"])


def write_part(path: Path, source: dict, columns: dict[str, np.ndarray]) -> Part:
    """Write one part durably. `source` says which rows these are; columns all have as many rows as `lines`."""
    entries, offset = {}, 0
    for name, column in columns.items():
        column = columns[name] = np.ascontiguousarray(column)
        view = memoryview(column).cast("B") if column.size else b""
        entries[name] = {
            "dtype": column.dtype.str,
            "shape": list(column.shape),
            "offset": offset,
            "bytes": column.nbytes,
            "crc32": zlib.crc32(view),
        }
        offset += column.nbytes
    header = {"parameters": PARAMETERS, "source": source, "rows": len(columns["lines"]), "columns": entries}
    text = json.dumps(header).encode()
    with DurableFile(path) as file:
        file.write(MAGIC + _LENGTH.pack(len(text)) + text)
        for column in columns.values():
            if column.size:
                file.write(column)
        file.publish()
    return Part(path, {**header, "header_bytes": len(text)})


def read_part(path: Path) -> Part:
    """Open a part. Raises ValueError if it is none, is cut short, or was made with other parameters."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + _LENGTH.size)
        if len(start) < len(MAGIC) + _LENGTH.size or not start.startswith(MAGIC):
            raise ValueError(f"{path}: not a signature file; delete it and run again")
        (length,) = _LENGTH.unpack(start[len(MAGIC) :])
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path}: its header is damaged ({error}); delete the store and run again") from error
    if header["parameters"] != PARAMETERS:
        raise ValueError(f"{path}: made with other parameters ({header['parameters']}); use another store")
    part = Part(path, {**header, "header_bytes": length})
    size = part.base + sum(entry["bytes"] for entry in header["columns"].values())
    if path.stat().st_size != size:
        raise ValueError(f"{path}: {path.stat().st_size} bytes instead of {size}; delete the store and run again")
    return part
