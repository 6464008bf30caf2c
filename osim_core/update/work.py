"""What a step really processes, for throughput, padding and utilisation figures."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.batch import PackedBatch
from osim_core.parallel.device import device


@dataclass(frozen=True)
class Work:
    """Sums over all data-parallel ranks and micro-batches; `slots` counts padding too, the others do not."""

    tokens: int
    squared_lengths: int
    loss_tokens: int
    slots: int

    @property
    def padding(self) -> float:
        return 1.0 - self.tokens / self.slots


def count_work(batches: Iterable[PackedBatch]) -> Work:
    """Count a step's work. Collective over the data-parallel group; `batches` are this rank's micro-batches."""
    sums = torch.zeros(4, dtype=torch.int64)
    for batch in batches:
        lengths_S = batch.cu_seqlens.diff().long()[batch.sources_S >= 0]  # the padding tail is source -1
        carries_T = torch.stack(list(batch.weights.values())).abs().amax(0) > 0
        sums += torch.stack([lengths_S.sum(), (lengths_S**2).sum(), carries_T.sum(), torch.tensor(batch.num_tokens)])
    sums = sums.to(device())
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return Work(*sums.tolist())
