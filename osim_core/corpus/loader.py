"""The loader: packed rows of a global step, split over data-parallel ranks.

    shards + plan --step--> global_batch_rows rows --balance--> this rank's rows --mapped tokens--> PackedBatch

The rows of step s are rows s*B .. (s+1)*B-1 of the epochs' plans laid end to end: a pure function of (seed, step).
Epochs carry over, so no row is lost. The world size decides only who gets which of these rows, and prefetching only
when they are read; the step number is the whole state of the loader.

    loader = PackedLoader(shards, data, split="train", sequence_length=4096, global_batch_rows=64, seed=1,
                          rank=dp_rank, world=dp_size)
    for step, batches in loader.stream(start_step): ...
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch

from osim_core.batch import PackedBatch
from osim_core.config import DataConfig
from osim_core.corpus.pack import balance_rows
from osim_core.corpus.plan import PIECE, Plan, open_plan
from osim_core.corpus.shards import ShardSet

EVALUATION_SEED = 0  # not the run's: every run is measured on the same rows

Batches = list[PackedBatch]  # one rank's micro-batches of one step, one row each


class PackedLoader:
    """Delivers PackedBatches of one split to one data-parallel rank.

    rank, world: the data-parallel coordinates (ranks of one tensor/pipeline/context group pass the same ones).
    Raises ValueError if `world` does not divide `global_batch_rows`, and what `open_plan` raises.
    """

    def __init__(
        self,
        shards: ShardSet,
        data: DataConfig,
        *,
        split: str,
        sequence_length: int,
        global_batch_rows: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        assert shards.split == split and 0 <= rank < world, (shards.split, split, rank, world)
        if global_batch_rows < 1 or global_batch_rows % world:
            nearest = max(1, round(global_batch_rows / world)) * world
            raise ValueError(
                f"train.global_batch_rows: {global_batch_rows} rows cannot be shared equally by {world} data-parallel "
                f"ranks; use {nearest}, or another number of ranks"
            )
        self.shards, self.data = shards, data
        self.sequence_length, self.global_batch_rows, self.seed = sequence_length, global_batch_rows, seed
        self.rank, self.world = rank, world
        self._plans: list[Plan] = []  # of epochs 0, 1, ...
        self._ends: list[int] = []  # rows up to and including each of these epochs
        self._plans_lock = threading.Lock()

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row of the first epoch has been read; the last of them may begin the second."""
        self._ensure_rows(1)
        return -(-self._ends[0] // self.global_batch_rows)

    @property
    def statistics(self) -> dict:
        """What the first epoch's plan kept, dropped and padded (see `Plan`)."""
        self._ensure_rows(1)
        return self._plans[0].statistics

    def batch(self, step: int) -> Batches:
        """This rank's micro-batches of a global step, in a fixed order."""
        first = step * self.global_batch_rows
        self._ensure_rows(first + self.global_batch_rows)
        return self._share([self._row(first + i) for i in range(self.global_batch_rows)], self.data.loss_on)

    def stream(self, start_step: int) -> Iterator[tuple[int, Batches]]:
        """(step, batch(step)) from `start_step` on, without end, read `data.prefetch` steps ahead by a thread.

        An exception while reading ahead is raised at the step that it belongs to. Closing the iterator stops the
        thread after the batch it is working on.
        """
        if self.data.prefetch == 0:
            yield from ((step, self.batch(step)) for step in count(start_step))
        pool = ThreadPoolExecutor(1, "loader")
        try:
            ahead = deque(pool.submit(self.batch, start_step + i) for i in range(self.data.prefetch))
            for step in count(start_step):
                batches = ahead.popleft().result()
                ahead.append(pool.submit(self.batch, step + self.data.prefetch))
                yield step, batches
        finally:
            pool.shutdown(cancel_futures=True)

    def evaluation(self, rows: int) -> list[Batches]:
        """Global batches of the first `rows` rows (or all, if there are fewer) of a fixed shuffle of the split.

        Each document counts once whatever the mix, and neither the seed nor the world size changes the rows. The
        last batch is filled with rows of padding, so every rank runs the same number of micro-batches.
        """
        plan = open_plan(
            self.data.cache,
            self.shards,
            sequence_length=self.sequence_length,
            overlong=self.data.overlong,
            mix={},
            seed=EVALUATION_SEED,
            epoch=0,
            document_length=self.data.document_length,
        )
        chosen = [plan.row(row) for row in range(min(rows, len(plan)))]
        chosen += [np.zeros(0, PIECE)] * (-len(chosen) % self.global_batch_rows)
        step = self.global_batch_rows
        return [self._share(chosen[first : first + step]) for first in range(0, len(chosen), step)]

    def _ensure_rows(self, rows: int) -> None:
        """Open plans of further epochs until the global row numbers below `rows` are covered."""
        with self._plans_lock:
            while not self._ends or self._ends[-1] < rows:
                plan = open_plan(
                    self.data.cache,
                    self.shards,
                    sequence_length=self.sequence_length,
                    overlong=self.data.overlong,
                    mix=self.data.sources,
                    seed=self.seed,
                    epoch=len(self._plans),
                    document_length=self.data.document_length,
                )
                self._plans.append(plan)
                self._ends.append((self._ends[-1] if self._ends else 0) + len(plan))

    def _row(self, number: int) -> np.ndarray:
        epoch = int(np.searchsorted(self._ends, number, side="right"))
        return self._plans[epoch].row(number - (self._ends[epoch - 1] if epoch else 0))

    def _share(self, rows: list[np.ndarray], loss_on: str = "simulated") -> Batches:
        """This rank's part of a global batch, equal in rows and balanced in linear and attention work."""
        lengths = [(row["stop"] - row["start"]).astype(np.int64) for row in rows]
        loads = np.array([(length.sum(), (length**2).sum()) for length in lengths], np.int64)
        groups = balance_rows(loads, self.world)
        return [
            read_row(self.shards, rows[i], self.sequence_length, loss_on) for i in np.flatnonzero(groups == self.rank)
        ]


def read_row(shards: ShardSet, pieces: np.ndarray, sequence_length: int, loss_on: str = "simulated") -> PackedBatch:
    """Assemble one row (PIECE [S]) from the mapped shards. No pieces make a row of padding.

    weights["ce"][t] is 1 where the token after t belongs to the same piece and, with loss_on "simulated", lies in one
    of its loss spans.
    """
    tokens_T = np.zeros(sequence_length, np.int64)
    shard_of, row_of = shards.locate(pieces["document"])
    sources, spans, span_counts = [], [], []
    fields = (shard_of, row_of, pieces["start"], pieces["stop"], pieces["offset"])
    for which, row, start, stop, offset in zip(*(field.tolist() for field in fields), strict=True):
        shard = shards.shards[which]
        tokens_T[offset : offset + stop - start] = shard.index.tokens(row, start, stop)
        sources.append(shard.sources[row])
        borders, values = shard.loss_spans
        edges = values[borders[row] : borders[row + 1]]
        spans.append(edges)
        span_counts.append(len(edges))

    lengths = (pieces["stop"] - pieces["start"]).astype(np.int64)
    ends = pieces["offset"] + lengths
    used = int(ends[-1]) if len(ends) else 0
    labels_T = np.zeros(sequence_length, np.int64)
    labels_T[:-1] = tokens_T[1:]
    labels_T[ends - 1] = 0
    segments = np.concatenate([lengths, [sequence_length - used]]) if used < sequence_length else lengths
    cu_seqlens = np.concatenate([[0], np.cumsum(segments)])
    positions_T = np.arange(sequence_length) - np.repeat(cu_seqlens[:-1], segments)
    padding = [-1] * (len(segments) - len(lengths))
    if loss_on == "everyone":
        weight_T = (np.arange(sequence_length) < used).astype(np.float32)
        weight_T[ends - 1] = 0.0
    else:
        weight_T = _weights(pieces, lengths, spans, span_counts, sequence_length)
    return PackedBatch(
        tokens_T=torch.from_numpy(tokens_T),
        labels_T=torch.from_numpy(labels_T),
        positions_T=torch.from_numpy(positions_T),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        weights={"ce": torch.from_numpy(weight_T)},
        sources_S=torch.tensor(sources + padding, dtype=torch.int32),
        documents_S=torch.tensor([*pieces["document"].tolist(), *padding], dtype=torch.int64),
    )


def _weights(
    pieces: np.ndarray, lengths: np.ndarray, spans: list[np.ndarray], counts: list[int], sequence_length: int
) -> np.ndarray:
    """float32 [T] from the documents' span borders, all at once: borders, moved to the row, alternate off and on."""
    shift = np.repeat(pieces["offset"] - pieces["start"], counts)
    low = np.repeat(pieces["offset"] + 1, counts)  # a piece's first token is never a target
    high = np.repeat(pieces["offset"] + lengths, counts)
    edges = np.clip(np.concatenate([*spans, np.zeros(0, np.int32)]) + shift, low, high)
    edges = np.concatenate([[0], edges - 1, [sequence_length]])  # the weight stands where the target is predicted
    on = np.arange(len(edges) - 1) % 2
    return np.repeat(on.astype(np.float32), np.diff(edges))
