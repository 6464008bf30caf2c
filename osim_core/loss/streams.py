"""One objective for every recipe:

    loss = sum over streams s of  sum_t w_s[t] * l_s[t] / N_s

N_s is the sum of w_s over the whole optimizer step: every micro-batch of every data-parallel rank. It is known
before the first forward pass, so gradients are plain sums and never depend on how rows were packed, sharded or
accumulated. Shape suffixes: T tokens of a row, L this context-parallel rank's tokens.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.batch import PackedBatch

STREAMS = ("ce",)  # "policy" and "kl" come with recipes/rl.py and recipes/distill.py


def normalisers(batches: Iterable[PackedBatch]) -> dict[str, float]:
    """N_s of each stream over this step. Collective over the data-parallel group.

    batches: this data-parallel rank's micro-batches. Raises ValueError for an unknown stream or one whose weights
    are all zero everywhere (nothing to learn from; an update would be 0/0).
    """
    totals: dict[str, float] = dict.fromkeys(STREAMS, 0.0)
    for batch in batches:
        for name, weight_T in batch.weights.items():
            if name not in totals:
                raise ValueError(f"loss stream {name!r} is unknown; known streams: {', '.join(STREAMS)}")
            totals[name] += weight_T.sum(dtype=torch.float64).item()
    summed = torch.tensor([totals[name] for name in STREAMS], dtype=torch.float64)
    summed = summed.to(torch.cuda.current_device())
    dist.all_reduce(summed, group=parallel_state.get_data_parallel_group())
    result = dict(zip(STREAMS, summed.tolist(), strict=True))
    if not any(result.values()):
        raise ValueError(
            "this step has no token with a loss weight; check the sources' roles, or raise train.global_batch_rows"
        )
    return result


def objective(
    logprob_L: torch.Tensor, weights: Mapping[str, torch.Tensor], totals: Mapping[str, float]
) -> torch.Tensor:
    """This micro-batch's share of the loss (a scalar, fp32); shares add up over micro-batches and ranks.

    logprob_L: fp32 log-probability of each label. weights: stream -> [L]. totals: N_s from `normalisers`.
    """
    loss = logprob_L.new_zeros(())
    for name, weight_L in weights.items():
        assert name == "ce"
        loss = loss - (weight_L * logprob_L).sum() / totals[name]
    return loss
