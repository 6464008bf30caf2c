"""Sketches on an NVIDIA GPU, the columns of osim_core._dedup bit for bit: csrc/cuda/dedup, driven batch by batch.

    CudaSketcher(threshold)(data, offsets)       # what find_duplicates(device="cuda") and --device cuda do first

A batch of raw UTF-8 is copied into pinned memory, sent, sketched by one warp a text, and its columns come back into
pinned memory, all on one of two streams: while one batch is on the GPU, the next one is on its way there and the one
before on its way back. Clustering stays on the CPU, which verifies pairs on the texts. Legend: N texts, B bands.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from osim_core import _dedup
from osim_core.corpus.dedup import Sketches

BATCH_BYTES = 64 << 20  # 1.2 ms of PCIe 5; its columns take a fifth to a half of it
BATCH_TEXTS = 1 << 20
ALIGNMENT = 16  # bytes that a thread loads at once
STREAMS = 2


def require_gpu() -> None:
    """Raises ValueError where there is no GPU, or no osim_core._cuda."""
    if find_spec("osim_core._cuda") is None:
        raise ValueError("dedup: device cuda needs osim_core._cuda, which is built where nvcc is; or use device cpu")
    if not torch.cuda.is_available():
        raise ValueError("dedup: device cuda, but torch finds no NVIDIA GPU and driver here; use device cpu")


class CudaSketcher:
    """Sketches texts on the current CUDA device; `threads` copy into pinned memory, which takes 10 GB/s each."""

    def __init__(self, threshold: float, *, signatures: bool = False, threads: int = 1) -> None:
        require_gpu()
        from osim_core import _cuda  # not everywhere

        self._sketch_texts = _cuda.sketch_texts
        self._least_wide_bytes = _cuda.least_wide_bytes(threshold)
        self._threshold, self._signatures, self._threads = threshold, signatures, threads
        self._streams = [torch.cuda.Stream() for _ in range(STREAMS)]

    def __call__(self, data: np.ndarray, offsets: np.ndarray) -> Sketches:
        """Columns of texts in data uint8 with offsets int64 [N + 1], ascending, each text below 2 GiB."""
        columns = Columns(len(offsets) - 1, self._signatures)
        running: deque[_Running] = deque()
        for number, (first, last) in enumerate(batches(offsets)):
            if len(running) == STREAMS:
                running.popleft().hand_over(columns)
            with torch.cuda.stream(self._streams[number % STREAMS]):
                running.append(self._launch(data, offsets, first, last))
        while running:
            running.popleft().hand_over(columns)
        return columns.sketches()

    def _launch(self, data: np.ndarray, offsets: np.ndarray, first: int, last: int) -> "_Running":
        begin, end = int(offsets[first]), int(offsets[last])
        text = torch.empty(-(-(end - begin) // ALIGNMENT) * ALIGNMENT, dtype=torch.uint8, pin_memory=True)
        copy_bytes(text.numpy()[: end - begin], data[begin:end], self._threads)
        own_offsets = torch.from_numpy(offsets[first : last + 1] - begin).pin_memory()
        rows, long_rows = order_rows(offsets[first : last + 1], self._least_wide_bytes)
        on_device = [t.to("cuda", non_blocking=True) for t in (text, own_offsets, torch.from_numpy(rows).pin_memory())]
        results = self._sketch_texts(*on_device, len(long_rows), self._threshold, self._signatures)
        pinned = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
        for target, result in zip(pinned, results, strict=True):
            target.copy_(result, non_blocking=True)
        return _Running(first, last, long_rows, pinned, torch.cuda.current_stream().record_event())


@dataclass(frozen=True)
class _Running:
    """A batch on its way; the GPU may still write `pinned` until `done`."""

    first: int
    last: int
    long_rows: np.ndarray
    pinned: list[torch.Tensor]
    done: torch.cuda.Event

    def hand_over(self, columns: "Columns") -> None:
        self.done.synchronize()
        columns.take(self.first, self.last, self.long_rows, [column.numpy() for column in self.pinned])


class Columns:
    """Sketches put together from batches of rows, in any order."""

    def __init__(self, texts: int, signatures: bool) -> None:
        lanes, bands = _dedup.LANES, _dedup.BANDS
        self._hashes = np.empty((texts, 2), np.uint64)
        self._widths = np.empty(texts, np.uint8)
        self._keys = np.empty((bands, texts), np.uint32)
        self._digits = np.empty((texts, lanes // 16), np.uint64)
        self._signatures = np.empty((texts if signatures else 0, lanes), np.uint16)
        self._wide = [(np.zeros(0, np.int64), np.zeros((0, bands), np.uint32))]

    def take(self, first: int, last: int, long_rows: np.ndarray, batch: Sequence[np.ndarray]) -> None:
        """Rows [first, last) as `_cuda.sketch_texts` gives them; long_rows counts from `first`."""
        hashes, widths, keys, digits, signatures, wide_keys = batch
        self._hashes[first:last] = hashes
        self._widths[first:last] = widths
        self._keys[:, first:last] = keys
        self._digits[first:last] = digits
        if len(self._signatures):
            self._signatures[first:last] = signatures
        wide = widths[long_rows] >= 2  # they have 32-bit lanes, perhaps beside 16-bit ones
        self._wide.append((long_rows[wide].astype(np.int64) + first, wide_keys[wide]))

    def sketches(self) -> Sketches:
        """All of them; wide rows ascend."""
        rows, keys = (np.concatenate(part) for part in zip(*self._wide, strict=True))
        order = np.argsort(rows)
        return Sketches(
            self._hashes, self._widths, self._keys, self._digits, self._signatures, rows[order], keys[order]
        )


def batches(
    offsets: np.ndarray, most_bytes: int = BATCH_BYTES, most_texts: int = BATCH_TEXTS
) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of rows of at most so many bytes and texts; a longer text is a run by itself."""
    first, texts = 0, len(offsets) - 1
    while first < texts:
        last = int(np.searchsorted(offsets, offsets[first] + most_bytes, side="right")) - 1
        last = min(max(last, first + 1), first + most_texts, texts)
        yield first, last
        first = last


def order_rows(offsets: np.ndarray, least_wide_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows int32 [n] with the long texts first, those long rows), the longest first, so that none starts last."""
    lengths = np.diff(offsets)
    is_long = lengths >= least_wide_bytes
    long_rows = np.flatnonzero(is_long).astype(np.int32)
    long_rows = long_rows[np.argsort(-lengths[long_rows], kind="stable")]
    return np.concatenate([long_rows, np.flatnonzero(~is_long).astype(np.int32)]), long_rows


def copy_bytes(target: np.ndarray, source: np.ndarray, threads: int) -> None:
    """target[:] = source, a part of it by each of so many threads (NumPy copies without the GIL)."""
    if threads == 1:
        np.copyto(target, source)
        return
    borders = np.linspace(0, len(source), threads + 1).astype(np.int64)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda a, b: np.copyto(target[a:b], source[a:b]), borders[:-1], borders[1:]))
