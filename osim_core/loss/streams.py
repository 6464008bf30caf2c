"""One objective for every recipe:

    loss = sum over streams s of  c_s * sum_t w_s[t] * l_s[t] / N_s

N_s is the sum of w_s over the whole optimizer step: every micro-batch of every data-parallel rank. It is known
before the first forward pass, so gradients are plain sums and never depend on how rows were packed, sharded or
accumulated. c_s is 1 but for `kl`, whose coefficient is the objective's.

    ce      l = -log p(token)
    policy  l = the clipped surrogate of osim_kernels.policy_loss
    kl      l = exp(r) - r - 1 with r = log p_reference - log p (k3 of Schulman 2020, unbiased for KL(p || reference) on
            tokens that p wrote)

Shape suffixes: T tokens of a row, L this context-parallel rank's tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.batch import PackedBatch, PolicyColumns
from osim_kernels.policy_loss import PolicyLossConfig, PolicyMetrics, policy_loss

STREAMS = ("ce", "policy", "kl")
LONGEST_LOG_RATIO = 20.0  # exp beyond it would overflow the loss; policy_loss holds its ratios the same way


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How the streams' losses are made: the policy stream's surrogate and the coefficient of the kl stream."""

    policy: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    kl_coefficient: float = 0.0


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


@dataclass(frozen=True)
class Row:
    """What the losses need of this rank's part of a row: stream -> weights [L], the policy's columns [L], and the
    borders of the row's segments within each of this rank's chunks, int64 [C, S+1] (the sequence ratio needs them)."""

    weights: Mapping[str, torch.Tensor]
    policy: PolicyColumns | None
    borders: torch.Tensor | None


def objective(
    logprob_L: torch.Tensor, row: Row, totals: Mapping[str, float], settings: Objective
) -> tuple[torch.Tensor, PolicyMetrics | None]:
    """This micro-batch's share of the loss (a scalar, fp32; shares add up over micro-batches and ranks), and what the
    policy stream did, if it is there.

    logprob_L: fp32 log-probability of each label. totals: N_s from `normalisers`; a stream without any weight in the
    whole step is left out.
    """
    loss, metrics = logprob_L.new_zeros(()), None
    for name, weight_L in row.weights.items():
        if not totals[name]:
            continue
        if name == "ce":
            share = -(weight_L * logprob_L).sum()
        elif name == "policy":
            token_loss_L, metrics = _policy(logprob_L, weight_L, row, settings.policy)
            share = (weight_L * token_loss_L).sum()
        else:
            share = settings.kl_coefficient * (weight_L * _kl(logprob_L, weight_L, row.policy)).sum()
        loss = loss + share / totals[name]
    return loss, metrics


def _policy(
    logprob_L: torch.Tensor, weight_L: torch.Tensor, row: Row, config: PolicyLossConfig
) -> tuple[torch.Tensor, PolicyMetrics]:
    columns = row.policy
    old_L = logprob_L.detach() if columns.old_logprobs_T is None else columns.old_logprobs_T
    return policy_loss(
        logprob_L,
        old_L,
        columns.advantages_T,
        weights_T=weight_L,
        config=config,
        sampler_logprob_T=columns.sampler_logprobs_T,
        cu_seqlens=row.borders,
        context_parallel_group=parallel_state.get_context_parallel_group(),
    )


def _kl(logprob_L: torch.Tensor, weight_L: torch.Tensor, columns: PolicyColumns) -> torch.Tensor:
    # where nothing is weighted both columns may hold anything, NaN included, and 0 * NaN would be NaN
    ratio_L = torch.where(weight_L != 0, columns.reference_logprobs_T - logprob_L, 0.0)
    ratio_L = ratio_L.clamp(-LONGEST_LOG_RATIO, LONGEST_LOG_RATIO)
    return ratio_L.exp() - ratio_L - 1.0
