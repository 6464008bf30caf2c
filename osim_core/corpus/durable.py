"""Files that are either complete or absent: written under a temporary name, fsynced, renamed.

Shards, indices and packing plans are all published through here, and their SHA-256 is taken while the bytes pass.
`map_file` reads them back; `exclusive` lets one process of many do a piece of work once.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


class DurableFile:
    """A file that appears at `path` only when `publish` is called.

    `write` takes anything with the buffer protocol. Leaving the `with` block through an exception, or without
    `publish`, removes the temporary file; an existing file at `path` stays as it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        self._file = self.temporary.open("wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def publish(self) -> dict:
        """Make the file durable and visible; returns {"bytes": int, "sha256": hex}."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.temporary.rename(self.path)
        sync_folder(self.path.parent)
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}

    def discard(self) -> None:
        """Remove what was written so far; does nothing after `publish`."""
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> "DurableFile":
        return self

    def __exit__(self, *exception) -> None:
        self.discard()


def write_durably(path: str | Path, data: bytes) -> dict:
    """Publish `data` at `path` in one go; returns {"bytes": int, "sha256": hex}."""
    with DurableFile(path) as file:
        file.write(data)
        return file.publish()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file, read in blocks (the interpreter lock is released while hashing)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_file(path: Path) -> np.ndarray:
    """uint8 [size] a read-only memory map.

    torch maps and closes the file; numpy.memmap keeps a descriptor per map, and a 20 M-document corpus has more
    files than the usual limit of 1,024.
    """
    size = path.stat().st_size
    if size == 0:
        return np.zeros(0, np.uint8)
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return mapped


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path` (created if missing); other processes wait. A killed holder lets go."""
    with Path(path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
